"""Pretrained backbones of InternImage, ViT, Swin and ConvNeXt under their publishers' names, and ours.

| published by | names |
|---|---|
| InternImage, its classifiers | ours, after `backbone.`, `module.` or `model.`; `layer_scale1` for `gamma1` |
| DeiT, timm's ViTs | ours |
| Swin, ConvNeXt, their classifiers | ours; those of timm and torchvision in `classifiers` |
| DINOv2 | ours, but `ls1.gamma` for `gamma1`; patches of 14 pixels |
| AugReg | those of JAX, in an `.npz`; kernels are transposed, queries, keys and values apart |
| Uni-Perceiver | `fused_encoder.layers.0.self_attn.in_proj_weight`, `fused_encoder.video_embed...` |

Classifiers, class tokens and last norms have no place in a detector. What classifiers lack (an adapter, the layers
between a plain ViT and the pyramid, channel scales) stays as it was made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.weights.names.classifiers import authors_names, with_authors_shapes
from maskrcnn.weights.names.mmdetection import is_mmdetection
from maskrcnn.weights.names.protocol import BODY, Names, Renamed
from maskrcnn.weights.names.uni_perceiver import from_uni_perceiver

_WRAPPERS = re.compile(r"^(?:(?:backbone|module|model|fused_encoder)\.)+")
_TRUNK = {
    "internimage": ("patch_embed.", "levels."),
    "vit": ("patch_embed.", "pos_embed", "blocks."),
    "swin": ("patch_embed.", "layers."),
    "convnext": ("downsample_layers.", "stages."),
    "uni_perceiver": ("visual_embed.", "blocks."),
}
_MADE_HERE = re.compile(
    rf"{re.escape(BODY)}(?:spm|interactions|level_embed|up\d?|norm\d)\b|\.gamma[12]$|\.rel_pos_[hw]$",
)
_UNI_PERCEIVER = (
    ("in_proj_", "in_proj."),
    ("video_embed.", "visual_embed."),
    ("visual_embed.embeddings.", "visual_embed.patch_embed.proj."),
    ("visual_embed.embeddings_st_pos.", "visual_embed.patch_embed."),
)
_COMPUTED = (".attn_mask",)  # Swin's, for pictures of one size
_SCALES = ((".layer_scale", ".gamma"), (".ls1.gamma", ".gamma1"), (".ls2.gamma", ".gamma2"))


def from_pretrained(state: Mapping[str, Tensor]) -> Renamed:
    """Convert a pretrained backbone: its weights under our names."""
    if _is_jax(state):
        return _split(state, _from_jax(state), "vit")
    bare = _bare(state)
    kind = _kind(bare.values())
    assert kind is not None
    replaced = _UNI_PERCEIVER if kind == "uni_perceiver" else _SCALES
    for old, new in replaced:
        bare = {name: ours.replace(old, new) for name, ours in bare.items()}
    if kind == "uni_perceiver":
        bare = {name: from_uni_perceiver(ours) for name, ours in bare.items()}
    ours = with_authors_shapes({ours: state[name] for name, ours in bare.items()})
    return _split(state, ours, kind, bare)


def _matches(names: Collection[str]) -> bool:
    return _is_jax(names) or (_kind(_bare(names).values()) is not None and not is_mmdetection(names))


def _bare(names: Iterable[str]) -> dict[str, str]:
    """Map each name to the one without wrappers, of the original where timm or torchvision named it."""
    bare = {name: _WRAPPERS.sub("", name) for name in names}
    authors = authors_names(bare.values())
    return {name: authors[plain] for name, plain in bare.items()}


def _is_jax(names: Iterable[str]) -> bool:
    return any("Transformer/encoderblock_0/" in name for name in names)


def may_be_missing(name: str) -> bool:
    """Return True for a weight of ours that pretrained backbones do not have."""
    return bool(_MADE_HERE.search(name))


def fit(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Resize, in place, the weights whose shapes depend on the size of images and patches. Returns a sentence for
    each.
    """
    said = []
    for name, value in state.items():
        there = wanted.get(name)
        if there is None or there.shape == value.shape:
            continue
        if name.endswith(("pos_embed", "spatial_pos_embed.weight")):
            state[name] = resize_places(value, there)
            said.append(
                f"the position embedding was resized from {_places(value)} places to {_places(there)}"
            )
        elif name.endswith("patch_embed.proj.weight") and value.shape[:2] == there.shape[:2]:
            size = (there.shape[2], there.shape[3])
            state[name] = F.interpolate(value.float(), size, mode="bicubic", antialias=False)
            said.append(f"the embedding of patches was resized from {value.shape[3]} pixels to {size[1]}")
    return said


