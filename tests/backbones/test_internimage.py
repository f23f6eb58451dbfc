"""InternImage's parts against the original's outputs and gradients; by hand where no reference holds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from maskrcnn import presets
from maskrcnn.backbones.internimage import DCNv3, Downsample, InternImage, Layer, Stem
from maskrcnn.config import InternImageConfig
from maskrcnn.models.build import build_model
from tests.references import load_module, read_npz


def tiny(
    *, post_norm: bool = False, checkpointing: bool = False, drop_path: float = 0.0
) -> InternImageConfig:
    return InternImageConfig(
        channels=16,
        depths=(1, 1, 2, 1),
        groups=(2, 4, 8, 16),
        post_norm=post_norm,
        checkpointing=checkpointing,
        drop_path=drop_path,
    )


PARTS: dict[str, Callable[[], nn.Module]] = {
    "m.dcn": lambda: DCNv3(16, 4, 1.0),
    "layer_pre_ls": lambda: Layer(16, 4, 0.0, tiny()),
    "layer_pre_nols": lambda: Layer(16, 4, 0.0, tiny()),  # without a scale: ours stays 1
    "layer_post_ls": lambda: Layer(16, 4, 0.0, tiny(post_norm=True)),
    "stem": lambda: Stem(16),
    "down": lambda: Downsample(16),
    "internimage_mini_post0": lambda: InternImage(tiny()),
    "internimage_mini_post1": lambda: InternImage(tiny(post_norm=True)),
}
PARAMETERS = {"t": 48_920_544, "s": 68_715_024, "b": 115_245_264}
ENTRIES = {"t": 727, "s": 785, "b": 785}


@pytest.fixture(scope="module")
def units(shared: Path) -> dict[str, np.ndarray]:
    return read_npz(shared / "reference" / "mmdetection" / "unit_modules_internimage.npz")


@pytest.mark.parametrize("part", PARTS)
def test_parts_are_the_original_s(shared: Path, units: dict[str, np.ndarray], part: str) -> None:
    fill = load_module(shared / "reference" / "mmdetection" / "fill.py")
    module = PARTS[part]().eval()
    shapes = {
        k.split("/sd_shape/")[1]: v.tolist() for k, v in units.items() if k.startswith(f"{part}/sd_shape/")
    }
    own = {k: list(v.shape) for k, v in module.state_dict().items() if k in shapes or "gamma" not in k}
    assert own == shapes
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name in shapes:
                value.copy_(torch.from_numpy(fill.fill_array(f"{part}.{name}", tuple(value.shape))))
    key = next(k for k in units if k.startswith(f"{part}/in/"))
    x = torch.from_numpy(units[key]).requires_grad_()
    outputs = module(x)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    total = torch.zeros(())
    for i, output in enumerate(outputs):
        np.testing.assert_allclose(output.detach(), units[f"{part}/out{i}"], rtol=0, atol=2e-5)
        total = total + (output * torch.from_numpy(units[f"{part}/gout{i}"])).sum()
    total.backward()
    assert x.grad is not None
    expected = units[key.replace("/in/", "/gin/")]
    np.testing.assert_allclose(x.grad, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    for name, parameter in module.named_parameters():
        if name in shapes:
            assert parameter.grad is not None
            norm = float(units[f"{part}/gparam_norm/{name}"])
            assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-5), name


@pytest.mark.parametrize("size", PARAMETERS)
def test_counts(size: str) -> None:
    for schedule in ("1x", "3x"):
        with torch.device("meta"):
            model = build_model(presets.get(f"mask_rcnn_internimage_{size}_fpn_{schedule}_coco").model)
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[size]
        assert len(model.state_dict()) == ENTRIES[size]


def test_drop_path_rises_from_none() -> None:
    body = InternImage(tiny(drop_path=0.4))
    rates = [m.drop_path for m in body.modules() if isinstance(m, Layer)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_a_dropped_path_leaves_its_input() -> None:
    layer = Layer(8, 2, 1.0, tiny())
    x = torch.randn(2, 4, 5, 8)
    assert torch.equal(layer.train()(x), x)
    assert not torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("post_norm", [False, True])
def test_checkpointing_changes_memory_only(post_norm: bool) -> None:
    image = torch.randn(2, 3, 64, 96)
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        body = InternImage(tiny(post_norm=post_norm, checkpointing=checkpointing, drop_path=0.5)).train()
        torch.manual_seed(1)  # the same paths are dropped, again when they are recomputed
        loss = sum(m.square().mean() for m in body(image).values())
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        results.append([loss, *(p.grad for p in body.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-6)


def test_starts_as_a_plain_mean_of_neighbours() -> None:
    """Zero offsets and equal weights: DCNv3 of a constant is a constant, away from the border."""
    dcn = next(m for m in InternImage(tiny()).modules() if isinstance(m, DCNv3))
    out = dcn(torch.ones(1, 5, 6, 16))
    expected = dcn.output_proj(dcn.input_proj(torch.ones(16)))
    torch.testing.assert_close(out[0, 1:-1, 1:-1], expected.expand(3, 4, 16))


@pytest.mark.parametrize("post_norm", [False, True])
def test_trains_in_half_precision(post_norm: bool) -> None:
    body = InternImage(tiny(post_norm=post_norm, drop_path=0.1)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sum(m.float().square().mean() for m in body(torch.randn(2, 3, 64, 96)).values())
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    for name, parameter in body.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_can_be_exported() -> None:
    body, image = InternImage(tiny()).eval(), torch.randn(1, 3, 64, 96)
    exported = torch.export.export(body, (image,)).module()
    for name, feature in body(image).items():
        torch.testing.assert_close(exported(image)[name], feature)
