"""An exported model predicts the same without PyTorch as with it, and says what is wrong in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import maskrcnn
from maskrcnn import presets
from maskrcnn.cli.main import main as maskrcnn_main
from maskrcnn.config import MaskHeadConfig, to_dict
from maskrcnn.engines.exported import ExportedPredictor
from maskrcnn.errors import UserError
from maskrcnn.masks.rle import rle_decode
from maskrcnn.runtime import ExportedModel
from maskrcnn.runtime.__main__ import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of packages with numpy, Pillow, ONNX Runtime and this package; no PyTorch."""
    folder = tmp_path_factory.mktemp("packages")
    for name in ("numpy", "PIL", "onnxruntime", "maskrcnn"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        (folder / name).symlink_to(package)
        for libraries in package.parent.glob(f"{ {'PIL': 'pillow'}.get(name, name) }.libs"):
            (folder / libraries.name).symlink_to(libraries)
    return folder


def without_torch(bare: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(bare)}
    command = (sys.executable, "-S", *map(str, command))  # -S: without this environment's packages
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_it_runs_without_torch_and_writes_what_predict_writes(
    bare: Path, small_onnx: Path, photo: Path, tmp_path: Path
) -> None:
    done = without_torch(bare, "-c", "import maskrcnn, torch")
    assert "No module named 'torch'" in done.stderr
    (tmp_path / "in").mkdir()
    Image.open(photo).save(tmp_path / "in/other.jpg")
    (tmp_path / "in/broken.png").write_bytes(b"no picture")
    images = [str(photo), str(tmp_path / "in")]
    done = without_torch(bare, "-m", "maskrcnn.runtime", small_onnx, *images, "--out", tmp_path / "bare")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "skipped: " in done.stderr
    assert "broken.png: cannot read the image" in done.stderr

    command = ["predict", *images, "--model", str(small_onnx), "--out", str(tmp_path / "full")]
    assert maskrcnn_main(command) == 1
    ours, theirs = (json.loads((tmp_path / f / "predictions.json").read_text()) for f in ("bare", "full"))
    key = lambda e: (e["image_id"], -e["score"])  # noqa: E731
    ours, theirs = sorted(ours, key=key), sorted(theirs, key=key)
    assert len(ours) > 20
    for a, b in zip(ours, theirs, strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        np.testing.assert_allclose(a["bbox"], b["bbox"], atol=1e-3)
        assert abs(a["score"] - b["score"]) < 1e-5
        assert (rle_decode(a["segmentation"]) != rle_decode(b["segmentation"])).sum() <= 1
    assert {e["category_id"] for e in ours} <= {3, 7, 20}
    for name in ("photo.jpg", "other.jpg"):
        drawn = [np.asarray(Image.open(tmp_path / f / name)).astype(int) for f in ("bare", "full")]
        assert drawn[0].shape == drawn[1].shape
        assert np.abs(drawn[0] - drawn[1]).mean() < 0.5


def test_arrays_and_thresholds(small_onnx: Path, photo: Path) -> None:
    model = ExportedModel(small_onnx, num_threads=1)
    found, expected = model.predict(photo), maskrcnn.load(small_onnx).predict(photo)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert expected.masks is not None
    assert (found.masks() != expected.masks.numpy()).sum() <= len(found)
    assert found.masks().shape == (len(found), 70, 90)
    few = model.predict(np.asarray(Image.open(photo)), score_threshold=0.8)
    assert 0 < len(few) < len(found)
    assert len(few) == (found.scores > 0.8).sum()
    assert len(model.predict(photo, score_threshold=1.0)) == 0
    assert model.predict(photo, score_threshold=1.0).to_coco() == []
    small = model.predict(photo, min_size=40, max_size=80)
    assert small.image_size == (70, 90)
    assert 0 < small.boxes.max() <= 90
    with pytest.raises(UserError, match="takes pictures of up to 128 x 160 pixels, got 128 x 192"):
        model.predict(photo, min_size=128, max_size=192)
    with pytest.raises(UserError, match="takes 1 pictures at a time, got 2"):
        model.padded([np.zeros((64, 64, 3))] * 2)


def test_an_openvino_file_gives_the_same(small_onnx: Path, photo: Path, tmp_path: Path) -> None:
    openvino, onnx = pytest.importorskip("openvino"), pytest.importorskip("onnx")
    facts = {p.key: p.value for p in onnx.load(small_onnx).metadata_props}
    converted = openvino.convert_model(small_onnx)
    for name, config in (("none", None), ("a", facts["config"]), ("cut", "{"), ("other", '{"input": {}}')):
        if config is not None:
            converted.set_rt_info(facts | {"config": config}, "maskrcnn")
        openvino.save_model(converted, tmp_path / f"{name}.xml", compress_to_fp16=False)
    found = ExportedModel(tmp_path / "a.xml", num_threads=1).predict(photo)
    expected = ExportedModel(small_onnx).predict(photo)
    loaded = maskrcnn.load(tmp_path / "a.xml")
    assert loaded.engine == "openvino"
    np.testing.assert_array_equal(loaded.predict(photo).boxes, found.boxes)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
    for name, said in (
        ("none", "got form none"),
        ("cut", "as JSON in its metadata"),
        ("other", "got none for category_ids"),
    ):
        with pytest.raises(UserError, match=said):
            ExportedModel(tmp_path / f"{name}.xml")
    (tmp_path / "c.xml").write_text("<net>")
    with pytest.raises(UserError, match="expected an OpenVINO model, got a damaged file"):
        ExportedModel(tmp_path / "c.xml")


def test_mistakes_are_one_line(
    small_onnx: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, empty, out = tmp_path / "cut.onnx", tmp_path / "empty", tmp_path / "out"
    cut.write_bytes(small_onnx.read_bytes()[:1000])
    empty.mkdir()
    model, picture = str(small_onnx), str(photo)
    for command, said in (
        (["a.pt", picture], "expected an exported model, a file ending in .onnx or .xml"),
        (["a.onnx", picture], "a.onnx: no such model file"),
        ([str(cut), picture], "expected an ONNX model, got a damaged file"),
        ([model, "nowhere.jpg"], "nowhere.jpg: no such file or folder"),
        ([model, str(empty)], "a folder without any"),
        ([model, picture, "--score-threshold", "2"], "--score-threshold: expected a number from 0 to 1"),
        ([model, picture, "--min-size", "0"], "--min-size: expected a whole number from 1"),
        ([model], "the following arguments are required: IMAGES"),
    ):
        assert main([*command, "--out", str(out)]) == 2, command
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not list(out.glob("*"))
    same = photo.with_suffix(".jpg")
    Image.open(photo).save(same)
    assert main([model, str(same), "--out", str(same.parent)]) == 2
    assert "would replace it" in capsys.readouterr().err
    assert main([model, picture, str(same), "--out", str(out)]) == 2
    assert "expected file names that differ" in capsys.readouterr().err


def test_a_runtime_that_is_missing_is_named(bare: Path, small_onnx: Path) -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from maskrcnn.runtime.__main__ import main\n"
        f"sys.exit(main([{str(small_onnx)!r}, '.', '--out', 'out']))"
    )
    done = without_torch(bare, "-c", code.replace("'.'", repr(str(small_onnx))))
    assert done.returncode == 2
    assert "Run: pip install onnxruntime" in done.stderr


def test_key_points_and_masks_at_whole_pixels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outputs of a model with both, by hand: the picture is twice as large as the network's."""
    config = presets.get("keypoint_rcnn_R_50_FPN_3x", tiny=True).model
    config.input.min_size, config.input.max_size, config.input.resize = 32, 32, "opencv"
    config.mask_head, config.rules.paste = MaskHeadConfig(), "torchvision"
    config.class_names, config.category_ids = ("person",), (1,)
    assert config.keypoint_head is not None

    class Fake:
        engine = "onnx"
        facts = json.loads(json.dumps({"config": to_dict(config), "fixed": {}}))

        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            assert inputs["images"].shape == (1, 3, 32, 32)
            assert inputs["image_sizes"].tolist() == [[32, 32]]
            return {
                "boxes": np.array([[[4, 6, 12, 20], [40, 1, 50, 9], [0, 0, 0, 0]]], np.float32),
                "scores": np.array([[0.9, 0.8, 0]], np.float32),
                "labels": np.zeros((1, 3), np.int64),
                "masks": np.ones((1, 3, 28, 28), np.float32),
                "keypoints": np.tile(np.array([8, 10, 0.7], np.float32), (1, 3, 17, 1)),
                "counts": np.array([2]),
            }

    monkeypatch.setattr("maskrcnn.runtime.model.open_session", lambda *_: Fake())
    found = ExportedModel("a.onnx").predict(np.zeros((64, 64, 3), np.uint8))
    assert found.boxes.tolist() == [[8, 12, 24, 40]]  # the second one is outside of the picture
    assert found.keypoints is not None
    assert found.keypoints[0, 0].tolist() == pytest.approx([16, 20, 0.7])
    (entry,) = found.to_coco("a")
    assert entry["category_id"] == 1
    assert entry["keypoints"][:3] == pytest.approx([15.5, 19.5, 0.7])  # COCO counts from a pixel's centre
    assert found.masks()[0, 12:40, 8:24].all()
    with_torch = ExportedPredictor("a.onnx").predict(np.zeros((64, 64, 3), np.uint8))
    assert with_torch.to_coco("a", (1,)) == found.to_coco("a")
    assert with_torch.skeleton == config.keypoint_head.skeleton
    assert found.draw(tmp_path / "a.png").shape == with_torch.draw().shape
    np.testing.assert_array_equal(found.draw(), with_torch.draw())
