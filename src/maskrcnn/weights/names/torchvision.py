"""Parameters of torchvision's ResNets and detectors, and ours.

Names go by tables; what else differs:

- torchvision's class 0 is background; ours is the last. So the first row of the class scores becomes the last, and
  the first class of boxes and masks, which is never used, goes.
- The published `maskrcnn_resnet50_fpn` and `keypointrcnn_resnet50_fpn` are computed with frozen batch normalisations
  of epsilon 0, and so are ours. Where those of a file are not frozen, which its counters of batches tell, its epsilon
  of 1e-5 is added to the variances.
- Files of before 2022 have other names in the pyramid and the heads; they are read too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from maskrcnn.weights.names.protocol import BODY, Names, Renamed

RESNET_NEEDS = "strides in the 3x3 convolutions and RGB images of ImageNet's mean and deviation"
EPSILON = 1e-5  # of torchvision's batch normalisations that are not frozen

# torchvision's beginning -> ours.
_CONVS = range(8)
BEGINNINGS: dict[str, str] = {
    "backbone.body.conv1.": "backbone.body.stem.conv.",
    "backbone.body.bn1.": "backbone.body.stem.conv.norm.",
    **{f"backbone.body.layer{k}.": f"backbone.body.res{k + 1}." for k in range(1, 5)},
    **{f"backbone.fpn.inner_blocks.{k}.0.": f"backbone.fpn.lateral.{k}." for k in range(4)},
    **{f"backbone.fpn.inner_blocks.{k}.1.": f"backbone.fpn.lateral.{k}.norm." for k in range(4)},
    **{f"backbone.fpn.layer_blocks.{k}.0.": f"backbone.fpn.output.{k}." for k in range(4)},
    **{f"backbone.fpn.layer_blocks.{k}.1.": f"backbone.fpn.output.{k}.norm." for k in range(4)},
    "rpn.head.cls_logits.": "rpn.head.objectness.",
    "rpn.head.bbox_pred.": "rpn.head.deltas.",
    "roi_heads.box_head.fc6.": "box_head.fcs.0.",
    "roi_heads.box_head.fc7.": "box_head.fcs.1.",
    **{f"roi_heads.box_head.{k}.0.": f"box_head.convs.{k}." for k in _CONVS},
    **{f"roi_heads.box_head.{k}.1.": f"box_head.convs.{k}.norm." for k in _CONVS},
    "roi_heads.box_predictor.cls_score.": "box_head.class_predictor.",
    "roi_heads.box_predictor.bbox_pred.": "box_head.box_predictor.",
    **{f"roi_heads.mask_head.{k}.0.": f"mask_head.convs.{k}." for k in _CONVS},
    **{f"roi_heads.mask_head.{k}.1.": f"mask_head.convs.{k}.norm." for k in _CONVS},
    "roi_heads.mask_predictor.conv5_mask.": "mask_head.deconv.",
    "roi_heads.mask_predictor.mask_fcn_logits.": "mask_head.predictor.",
    **{f"roi_heads.keypoint_head.{2 * k}.": f"keypoint_head.convs.{k}." for k in _CONVS},
    "roi_heads.keypoint_predictor.kps_score_lowres.": "keypoint_head.deconv.",
}
# Names that depend on what else there is. One convolution is not numbered here, several are; after the box head's
# four convolutions and a flattening its fully connected layer is number 5.
_ONE_CONV = {"rpn.head.conv.0.0.": "rpn.head.conv."}
_TWO_CONVS = {f"rpn.head.conv.{k}.0.": f"rpn.head.conv.{k}." for k in range(2)}
_CONV_HEAD = {"roi_heads.box_head.5.": "box_head.fcs.0."}

# Our beginning of a body's names -> torchvision's; the longest first, for a norm's begins as its convolution's.
_BODY_BACK = {
    BEGINNINGS[k]: k for k in sorted(BEGINNINGS, key=lambda k: -len(BEGINNINGS[k])) if k.startswith(BODY)
}

# Old name -> new name, by regular expressions.
_OLD = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0."),
)

_CLASS_ROWS = "box_head.class_predictor."
_BOX_ROWS = "box_head.box_predictor."
_MASK_ROWS = "mask_head.predictor."


def from_resnet(state: Mapping[str, Tensor]) -> Renamed:
    """Convert a ResNet classifier: the weights of a backbone under our names."""
    other = tuple(k for k in state if not k.startswith(("conv1.", "bn1.", "layer")))
    body = {f"backbone.body.{k}": v for k, v in state.items() if k not in other}
    weights = {_renamed(k, BEGINNINGS): v for k, v in body.items() if not _is_counter(k)}
    return Renamed(state=weights, dropped=other, made_for=RESNET_NEEDS)


def from_resnet_name(name: str) -> str:
    """Our name of a parameter of torchvision's ResNet, after the beginning of a backbone's."""
    return _renamed(name, BEGINNINGS)


def to_resnet_name(name: str) -> str:
    """Inverse of `from_resnet_name`."""
    return _block(_renamed_plainly(name, _BODY_BACK), back=True)


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a detector: its weights under our names, with our order of classes."""
    state = {_modern(k): v for k, v in state.items()}
    if "backbone.body.bn1.num_batches_tracked" in state and not _trains_norms(state):
        state = {k: v + EPSILON if _is_variance(k) else v for k, v in state.items()}
    convs = _TWO_CONVS if "rpn.head.conv.1.0.weight" in state else _ONE_CONV
    table = BEGINNINGS | convs | _CONV_HEAD
    ours = {_renamed(k, table): v for k, v in state.items() if not _is_counter(k)}
    for name, value in ours.items():
        if name.startswith(_CLASS_ROWS):
            ours[name] = value.roll(-1, 0)
        elif name.startswith(_BOX_ROWS):
            ours[name] = value[4:]
        elif name.startswith(_MASK_ROWS):
            ours[name] = value[1:]
    return ours


