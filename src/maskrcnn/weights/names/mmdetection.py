"""Parameter names of MMDetection 2.x's Mask R-CNN, and ours.

One table of name beginnings, as for detectron2; what follows and all shapes are the same on both sides. The backbone's
own names are the originals' (`backbones.internimage`, `backbones.vit`), a ResNet's torchvision's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from maskrcnn.config import ModelConfig, ViTConfig
from maskrcnn.weights.names.protocol import Names, Renamed
from maskrcnn.weights.names.torchvision import from_resnet_name, to_resnet_name
from maskrcnn.weights.names.uni_perceiver import from_uni_perceiver, to_uni_perceiver

WRAPPER = "module."  # before every name where the model was saved together with what distributed it

_PARTS = (("conv", ""), ("bn", "norm."))  # of a convolution with its norm
# MMDetection's beginning -> ours. Of two that a name has, the longer one counts: a norm's is its convolution's and more
# here, and the RPN has one convolution, or several by their numbers.
BEGINNINGS: dict[str, str] = {
    "backbone.": "backbone.body.",
    **{
        f"neck.{theirs}.{k}.{part}.": f"backbone.fpn.{ours}.{k}.{ours_part}"
        for theirs, ours in (("lateral_convs", "lateral"), ("fpn_convs", "output"))
        for k in range(4)
        for part, ours_part in _PARTS
    },
    "rpn_head.rpn_conv.": "rpn.head.conv.",
    **{f"rpn_head.rpn_conv.{k}.conv.": f"rpn.head.conv.{k}." for k in range(2)},
    "rpn_head.rpn_cls.": "rpn.head.objectness.",
    "rpn_head.rpn_reg.": "rpn.head.deltas.",
    **{
        f"roi_head.bbox_head.shared_convs.{k}.{part}.": f"box_head.convs.{k}.{ours_part}"
        for k in range(4)
        for part, ours_part in _PARTS
    },
    **{f"roi_head.bbox_head.shared_fcs.{k}.": f"box_head.fcs.{k}." for k in range(2)},
    "roi_head.bbox_head.fc_cls.": "box_head.class_predictor.",
    "roi_head.bbox_head.fc_reg.": "box_head.box_predictor.",
    **{
        f"roi_head.mask_head.convs.{k}.{part}.": f"mask_head.convs.{k}.{ours_part}"
        for k in range(4)
        for part, ours_part in _PARTS
    },
    "roi_head.mask_head.upsample.": "mask_head.deconv.",
    **{
        f"roi_head.bbox_head.{i}.shared_convs.{k}.{part}.": f"box_head.stages.{i}.convs.{k}.{ours_part}"
        for i in range(3)
        for k in range(4)
        for part, ours_part in _PARTS
    },
    **{
        f"roi_head.bbox_head.{i}.shared_fcs.{k}.": f"box_head.stages.{i}.fcs.{k}."
        for i in range(3)
        for k in range(2)
    },
    **{f"roi_head.bbox_head.{i}.fc_cls.": f"box_head.stages.{i}.class_predictor." for i in range(3)},
    **{f"roi_head.bbox_head.{i}.fc_reg.": f"box_head.stages.{i}.box_predictor." for i in range(3)},
    **{
        f"roi_head.mask_head.{i}.convs.{k}.conv.": f"mask_head.stages.{i}.convs.{k}."
        for i in range(3)
        for k in range(4)
    },
    **{f"roi_head.mask_head.{i}.upsample.": f"mask_head.stages.{i}.deconv." for i in range(3)},
    **{f"roi_head.mask_head.{i}.conv_logits.": f"mask_head.stages.{i}.predictor." for i in range(3)},
    "roi_head.mask_head.conv_logits.": "mask_head.predictor.",
}
# Without a pyramid, one 1x1 convolution a level.
NO_PYRAMID_BEGINNINGS: dict[str, str] = {
    f"neck.convs.{k}.conv.": f"backbone.fpn.lateral.{k}." for k in range(4)
}
_FROM = BEGINNINGS | NO_PYRAMID_BEGINNINGS
_RESNET = re.compile(r"backbone\.(conv1|bn1|layer\d)\.")  # where the backbone is one
COUNTER = ".num_batches_tracked"


def is_mmdetection(names: Iterable[str]) -> bool:
    """Return True for the parameter names of one of MMDetection's detectors."""
    return any(n.removeprefix(WRAPPER).startswith(("neck.", "rpn_head.", "roi_head.")) for n in names)


def from_mmdetection(name: str) -> str:
    """Our name of MMDetection's `name`; `name` itself where it has no place."""
    name = from_uni_perceiver(name.removeprefix(WRAPPER))
    ours = _renamed(name, _FROM)
    return from_resnet_name(ours) if _RESNET.match(name) else ours


def to_mmdetection(name: str, *, pyramid: bool = True, uni_perceiver: bool = False) -> str:
    """Inverse of `from_mmdetection`. pyramid: True for a model that has one (`FPNConfig.top_down`); uni_perceiver:
    True for one with Uni-Perceiver's transformer.
    """
    name = to_uni_perceiver(name) if uni_perceiver else to_resnet_name(name)
    # The last entry counts: without a pyramid the lateral convolutions go by their other name.
    table = BEGINNINGS if pyramid else BEGINNINGS | NO_PYRAMID_BEGINNINGS
    return _renamed(name, {ours: theirs for theirs, ours in table.items()})


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """Replace the longest beginning of a name that is in the table."""
    beginning = max((b for b in table if name.startswith(b)), key=len, default="")
    return table.get(beginning, "") + name[len(beginning) :]


def _to_ours(state: Mapping[str, Tensor]) -> Renamed:
    # Beside averaged weights, which go by the plain names, MMDetection's hook keeps the raw ones.
    raw = tuple(k for k in state if k.removeprefix(WRAPPER).startswith("ema_"))
    # A ResNet's norms are frozen, and count no batches.
    other = {*raw, *(k for k in state if k.endswith(COUNTER) and _RESNET.match(k.removeprefix(WRAPPER)))}
    return Renamed(state={from_mmdetection(k): v for k, v in state.items() if k not in other}, dropped=raw)


def _to_theirs(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    pyramid = config.fpn is None or config.fpn.top_down
    uni_perceiver = isinstance(config.backbone, ViTConfig) and config.backbone.uni_perceiver
    return {to_mmdetection(k, pyramid=pyramid, uni_perceiver=uni_perceiver): v for k, v in state.items()}


MMDETECTION = Names(
    name="mmdetection", kind="mmdetection", matches=is_mmdetection, to_ours=_to_ours, to_theirs=_to_theirs
)
