"""Parameter names of Uni-Perceiver's transformer, and ours, which are a plain ViT's.

A block is `layers.0.self_attn.in_proj`, `self_attn.out_proj`, `linear1`, `linear2`, `gamma_1` and `gamma_2` there.
"""

from __future__ import annotations

import re

_BLOCK = re.compile(r"(^|\.)layers\.(\d+)\.(?=self_attn\.|linear[12]\.|gamma_[12]$|norm[12]\.)")
_PARTS = (
    ("self_attn.in_proj.", "attn.qkv."),
    ("self_attn.out_proj.", "attn.proj."),
    ("linear1.", "mlp.fc1."),
    ("linear2.", "mlp.fc2."),
    ("gamma_1", "gamma1"),
    ("gamma_2", "gamma2"),
)


def from_uni_perceiver(name: str) -> str:
    """Our name of a block's parameter; `name` itself where it is none of a block."""
    found = _BLOCK.search(name)
    if found is None:
        return name
    part = name[found.end() :]
    ours = next((ours + part[len(k) :] for k, ours in _PARTS if part.startswith(k)), part)
    return f"{name[: found.start()]}{found[1]}blocks.{found[2]}.{ours}"


def to_uni_perceiver(name: str) -> str:
    """Inverse of `from_uni_perceiver`, for the names of such a model."""
    found = re.search(r"(^|\.)blocks\.(\d+)\.", name)
    if found is None:
        return name
    part = name[found.end() :]
    theirs = next((k + part[len(ours) :] for k, ours in _PARTS if part.startswith(ours)), part)
    return f"{name[: found.start()]}{found[1]}layers.{found[2]}.{theirs}"
