"""Exports to OpenVINO and PyTorch by the command: they say what the model says, are used like it, and read safely."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import maskrcnn
from maskrcnn.cli.main import main
from maskrcnn.engines.exported import ExportedPredictor
from maskrcnn.errors import UserError
from maskrcnn.export.check import _padded, compare
from maskrcnn.export.openvino_file import write_openvino
from maskrcnn.models.predictor import Predictor
from maskrcnn.weights.write import write_weights
from tests.export.test_onnx import picture, sure
from tests.models.tiny import pictures

pytest.importorskip("openvino")
SMALL = ["--size", "128", "160", "--batch", "1"]


@pytest.fixture(scope="module")
def model() -> Predictor:
    return sure("mask_rcnn_mobilenet_v2_FPN")


@pytest.fixture(scope="module")
def folder(model: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's checkpoint, and three pictures in a folder."""
    folder = tmp_path_factory.mktemp("exports")
    write_weights(folder / "model.safetensors", model.state_dict(), model.config)
    (folder / "pictures").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
    return folder


def export(folder: Path, out: str, *options: str) -> int:
    return main(
        ["export", "--model", str(folder / "model.safetensors"), "--out", str(folder / out), *options]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "format", "engine"), [("a.xml", "openvino", "openvino"), ("a.pt2", "torch", "torch")]
)
def test_it_says_what_the_model_says(
    folder: Path, model: Predictor, capsys: pytest.CaptureFixture[str], out: str, format: str, engine: str
) -> None:
    before = set(folder.iterdir())
    assert export(folder, out, "--format", format, *SMALL) == 0
    assert capsys.readouterr().err.count(": ok") == 3
    new = {p.name for p in set(folder.iterdir()) - before}
    assert new == ({"a.xml", "a.bin"} if out == "a.xml" else {out})
    exported = maskrcnn.load(folder / out)
    assert exported.engine == engine
    images = pictures((100, 130))
    [found] = exported.detect(exported.preprocess(images))
    [expected] = model.detect(_padded(model.preprocess(images), (128, 160)))
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
    assert float(torch.cdist(found.boxes, expected.boxes, p=float("inf")).amin(1).max()) < 0.05
    assert len(exported.predict(folder / "pictures" / "0.png").to_coco()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["mask_rcnn_convnext_tiny_1k_3x", "mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco"],
)
def test_other_backbones_in_openvino(tmp_path: Path, name: str) -> None:
    model = sure(name)
    write_openvino(model, tmp_path / "a.xml", size=(96, 128), batch=1)
    for difference in compare(model, ExportedPredictor(tmp_path / "a.xml"), picture(), (96, 128), 1):
        assert difference.passed(), difference.line()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_code_says_what_the_model_says_and_is_opened_by_nobody_unasked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(folder, "c.pt2", "--format", "aot", *SMALL) == 0, capsys.readouterr().err
    assert capsys.readouterr().err.count(": ok") == 3  # compared with the model by the command itself
    with pytest.raises(UserError, match=r"got a compiled package, which may run code"):
        maskrcnn.load(folder / "c.pt2")


@pytest.mark.slow
def test_in_8_bits_with_pictures_to_calibrate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nncf")
    how = ("--format", "openvino", "--precision", "int8", "--calibration", str(folder / "pictures"))
    assert export(folder, "b.xml", *how, *SMALL) == 0, capsys.readouterr().err
    text = (folder / "b.xml").read_text()
    assert text.count('type="FakeQuantize"') > 40
    assert len(maskrcnn.load(folder / "b.xml").predict(folder / "pictures" / "1.png")) > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "a.onnx", "--precision", "fp16"], "--precision fp16: expected fp32 for --format onnx"),
        (["--out", "a.xml"], "expected a name that ends in .onnx"),
        (
            ["--out", "a.xml", "--format", "openvino", "--precision", "int8"],
            "expected pictures for --precision int8",
        ),
        (["--out", "a.xml", "--format", "openvino", "--calibration", "."], "only for it"),
        (
            ["--out", "a.xml", "--format", "openvino", "--precision", "int8", "--calibration", "empty"],
            "empty: expected pictures in it, got none",
        ),
        (
            ["--out", "a.xml", "--format", "openvino", "--precision", "int8", "--calibration", "none"],
            "none: expected a folder of pictures, got no folder",
        ),
    ],
)
def test_mistakes_of_the_command(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["export", "--model", str(folder / "model.safetensors"), *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("ran"),))  # type: ignore[return-value]


def test_files_that_could_run_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    program._example_inputs = None
    torch.export.save(program, "plain.pt2")
    with pytest.raises(UserError, match=r"expected a model that .* wrote .* got form none"):
        maskrcnn.load("plain.pt2")
    pickled = io.BytesIO()
    torch.save(Evil(), pickled)
    config = {"config": {"weight": {"path_name": "weight_0", "use_pickle": True}}}
    for name, content in (
        ("plain/data/sample_inputs/model.pt", pickled.getvalue()),
        ("plain/data/constants/custom_obj_0", pickled.getvalue()),
        ("plain/data/aotinductor/model/model.so", b"ELF"),
        ("plain/data/weights/model_weights_config.json", json.dumps(config).encode()),
    ):
        with zipfile.ZipFile("plain.pt2") as old, zipfile.ZipFile("evil.pt2", "w") as new:
            for member in old.namelist():
                if member.split("/", 1)[1] != name.split("/", 1)[1]:
                    new.writestr(member, old.read(member))
            new.writestr(name, content)
        with pytest.raises(UserError, match="which may run code"):
            maskrcnn.load("evil.pt2")
    assert not Path("ran").exists()
    Path("cut.pt2").write_bytes(Path("plain.pt2").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"expected a .pt2 model, got a damaged file"):
        maskrcnn.load("cut.pt2")