def resize_places(value: Tensor, like: Tensor) -> Tensor:
    """Resize a position embedding (1, n + g * g, C), or (g * g, C), to as many places as `like` has.

    The n extra places of `value`, for a class token and others, become the one of `like`, if it has one.
    """
    if value.shape[-1] != like.shape[-1] or value.ndim != like.ndim:
        return value  # of another width: refused as such
    extra, grid = _grid(value.shape[-2])
    like_extra, new_grid = _grid(like.shape[-2])
    table = value.reshape(-1, value.shape[-1])
    places = table[extra:].t().reshape(1, -1, grid, grid).float()
    places = F.interpolate(places, (new_grid, new_grid), mode="bicubic", align_corners=False)
    rows = places[0].flatten(1).t().to(value.dtype)
    return torch.cat([table[:like_extra], rows]).reshape(like.shape)


def _kind(names: Iterable[str]) -> str | None:
    names = set(names)
    if "levels.0.blocks.0.dcn.offset.weight" in names:
        return "internimage"
    if "blocks.0.attn.qkv.weight" in names:
        return "vit"
    if "layers.0.blocks.0.attn.relative_position_bias_table" in names:
        return "swin"
    if "stages.0.0.dwconv.weight" in names:
        return "convnext"
    if any(name.startswith("layers.0.self_attn.in_proj") for name in names):
        return "uni_perceiver"
    return None


def _split(
    state: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    kind: str,
    bare: Mapping[str, str] | None = None,
) -> Renamed:
    trunk = _TRUNK[kind]
    body = {
        BODY + name: value
        for name, value in ours.items()
        if name.startswith(trunk) and not name.endswith(_COMPUTED)
    }
    if bare is not None:
        other = (name for name, new in bare.items() if BODY + new not in body)
    else:
        other = (name for name in state if not re.search(r"embedding/|encoderblock_|pos_embedding", name))
    return Renamed(state=body, dropped=tuple(other))


def _from_jax(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a Vision Transformer of the JAX release, whose kernels are (in, out), those of attention split by
    heads.
    """
    state = {name.removeprefix("opt/target/"): value for name, value in state.items()}
    ours = {
        "patch_embed.proj.weight": state["embedding/kernel"].permute(3, 2, 0, 1),
        "patch_embed.proj.bias": state["embedding/bias"],
        "pos_embed": state["Transformer/posembed_input/pos_embedding"],
    }
    depth = 1 + max(int(found[1]) for name in state if (found := re.search(r"encoderblock_(\d+)/", name)))
    for i in range(depth):
        theirs, block = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        for k, norm in enumerate(("LayerNorm_0/", "LayerNorm_2/"), start=1):
            ours[f"{block}norm{k}.weight"] = state[f"{theirs}{norm}scale"]
            ours[f"{block}norm{k}.bias"] = state[f"{theirs}{norm}bias"]
            dense = f"{theirs}MlpBlock_3/Dense_{k - 1}/"
            ours[f"{block}mlp.fc{k}.weight"] = state[f"{dense}kernel"].t()
            ours[f"{block}mlp.fc{k}.bias"] = state[f"{dense}bias"]
        parts = ("query", "key", "value")
        ours[f"{block}attn.qkv.weight"] = torch.cat(
            [state[f"{attention}{part}/kernel"].flatten(1).t() for part in parts]
        )
        ours[f"{block}attn.qkv.bias"] = torch.cat(
            [state[f"{attention}{part}/bias"].flatten() for part in parts]
        )
        ours[f"{block}attn.proj.weight"] = state[f"{attention}out/kernel"].flatten(0, 1).t()
        ours[f"{block}attn.proj.bias"] = state[f"{attention}out/bias"]
    return {name: value.contiguous() for name, value in ours.items()}


def _grid(places: int) -> tuple[int, int]:
    """Split an embedding's number of places into those that are not of the square grid and the grid's side."""
    side = math.isqrt(places)
    return places - side * side, side


def _places(embedding: Tensor) -> str:
    side = _grid(embedding.shape[-2])[1]
    return f"{side}x{side}"


PRETRAINED = Names(
    name="a pretrained backbone",
    kind="backbone",
    matches=_matches,
    to_ours=from_pretrained,
)
