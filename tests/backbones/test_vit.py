"""ViT and ViT-Adapter: each part's output and gradients against the originals', and what holds without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskrcnn import presets
from maskrcnn.backbones.fpn import FPN
from maskrcnn.backbones.level_convs import LevelConvs
from maskrcnn.backbones.vit import Attention, Block, ViT, from_windows, resize_embedding, to_windows
from maskrcnn.backbones.vit_adapter import Extractor, Injector, SpatialPrior, ViTAdapter
from maskrcnn.config import AdapterConfig, FPNConfig, ViTConfig
from maskrcnn.errors import UserError
from maskrcnn.models.build import build_model
from maskrcnn.weights.names.uni_perceiver import to_uni_perceiver
from tests.references import load_module, read_npz

PATCHES = (4, 6)  # of the units' 64x96 image
PLACES = (5, 9)  # of the units' blocks
FPN_NAMES = {"lateral.": "lateral_convs.", "output.": "fpn_convs."}


def adapter(deform_ratio: float = 1.0) -> AdapterConfig:
    return AdapterConfig(
        conv_channels=8, deform_ratio=deform_ratio, interactions=((0, 0), (1, 1), (2, 2), (3, 3))
    )


def mini(dim: int = 24, num_heads: int = 3, **changes: Any) -> ViTConfig:
    return ViTConfig(dim=dim, depth=4, num_heads=num_heads, window_size=3, global_blocks=(1, 3), **changes)


def block(window: int | None, uni_perceiver: bool = False) -> nn.Module:
    eps = 1e-5 if uni_perceiver else 1e-6
    return Block(Attention(24, 3, window, uni_perceiver), 24, 96, drop_path=0.0, eps=eps)


# name -> module, what its forward takes besides the inputs, and how its parameters are called in the original.
UNITS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], dict[str, str]]] = {
    "injector_r1.0": (lambda: Injector(24, adapter(), eps=1e-6), (PATCHES,), {}),
    "injector_r0.5": (lambda: Injector(24, adapter(0.5), eps=1e-6), (PATCHES,), {}),
    "extractor_r1.0": (lambda: Extractor(24, adapter(), drop_path=0.0, eps=1e-6), (PATCHES,), {}),
    "extractor_r0.5": (lambda: Extractor(24, adapter(0.5), drop_path=0.0, eps=1e-6), (PATCHES,), {}),
    "spm": (lambda: SpatialPrior(24, 8), (), {}),
    "vitblock_win1_ls1": (lambda: block(4), (PLACES,), {}),
    "vitblock_win0_ls1": (lambda: block(None), (PLACES,), {}),
    "vitblock_win1_ls0": (lambda: block(4), (PLACES,), {}),
    "vitblock_win0_ls0": (lambda: block(None), (PLACES,), {}),
    "bertlayer_win1": (lambda: block(4, True), (PLACES,), {}),
    "bertlayer_win0": (lambda: block(None, True), (PLACES,), {}),
    "backbone.vitadapter_mini": (lambda: ViTAdapter(mini(adapter=adapter())), (), {}),
    "backbone.uniperceiver_mini": (
        lambda: ViTAdapter(mini(adapter=adapter(), uni_perceiver=True)),
        (),
        {},
    ),
    "backbone.vitbaseline_mini": (lambda: ViT(mini(32, 4)), (), {}),
    "neck_fpn": (lambda: FPN([6, 8, 10, 12], FPNConfig(out_channels=16)), (), FPN_NAMES),
    "neck_mapper": (
        lambda: LevelConvs([6, 8, 10, 12], FPNConfig(out_channels=16, top_down=False)),
        (),
        {"lateral.": "convs."},
    ),
}


@pytest.fixture(scope="module")
def reference(shared: Path) -> dict[str, np.ndarray]:
    return read_npz(shared / "reference" / "mmdetection" / "unit_modules_vitadapter.npz")


def original_name(unit: str, name: str, renamed: dict[str, str]) -> str:
    if unit.startswith(("bertlayer", "backbone.uniperceiver")):
        alone = unit.startswith("bertlayer")  # a block without the trunk around it
        theirs = to_uni_perceiver(f"blocks.0.{name}" if alone else name)
        return theirs.removeprefix("layers.0.") if alone else theirs
    for ours, theirs in renamed.items():
        if name.startswith(ours):
            index, last = name.removeprefix(ours).split(".")
            return f"{theirs}{index}.conv.{last}"
    return name


def outputs(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return list(result.values() if isinstance(result, dict) else result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("unit", UNITS)
def test_outputs_and_gradients_are_the_originals(
    shared: Path, reference: dict[str, np.ndarray], unit: str, dtype: torch.dtype
) -> None:
    build, extra, renamed = UNITS[unit]
    module = build().eval()
    fill = load_module(shared / "reference" / "mmdetection" / "fill.py")
    shapes = {
        k.removeprefix(p): v.tolist() for k, v in reference.items() if k.startswith(p := f"{unit}/sd_shape/")
    }
    state = {original_name(unit, k, renamed): v for k, v in module.state_dict().items()}
    absent = {"gamma1", "gamma2"} if unit.endswith("ls0") else set()  # without a scale: where it is 1
    assert {k: list(v.shape) for k, v in state.items() if k not in absent} == shapes
    with torch.no_grad():
        for name, value in state.items():
            array = fill.fill_array(f"{unit}.{name}", value.shape) if name not in absent else None
            if array is not None:
                value.copy_(torch.from_numpy(array))
    module.to(dtype)

    def tensor(key: str) -> Tensor:
        return torch.from_numpy(reference[f"{unit}/{key}"]).to(dtype)

    def difference(actual: Tensor, key: str) -> float:
        expected = tensor(key)
        return float((actual.detach() - expected).abs().max() / expected.abs().max())

    names = [k.split("/")[-1] for k in reference if k.startswith(f"{unit}/in/")]
    inputs = {name: tensor(f"in/{name}").requires_grad_() for name in names}
    arguments = [list(inputs.values())] if unit.startswith("neck") else list(inputs.values())
    results = outputs(module(*arguments, *extra))
    # The reference is in float32: this is its rounding, as a share of the largest value.
    for i, result in enumerate(results):
        assert difference(result, f"out{i}") <= 5e-6
    torch.autograd.backward(results, [tensor(f"gout{i}") for i in range(len(results))])
    for name, value in inputs.items():
        assert value.grad is not None
        assert difference(value.grad, f"gin/{name}") <= 2e-5
    norms = {
        k.removeprefix(p): float(v) for k, v in reference.items() if k.startswith(p := f"{unit}/gparam_norm/")
    }
    largest = max(norms.values())
    for name, parameter in module.named_parameters():
        name = original_name(unit, name, renamed)
        if name not in absent:
            gradient = torch.zeros(()) if parameter.grad is None else parameter.grad
            assert float(gradient.norm()) == pytest.approx(norms.pop(name), rel=2e-5, abs=1e-6 * largest), (
                name
            )
    assert not norms


# From the originals' own count.
PARAMETERS = {
    "mask_rcnn_deit_adapter_tiny_fpn_3x_coco": 28_068_512,
    "mask_rcnn_deit_tiny_fpn_3x_coco": 26_075_184,
    "mask_rcnn_deit_adapter_small_fpn_3x_coco": 47_802_368,
    "mask_rcnn_deit_small_fpn_3x_coco": 43_746_672,
    "mask_rcnn_deit_adapter_small_3x_coco": 45_442_048,
    "mask_rcnn_deit_adapter_base_fpn_3x_coco": 120_187_088,
    "mask_rcnn_deit_base_fpn_3x_coco": 113_594_352,
    "mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco": 120_194_000,
    "mask_rcnn_augreg_adapter_large_fpn_3x_coco": 347_927_472,
    "mask_rcnn_augreg_large_fpn_3x_coco": 337_286_896,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = build_model(presets.get(name).model)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("size", [(3, 4), (4, 4), (8, 12), (5, 9)])
def test_windows_there_and_back(size: tuple[int, int]) -> None:
    x = torch.randn(2, size[0] * size[1], 6)
    filling = torch.arange(6.0)
    windows = to_windows(x, size, 4, filling)
    assert windows.shape[1:] == (16, 6)
    torch.testing.assert_close(from_windows(windows, size, 4), x, rtol=0, atol=0)
    filled = (windows == filling).all(-1).sum()
    assert filled == windows.shape[0] * 16 - 2 * size[0] * size[1]


def test_an_embedding_of_the_right_size_is_itself() -> None:
    embedding = torch.randn(1, 16, 8)
    assert resize_embedding(embedding, (4, 4)) is embedding
    assert resize_embedding(embedding, (3, 7)).shape == (1, 21, 8)


@pytest.mark.parametrize("build", [ViT, ViTAdapter])
def test_checkpointing_changes_nothing(build: type[ViT] | type[ViTAdapter]) -> None:
    torch.manual_seed(0)
    body = build(
        mini(32, 4, adapter=AdapterConfig(num_heads=4, interactions=((0, 0), (1, 3))), drop_path=0.5)
    )
    pixels = torch.randn(2, 3, 64, 96)
    found = []
    for recompute in (False, True):
        body.config.checkpointing = recompute
        body.zero_grad()
        torch.manual_seed(1)
        loss = torch.stack([output.square().mean() for output in body(pixels).values()]).sum()
        loss.backward()
        found.append([loss.detach()] + [p.grad.clone() for p in body.parameters() if p.grad is not None])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


def test_autocast_and_half_precision_stay_near() -> None:
    torch.manual_seed(0)
    body = ViTAdapter(mini(adapter=adapter())).eval()
    with torch.no_grad():
        for name, parameter in body.named_parameters():
            if name.endswith("injector.gamma"):
                parameter.fill_(0.5)
        pixels = torch.randn(1, 3, 64, 96)
        expected = body(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            cast = body(pixels)
        half = body.to(torch.bfloat16)(pixels.bfloat16())
    for name, value in expected.items():
        assert half[name].dtype == torch.bfloat16
        for other in (cast[name], half[name]):
            assert (other.float() - value).std() < 0.02 * value.std()


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"num_heads": 5}, "dim"),
        ({"depth": 3}, "depth"),
        ({"dim": 48}, "dim"),
        ({"adapter": AdapterConfig(num_heads=7)}, "adapter.deform_ratio"),
        ({"adapter": AdapterConfig(interactions=((0, 5), (5, 11)))}, "adapter.interactions"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], setting: str) -> None:
    config = ViTConfig(**changes)
    with pytest.raises(UserError, match=f"^model.backbone.{setting}: expected .*, got .*$"):
        (ViT if config.adapter is None else ViTAdapter)(config)


@pytest.mark.parametrize("uni_perceiver", [False, True])
def test_it_is_exported_and_exported_it_says_the_same(uni_perceiver: bool) -> None:
    torch.manual_seed(0)
    body = ViTAdapter(mini(adapter=adapter(), uni_perceiver=uni_perceiver)).eval()
    pixels = torch.randn(1, 3, 64, 96)
    exported = torch.export.export(body, (pixels,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(pixels), body(pixels), rtol=0, atol=1e-6)