def to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `from_torchvision`: the weights that `maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)`
    and its kin load.

    The background's boxes and masks, which nothing reads, are zeros.
    """
    several = "rpn.head.conv.0.weight" in state
    table = {**BEGINNINGS, **(_TWO_CONVS if several else _ONE_CONV)}
    if "box_head.convs.0.weight" in state:
        table |= _CONV_HEAD
        table.pop("roi_heads.box_head.fc6.")
    # The longest beginning first: a norm's begins as its convolution's.
    back = {table[k]: k for k in sorted(table, key=lambda k: -len(table[k]))}
    theirs = {}
    for name, value in state.items():
        if name.startswith(_CLASS_ROWS):
            value = value.roll(1, 0)
        elif name.startswith((_BOX_ROWS, _MASK_ROWS)):
            value = torch.cat([torch.zeros_like(value[: 4 if name.startswith(_BOX_ROWS) else 1]), value])
        theirs[_block(_renamed_plainly(name, back), back=True)] = value
    if not _trains_norms(theirs):
        theirs = {k: v - EPSILON if _is_variance(k) else v for k, v in theirs.items()}
    counters = [k.removesuffix("running_var") + "num_batches_tracked" for k in theirs if _is_variance(k)]
    return theirs | {k: torch.tensor(0) for k in counters}


def _trains_norms(state: Mapping[str, Tensor]) -> bool:
    """Return True for weights of a `_v2` detector, whose normalisations are not frozen anywhere."""
    return "backbone.fpn.inner_blocks.0.1.weight" in state


def _is_variance(name: str) -> bool:
    return name.endswith("running_var")


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _modern(name: str) -> str:
    for old, new in _OLD:
        name = re.sub(old, new, name)
    return name


def _renamed(name: str, table: Mapping[str, str]) -> str:
    return _block(_renamed_plainly(name, table))


def _renamed_plainly(name: str, table: Mapping[str, str]) -> str:
    return next((new + name[len(old) :] for old, new in table.items() if name.startswith(old)), name)


def _block(name: str, *, back: bool = False) -> str:
    """Translate the names within a residual block: `bn1.weight` is `conv1.norm.weight` here."""
    if back:
        name = re.sub(r"(layer\d\.\d+)\.conv(\d)\.norm\.", r"\1.bn\2.", name)
        name = re.sub(r"(layer\d\.\d+)\.shortcut\.norm\.", r"\1.downsample.1.", name)
        return re.sub(r"(layer\d\.\d+)\.shortcut\.", r"\1.downsample.0.", name)
    name = re.sub(r"(res\d\.\d+)\.bn(\d)\.", r"\1.conv\2.norm.", name)
    name = re.sub(r"(res\d\.\d+)\.downsample\.1\.", r"\1.shortcut.norm.", name)
    return re.sub(r"(res\d\.\d+)\.downsample\.0\.", r"\1.shortcut.", name)


def _from_mobilenet(state: Mapping[str, Tensor]) -> Renamed:
    """Convert a MobileNetV2 classifier, whose last convolution and classifier have no place in a detector."""
    other = tuple(k for k in state if not k.startswith("features.") or k.startswith("features.18."))
    return Renamed(state={f"{BODY}{k}": v for k, v in state.items() if k not in other}, dropped=other)


def _is_detector(names: Collection[str]) -> bool:
    return {"backbone.body.layer1.0.conv1.weight", "rpn.head.cls_logits.weight"} <= set(names)


DETECTOR = Names(
    name="torchvision",
    kind="torchvision",
    matches=_is_detector,
    to_ours=lambda state: Renamed(state=from_torchvision(state)),
    to_theirs=lambda state, config: to_torchvision(state),
)
RESNET = Names(
    name="torchvision's ResNet",
    kind="backbone",
    matches=lambda names: {"conv1.weight", "layer1.0.conv1.weight"} <= set(names),
    to_ours=from_resnet,
)
MOBILENET = Names(
    name="torchvision's MobileNetV2",
    kind="backbone",
    matches=lambda names: {"features.0.0.weight", "features.1.conv.0.0.weight"} <= set(names),
    to_ours=_from_mobilenet,
)
