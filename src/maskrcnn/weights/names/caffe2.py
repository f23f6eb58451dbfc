"""Parameter names of the ImageNet ResNets that detectron2's models start from: caffe2's, and ours.

`R-50.pkl`, `R-101.pkl`, `X-101-32x8d.pkl` and `R-50-GN.pkl` are blobs named `res2_0_branch2a_w`, with batch
normalisations whole (`_bn_gamma`, `_bn_running_mean`), fused to an affine (`_bn_s`, `_bn_b`), or of groups
(`_gn_s`, `_gn_b`). Converted files have detectron2's names without what stands before them: `res2.0.conv1.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from maskrcnn.weights.names.detectron2 import from_detectron2
from maskrcnn.weights.names.protocol import BODY, Names, Renamed

BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
NORM_PARTS = {
    "s": "weight", "gamma": "weight", "b": "bias", "beta": "bias", "bias": "bias",
    "rm": "running_mean", "running_mean": "running_mean", "riv": "running_var", "running_var": "running_var",
}  # fmt: skip
_BLOB = re.compile(
    r"(?:(?P<stem>(?:res_)?conv1)|res(?P<stage>[2-5])_(?P<block>\d+)_branch(?P<branch>1|2a|2b|2c))"
    r"_(?:(?P<norm>bn|gn)_)?(?P<part>[a-z_]+)"
)


def from_bare_detectron2(name: str) -> str | None:
    """Our name of a ResNet's parameter, or None for a name that is no part of a backbone (a classifier)."""
    ours = from_detectron2(f"backbone.bottom_up.{name}") or ""
    return ours if ours.startswith(BODY) else None


def from_caffe2(blobs: Mapping[str, Tensor]) -> Renamed:
    """Convert a caffe2 ResNet: the weights of a backbone under our names.

    An affine that stands for a batch normalisation becomes one of mean 0 and variance 1 (with its epsilon).
    """
    state, other = {}, []
    for blob, value in blobs.items():
        name = _renamed(blob)
        if name is None:
            if not blob.endswith("_momentum"):  # a trainer's
                other.append(blob)
            continue
        state[name] = value
        if blob.endswith("_bn_s"):
            state[name.removesuffix("weight") + "running_mean"] = torch.zeros_like(value)
            state[name.removesuffix("weight") + "running_var"] = torch.ones_like(value) - 1e-5
    return Renamed(state=state, dropped=tuple(other))


def _renamed(blob: str) -> str | None:
    found = _BLOB.fullmatch(blob)
    if not found:
        return None
    place = (
        "stem.conv1" if found["stem"] else f"res{found['stage']}.{found['block']}.{BRANCHES[found['branch']]}"
    )
    if not found["norm"]:  # a convolution before a normalisation has no bias that counts
        return from_bare_detectron2(f"{place}.weight") if found["part"] == "w" else None
    part = NORM_PARTS.get(found["part"])
    return part and from_bare_detectron2(f"{place}.norm.{part}")


def _from_bare(state: Mapping[str, Tensor]) -> Renamed:
    renamed = {k: from_bare_detectron2(k) for k in state}
    body = {new: state[k] for k, new in renamed.items() if new}
    return Renamed(state=body, dropped=tuple(k for k, new in renamed.items() if not new))


CAFFE2 = Names(
    name="caffe2's ResNet",
    kind="backbone",
    matches=lambda names: "res2_0_branch2a_w" in names,
    to_ours=from_caffe2,
)
BARE = Names(
    name="detectron2's ResNet",
    kind="backbone",
    matches=lambda names: "res2.0.conv1.weight" in names,
    to_ours=_from_bare,
)
