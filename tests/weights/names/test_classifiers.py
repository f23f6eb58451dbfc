"""Swin and ConvNeXt classifiers of torchvision and timm: their files give our bodies the features of their networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from maskrcnn import presets, zoo
from maskrcnn.backbones import family_of
from maskrcnn.errors import UserError
from maskrcnn.weights.load import load_weights, read_weights
from maskrcnn.weights.names.pretrained import PRETRAINED, may_be_missing
from maskrcnn.weights.names.protocol import BODY

SWIN = "mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco"
CONVNEXT = "mask_rcnn_convnext_tiny_1k_3x"
SWIN_CASCADE = "cascade_mask_rcnn_swin_{}_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco"
CONVNEXT_CASCADE = "cascade_mask_rcnn_convnext_{}_3x"
# Whole windows at every stage, for timm fills a map up after the shift, and detectors before it; and two a side in the
# last stage, for classifiers do not shift a single one.
SIZE = (448, 448)

# A preset of each size, with its classifiers' names in torchvision and in timm; torchvision has no XL.
SIZES = [
    (SWIN, "swin_t", "swin_tiny_patch4_window7_224"),
    (SWIN_CASCADE.format("small"), "swin_s", "swin_small_patch4_window7_224"),
    (SWIN_CASCADE.format("base"), "swin_b", "swin_base_patch4_window7_224"),
    (CONVNEXT, "convnext_tiny", "convnext_tiny"),
    (CONVNEXT_CASCADE.format("small_1k"), "convnext_small", "convnext_small"),
    (CONVNEXT_CASCADE.format("base_22k"), "convnext_base", "convnext_base"),
    (CONVNEXT_CASCADE.format("large_22k"), "convnext_large", "convnext_large"),
    (CONVNEXT_CASCADE.format("xlarge_22k"), None, "convnext_xlarge"),
]


def noisy(network: nn.Module) -> nn.Module:
    """Add to every weight of a network, so that no two are alike, for inference."""
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.03 * torch.randn_like(value))
    return network.eval()


def torchvisions(name: str) -> nn.Module:
    return torchvision.models.get_model(name, weights=None)


def timms(name: str) -> nn.Module:
    if "swin" in name:  # takes pictures of one size
        return timm.create_model(name, img_size=SIZE)
    return timm.create_model(name)


def body_of(preset: str) -> nn.Module:
    config = presets.get(preset).model.backbone
    return family_of(config).build(config, 3)


def torchvisions_maps(network: nn.Module, pixels: Tensor) -> list[Tensor]:
    """Maps of the four stages, (B, C, H, W) each."""
    maps, x = [], pixels
    for k, part in enumerate(network.get_submodule("features").children()):
        x = part(x)
        if k % 2:
            maps.append(x.permute(0, 3, 1, 2) if "Swin" in type(network).__name__ else x)
    return maps


def timms_maps(network: nn.Module, pixels: Tensor) -> list[Tensor]:
    """Maps of the four stages, (B, C, H, W) each."""
    return network.forward_intermediates(pixels, intermediates_only=True)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("preset", "network", "maps"),
    [
        (SWIN, lambda: torchvisions("swin_t"), torchvisions_maps),
        (CONVNEXT, lambda: torchvisions("convnext_tiny"), torchvisions_maps),
        (SWIN, lambda: timms("swin_tiny_patch4_window7_224"), timms_maps),
        (CONVNEXT, lambda: timms("convnext_tiny"), timms_maps),
    ],
    ids=["torchvision-swin", "torchvision-convnext", "timm-swin", "timm-convnext"],
)
def test_every_stage_gives_the_features_of_their_network(
    tmp_path: Path,
    preset: str,
    network: Callable[[], nn.Module],
    maps: Callable[[nn.Module, Tensor], list[Tensor]],
) -> None:
    torch.manual_seed(0)
    theirs = noisy(network())
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    file = read_weights(tmp_path / "a.pth")
    ours = body_of(preset).eval()
    lacking = ours.load_state_dict({k.removeprefix(BODY): v for k, v in file.state.items()}, strict=False)
    assert not lacking.unexpected_keys
    # Only the norms that a pyramid's maps go through, which scale nothing yet.
    assert lacking.missing_keys == [f"norm{i}.{part}" for i in range(4) for part in ("weight", "bias")]
    pixels = torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        want, got = maps(theirs, pixels), ours(pixels)
    for i, x in enumerate(want):
        x = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), eps=1e-5 if "swin" in preset else 1e-6)
        torch.testing.assert_close(got[f"stage{i}"], x.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("preset", "in_torchvision", "in_timm"), SIZES)
def test_every_size_fits(preset: str, in_torchvision: str | None, in_timm: str) -> None:
    with torch.device("meta"):
        ours = {f"{BODY}{k}": v.shape for k, v in body_of(preset).state_dict().items()}
        theirs = [timms(in_timm)] + ([torchvisions(in_torchvision)] if in_torchvision else [])
    needed = {k: v for k, v in ours.items() if not may_be_missing(k)}
    for network in theirs:
        renamed = PRETRAINED.to_ours(network.state_dict())
        assert {k: v.shape for k, v in renamed.state.items()} == needed
        assert all(name.startswith(("head.", "norm.", "classifier.")) for name in renamed.dropped)


@pytest.mark.parametrize(
    ("preset", "stem", "networks"),
    [
        (SWIN, "patch_embed.proj", ("swin_t", "swin_tiny_patch4_window7_224")),
        (CONVNEXT, "downsample_layers.0.0", ("convnext_tiny", "convnext_tiny")),
    ],
)
def test_a_detector_starts_from_a_classifier(
    tmp_path: Path, preset: str, stem: str, networks: tuple[str, str]
) -> None:
    model = zoo.build(preset, 3)
    states = {
        tmp_path / "a.pth": torchvisions(networks[0]).state_dict(),
        tmp_path / "a.safetensors": timms(networks[1]).state_dict(),
    }
    for path, state in states.items():
        if path.suffix == ".pth":
            torch.save(state, path)
        else:
            save_file(state, path)
        notes = " ".join(load_weights(model, path))
        assert "8 not in it (backbone.body.norm0." in notes
        assert "not used" in notes
        assert torch.equal(model.get_parameter(f"{BODY}{stem}.weight"), next(iter(state.values())))


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("swin_v2_t", "expected weights of a known model"),  # other attention
        ("convnext_small", "unexpected"),  # other depths
    ],
)
def test_another_network_is_refused(tmp_path: Path, network: str, said: str) -> None:
    torch.save(torchvisions(network).state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=said):
        load_weights(zoo.build(CONVNEXT, 3), tmp_path / "a.pth")
