"""Weights go to the originals' files and come back."""

from __future__ import annotations

import gzip
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn import presets, zoo
from maskrcnn.cli.main import main as cli
from maskrcnn.errors import UserError
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.weights.convert import AUTHOR, origin, original_names, write_as
from maskrcnn.weights.load import load_weights, read_weights
from maskrcnn.weights.write import write_weights

C4, FPN, GN = "mask_rcnn_R_50_C4_3x", "mask_rcnn_R_50_FPN_3x", "mask_rcnn_R_50_FPN_3x_gn"
CASCADE, KEYPOINT = "cascade_mask_rcnn_R_50_FPN_3x", "keypoint_rcnn_R_50_FPN_3x"
TORCHVISION, TORCHVISION_V2 = "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"
INTERN, VIT = "mask_rcnn_internimage_t_fpn_1x_coco", "mask_rcnn_deit_adapter_small_3x_coco"
MOBILENET = "mask_rcnn_mobilenet_v2_FPN"


def tiny(name: str, seed: int = 0) -> MaskRCNN:
    torch.manual_seed(seed)
    return zoo.build(name, 3, tiny=True)


def same(a: MaskRCNN, b: MaskRCNN) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return all(
        torch.allclose(ours[k], theirs[k], atol=1e-6) for k in ours if not k.endswith("num_batches_tracked")
    )


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *((name, suffix) for name in (C4, FPN, GN, CASCADE, KEYPOINT) for suffix in (".pkl", ".pth")),
        *((name, ".pth") for name in (TORCHVISION, TORCHVISION_V2, INTERN, VIT)),
        *((name, ".safetensors") for name in (FPN, MOBILENET)),
    ],
)
def test_there_and_back(tmp_path: Path, name: str, suffix: str) -> None:
    model, out = tiny(name), tmp_path / f"a{suffix}"
    write_as(out, model.config, model.state_dict())
    again = tiny(name, seed=1)
    assert not same(model, again)
    file = read_weights(out)
    names = origin(model.config)
    assert file.kind == ("maskrcnn" if suffix == ".safetensors" or names is None else names.kind)
    assert load_weights(again, file) == []
    assert same(model, again)


@pytest.mark.parametrize(
    "name", [C4, "mask_rcnn_R_50_DC5_3x", FPN, GN, CASCADE, KEYPOINT, "mask_rcnn_X_101_32x8d_FPN_3x"]
)
def test_names_and_shapes_are_detectron2s(shared: Path, name: str) -> None:
    with gzip.open(shared / "reference/detectron2/state_shapes.json.gz") as file:
        theirs: dict[str, list[int]] = json.load(file)[name]
    with torch.device("meta"):
        model = zoo.build(name)
    named = original_names(model.config, model.state_dict())
    assert {k: list(v.shape) for k, v in named.items()} == theirs


@pytest.mark.parametrize("name", [INTERN, VIT, "mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco"])
def test_names_and_shapes_are_mmdetections(shared: Path, name: str) -> None:
    with np.load(shared / f"reference/mmdetection/{name}.npz") as file:
        shapes = [json.loads(text) for text in file["state_dict_shapes"]]
        theirs = dict(zip(file["state_dict_names"].tolist(), shapes, strict=True))
    with torch.device("meta"):
        model = zoo.build(name)
    named = original_names(model.config, model.state_dict())
    assert {k: list(v.shape) for k, v in named.items()} == theirs


def test_plain_pickle_reads_the_pkl(tmp_path: Path) -> None:
    """Without this package, and by the names that numpy 1 has too."""
    model, out = tiny(FPN), tmp_path / "a.pkl"
    write_as(out, model.config, model.state_dict())
    with open(out, "rb") as file:
        content = pickle.load(file, encoding="latin1")  # as detectron2 does
    assert set(content) == {"model", "__author__"}
    assert content["__author__"] == AUTHOR
    weight = content["model"]["backbone.bottom_up.res2.0.conv1.weight"]
    np.testing.assert_array_equal(weight, model.state_dict()["backbone.body.res2.0.conv1.weight"].numpy())
    assert b"numpy._core" not in out.read_bytes()
    code = f"import pickle, numpy; print(len(pickle.load(open({str(out)!r}, 'rb'))['model']))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == str(len(content["model"])), done.stderr


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = presets.get(FPN, tiny=True)
    monkeypatch.setitem(presets.PRESETS, FPN, lambda: config)
    model = tiny(FPN)
    write_weights(tmp_path / "a.safetensors", model.state_dict(), model.config)
    for given, out in (("a.safetensors", "b.pkl"), ("b.pkl", "c.pth"), ("c.pth", "d.safetensors")):
        assert cli(["convert", str(tmp_path / given), "--model", FPN, "-o", str(tmp_path / out)]) == 0
    assert same(zoo.restore(tmp_path / "d.safetensors"), model)
    assert "3 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "suffix", "said"),
    [
        (FPN, ".onnx", "ends in .safetensors or .pkl or .pth"),
        (TORCHVISION, ".pkl", "ends in .safetensors or .pth"),
        (INTERN, ".pkl", "ends in .safetensors or .pth"),
        (MOBILENET, ".pth", "ends in .safetensors,"),
    ],
)
def test_formats_that_a_model_has_not(tmp_path: Path, name: str, suffix: str, said: str) -> None:
    model = tiny(name)
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        write_as(tmp_path / f"a{suffix}", model.config, model.state_dict())
    assert list(tmp_path.iterdir()) == []
