"""ImageNet ResNets under caffe2's names fill the backbones that detectron2's models start from."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskrcnn import zoo
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.weights.load import load_weights, read_weights
from maskrcnn.weights.names.detectron2 import to_detectron2

FPN, C4, X101, GN = (
    "mask_rcnn_R_50_FPN_3x",
    "mask_rcnn_R_50_C4_3x",
    "mask_rcnn_X_101_32x8d_FPN_3x",
    "mask_rcnn_R_50_FPN_3x_gn",
)
BLOBS = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
PARTS = {
    "bn": {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"},
    "fused": {"weight": "s", "bias": "b"},
    "gn": {"weight": "s", "bias": "b"},
}


def tiny(name: str, seed: int = 0) -> MaskRCNN:
    torch.manual_seed(seed)
    model = zoo.build(name, 3, tiny=True)
    for key, value in model.state_dict().items():  # nothing is 0 or 1 by chance
        if "norm" in key and value.is_floating_point():
            value.uniform_(0.5, 2)
    return model


def backbone(model: MaskRCNN) -> dict[str, torch.Tensor]:
    """Weights of a model's ResNet by detectron2's names, without the prefix of a detector."""
    named = {to_detectron2(k): v for k, v in model.state_dict().items()}
    body = {k.split("bottom_up.")[-1].removeprefix("roi_heads."): v for k, v in named.items() if k}
    return {k: v for k, v in body.items() if k.startswith(("stem.", "res"))}


def blobs(model: MaskRCNN, kind: str) -> dict[str, np.ndarray]:
    """Blobs of a model's ResNet by caffe2's names. kind: bn, fused (its normalisations to an affine) or gn."""
    made = {}
    for key, value in backbone(model).items():
        *place, part = key.split(".")
        norm = place[-1] == "norm"
        place = place[:-1] if norm else place
        if place[0] == "stem":
            name = "conv1" if not norm or kind == "gn" else "res_conv1"
        else:
            name = f"{place[0]}_{place[1]}_{BLOBS[place[2]]}"
        if not norm:
            made[f"{name}_w"] = value.numpy()
        elif part in PARTS[kind]:
            made[f"{name}_{'gn' if kind == 'gn' else 'bn'}_{PARTS[kind][part]}"] = value.numpy()
    extra = {
        "conv1_b": np.zeros(8),
        "fc1000_w": np.zeros((9, 9)),
        "fc1000_b": np.zeros(9),
        "fc1000_w_momentum": np.zeros(9),
    }
    return made | extra


def written(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content, 2))
    return path


def same_backbone(a: MaskRCNN, b: MaskRCNN) -> bool:
    ours, theirs = backbone(a), backbone(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(("name", "kind"), [(FPN, "bn"), (C4, "bn"), (X101, "bn"), (GN, "gn")])
def test_blobs_fill_the_backbone(tmp_path: Path, name: str, kind: str, wrapped: bool) -> None:
    model, other = tiny(name), tiny(name, seed=1)
    content: dict = blobs(model, kind)
    path = written(tmp_path / "R-50.pkl", {"blobs": content} if wrapped else content)
    assert read_weights(path).kind == "backbone"
    assert not same_backbone(model, other)
    notes = load_weights(other, path)
    assert same_backbone(model, other)
    assert "start at random" in notes[0]
    assert "fc1000_w" in notes[1]
    assert "momentum" not in notes[1]


def test_an_affine_stands_for_a_normalisation(tmp_path: Path) -> None:
    """y = x * s + b, exactly as detectron2's frozen norm of mean 0 and variance 1 less its epsilon."""
    model, other = tiny(FPN), tiny(FPN, seed=1)
    load_weights(other, written(tmp_path / "X-101-32x8d.pkl", blobs(model, "fused")))
    norm = other.backbone.get_submodule("body.res2.0.conv1.norm")
    x = torch.randn(2, len(norm.get_buffer("weight")), 3, 3)
    want = backbone(model)
    scale, shift = (want[f"res2.0.conv1.norm.{part}"][:, None, None] for part in ("weight", "bias"))
    torch.testing.assert_close(norm(x), x * scale + shift, rtol=1e-6, atol=1e-6)
    assert torch.equal(norm.get_buffer("running_mean"), torch.zeros_like(scale.flatten()))


@pytest.mark.parametrize("name", [FPN, C4])
def test_a_converted_torchvision_resnet(tmp_path: Path, name: str) -> None:
    model, other = tiny(name), tiny(name, seed=1)
    content = {k: v.numpy() for k, v in backbone(model).items()}
    content |= {"stem.fc.weight": np.zeros((9, 9)), "stem.fc.bias": np.zeros(9)}
    file = {"model": content, "__author__": "torchvision", "matching_heuristics": True}
    notes = load_weights(other, written(tmp_path / "R-50.pkl", file))
    assert same_backbone(model, other)
    assert "stem.fc.weight" in notes[1]


def test_the_stem_is_relu_of_the_affine(tmp_path: Path) -> None:
    """The whole stem against its formula: the blobs' names are not mixed up."""
    model = tiny(FPN)
    path = written(tmp_path / "a.pkl", blobs(model, "bn"))
    other = tiny(FPN, seed=1)
    load_weights(other, path)
    blob = {k: torch.from_numpy(v) for k, v in blobs(model, "bn").items()}
    x = torch.randn(1, 3, 32, 32)
    y = F.conv2d(x, blob["conv1_w"], stride=2, padding=3)
    stats = (blob["res_conv1_bn_running_mean"], blob["res_conv1_bn_running_var"])
    y = F.batch_norm(y, *stats, blob["res_conv1_bn_gamma"], blob["res_conv1_bn_beta"])
    want = F.max_pool2d(F.relu(y), 3, 2, 1)
    torch.testing.assert_close(other.backbone.get_submodule("body.stem")(x), want, rtol=1e-5, atol=1e-5)
