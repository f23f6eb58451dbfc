"""Parameter names of Swin and ConvNeXt classifiers in timm and torchvision, and their authors', which are ours.

timm begins a stage with the downsampling that the authors end the one before with; torchvision numbers stages and
downsamplings together. The order of the four neighbours that Swin merges is the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from maskrcnn.backbones.swin import relative_positions


@dataclass(frozen=True, kw_only=True)
class _Spelling:
    """Names of one architecture in one library. sign: a name that no other file has; beginnings and parts: their
    beginnings and later parts of names, and the authors'.
    """

    sign: str
    beginnings: dict[str, str]
    parts: dict[str, str]


_SPELLINGS = (
    _Spelling(  # timm's Swin
        sign="layers.3.downsample.reduction.weight",
        beginnings={f"layers.{k + 1}.downsample.": f"layers.{k}.downsample." for k in range(3)},
        parts={},
    ),
    _Spelling(  # timm's ConvNeXt
        sign="stages.0.blocks.0.conv_dw.weight",
        beginnings={
            "stem.": "downsample_layers.0.",
            **{f"stages.{k}.downsample.": f"downsample_layers.{k}." for k in range(1, 4)},
            **{f"stages.{k}.blocks.": f"stages.{k}." for k in range(4)},
        },
        parts={".conv_dw.": ".dwconv.", ".mlp.fc": ".pwconv"},
    ),
    _Spelling(  # torchvision's Swin
        sign="features.1.0.attn.relative_position_bias_table",
        beginnings={
            "features.0.0.": "patch_embed.proj.",
            "features.0.2.": "patch_embed.norm.",
            **{f"features.{2 * k + 1}.": f"layers.{k}.blocks." for k in range(4)},
            **{f"features.{2 * k + 2}.": f"layers.{k}.downsample." for k in range(3)},
        },
        parts={".mlp.0.": ".mlp.fc1.", ".mlp.3.": ".mlp.fc2."},
    ),
    _Spelling(  # torchvision's ConvNeXt
        sign="features.1.0.layer_scale",
        beginnings={
            **{f"features.{2 * k}.": f"downsample_layers.{k}." for k in range(4)},
            **{f"features.{2 * k + 1}.": f"stages.{k}." for k in range(4)},
        },
        parts={
            ".block.0.": ".dwconv.",
            ".block.2.": ".norm.",
            ".block.3.": ".pwconv1.",
            ".block.5.": ".pwconv2.",
        },
    ),
)


def authors_names(names: Collection[str]) -> dict[str, str]:
    """Map each name of a file to its authors'; a name to itself where it is no other library's or has no other one."""
    spelling = next((s for s in _SPELLINGS if s.sign in names), None)
    return {name: name if spelling is None else _authors_name(name, spelling) for name in names}


def _authors_name(name: str, spelling: _Spelling) -> str:
    beginning = next((b for b in spelling.beginnings if name.startswith(b)), "")
    name = spelling.beginnings.get(beginning, "") + name[len(beginning) :]
    for theirs, ours in spelling.parts.items():
        name = name.replace(theirs, ours)
    return name


def with_authors_shapes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights under the authors' names their shapes: channel scales (C,), which are (C, 1, 1) in torchvision, and
    Swin's indices of relative positions (T * T, T * T), which torchvision flattens and timm leaves out.
    """
    shaped = {name: v.flatten() if name.endswith(".gamma") else v for name, v in state.items()}
    for name, table in state.items():
        if name.endswith(".relative_position_bias_table"):
            window = (math.isqrt(len(table)) + 1) // 2  # the table has (2 T - 1)^2 rows
            index = name.replace("bias_table", "index")
            shaped[index] = relative_positions(window)
    return shaped
