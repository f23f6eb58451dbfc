"""Parameter names of detectron2's Mask R-CNN, and ours.

One table of name beginnings; what follows (`weight`, `norm.running_var`, `0.conv1.weight`) is the same on
both sides, and so are all shapes. Boxes' classes and FC1's flattening (C, H, W) agree too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from maskrcnn.config import ModelConfig
from maskrcnn.weights.names.protocol import BODY, Names, Renamed

# detectron2's beginning -> ours; where one continues another, it is first. Its FPN levels count from 2 (stride 4),
# its layers from 1.
BEGINNINGS: dict[str, str] = {
    "backbone.bottom_up.stem.conv1.": "backbone.body.stem.conv.",
    **{f"backbone.bottom_up.res{k}.": f"backbone.body.res{k}." for k in range(2, 6)},
    "backbone.bottom_up.stem.bn.": "backbone.body.stem.norm.",  # RegNet's, whose blocks are below
    "backbone.bottom_up.stem.conv.": "backbone.body.stem.",
    **{f"backbone.fpn_lateral{k}.": f"backbone.fpn.lateral.{k - 2}." for k in range(2, 6)},
    **{f"backbone.fpn_output{k}.": f"backbone.fpn.output.{k - 2}." for k in range(2, 6)},
    **{f"proposal_generator.rpn_head.conv.conv{k}.": f"rpn.head.conv.{k}." for k in range(4)},
    "proposal_generator.rpn_head.conv.": "rpn.head.conv.",
    "proposal_generator.rpn_head.objectness_logits.": "rpn.head.objectness.",
    "proposal_generator.rpn_head.anchor_deltas.": "rpn.head.deltas.",
    **{f"roi_heads.box_head.conv{k}.": f"box_head.convs.{k - 1}." for k in range(1, 9)},
    **{f"roi_heads.box_head.fc{k}.": f"box_head.fcs.{k - 1}." for k in range(1, 5)},
    "roi_heads.box_predictor.cls_score.": "box_head.class_predictor.",
    "roi_heads.box_predictor.bbox_pred.": "box_head.box_predictor.",
    **{
        f"roi_heads.box_head.{stage}.{theirs}{k}.": f"box_head.stages.{stage}.{ours}.{k - 1}."
        for stage in range(3)
        for theirs, ours, most in (("conv", "convs", 8), ("fc", "fcs", 4))
        for k in range(1, most + 1)
    },
    **{
        f"roi_heads.box_predictor.{stage}.{theirs}.": f"box_head.stages.{stage}.{ours}."
        for stage in range(3)
        for theirs, ours in (("cls_score", "class_predictor"), ("bbox_pred", "box_predictor"))
    },
    **{f"roi_heads.mask_head.mask_fcn{k}.": f"mask_head.convs.{k - 1}." for k in range(1, 9)},
    "roi_heads.mask_head.deconv.": "mask_head.deconv.",
    "roi_heads.mask_head.predictor.": "mask_head.predictor.",
    **{
        f"roi_heads.mask_head.{part}.{theirs}.": f"mask_head.{part}.{ours}."
        for part, layers in (
            ("coarse_head", {"reduce_spatial_dim_conv": "conv", "prediction": "predictor"}),
            ("point_head", {"predictor": "predictor"}),
        )
        for theirs, ours in (layers | {f"fc{k}": f"fcs.{k - 1}" for k in range(1, 9)}).items()
    },
    **{f"roi_heads.keypoint_head.conv_fcn{k}.": f"keypoint_head.convs.{k - 1}." for k in range(1, 9)},
    "roi_heads.keypoint_head.score_lowres.": "keypoint_head.deconv.",
    "backbone.simfp_": "backbone.fpn.simfp_",  # ViTDet's
    "backbone.net.": "backbone.body.",
}
# Without a pyramid detectron2's backbone is the ResNet itself; C4's last stage belongs to the heads.
ONE_MAP_BEGINNINGS: dict[str, str] = {
    "backbone.stem.conv1.": "backbone.body.stem.conv.",
    **{f"backbone.res{k}.": f"backbone.body.res{k}." for k in range(2, 6)},
    "roi_heads.res5.": "res5.",
}
# PointRend's before version 2 of its files: old -> new, both detectron2's.
POINT_REND_BEFORE: dict[str, str] = {
    "roi_heads.mask_coarse_head.coarse_mask_fc": "roi_heads.mask_head.coarse_head.fc",
    "roi_heads.mask_coarse_head.": "roi_heads.mask_head.coarse_head.",
    "roi_heads.mask_head.coarse_head.coarse_mask_fc": "roi_heads.mask_head.coarse_head.fc",
    "roi_heads.mask_point_head.": "roi_heads.mask_head.point_head.",
}
# Within a block of RegNet, `s2.b1.` on both sides: theirs -> ours.
REGNET_BLOCK: dict[str, str] = {
    "bn.": "proj.norm.",
    "proj.": "proj.",
    **{f"f.{conv}_bn.": f"{conv}.norm." for conv in "abc"},
    **{f"f.{conv}.": f"{conv}." for conv in "abc"},
    "f.se.f_ex.0.": "se.squeeze.",
    "f.se.f_ex.2.": "se.excite.",
}
_REGNET_BLOCK_INVERSE = {ours: theirs for theirs, ours in REGNET_BLOCK.items()}
_BLOCK = re.compile(r"s[1-4]\.b\d+\.")
_THEIR_BODY, _OUR_BODY = "backbone.bottom_up.", "backbone.body."

_FROM = BEGINNINGS | ONE_MAP_BEGINNINGS
_TO_PYRAMID = {ours: theirs for theirs, ours in BEGINNINGS.items()}
_TO_ONE_MAP = _TO_PYRAMID | {ours: theirs for theirs, ours in ONE_MAP_BEGINNINGS.items()}

# In detectron2's files, but not weights: constants that we keep in the config or compute.
_NOT_WEIGHTS = ("pixel_mean", "pixel_std", "cell_anchors", "num_batches_tracked", "fed_loss_cls_weights")


def from_detectron2(name: str) -> str | None:
    """Our name of detectron2's `name`; None for an entry that is not a weight; `name` itself where it has no place."""
    if any(part in name for part in _NOT_WEIGHTS):
        return None
    name = _renamed(name, POINT_REND_BEFORE)
    return _block(name, _THEIR_BODY, _OUR_BODY, REGNET_BLOCK) or _renamed(name, _FROM)


def to_detectron2(name: str, *, pyramid: bool = True) -> str | None:
    """Inverse of `from_detectron2`. `pyramid`: True for a model that has one (C4 and DC5 have none)."""
    if "num_batches_tracked" in name:
        return None
    if block := _block(name, _OUR_BODY, _THEIR_BODY, _REGNET_BLOCK_INVERSE):
        return block
    return _renamed(name, _TO_PYRAMID if pyramid else _TO_ONE_MAP)


def _matches(names: Collection[str]) -> bool:
    theirs = ("backbone.bottom_up.", "proposal_generator.", "roi_heads.")
    return any(n.startswith(theirs) for n in names) and not any(n.startswith(BODY) for n in names)


def _to_ours(state: Mapping[str, Tensor]) -> Renamed:
    renamed = {from_detectron2(k): v for k, v in state.items()}
    return Renamed(state={k: v for k, v in renamed.items() if k is not None})


def _to_theirs(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    renamed = {to_detectron2(k, pyramid=config.fpn is not None): v for k, v in state.items()}
    return {k: v for k, v in renamed.items() if k is not None}


def _renamed(name: str, beginnings: dict[str, str]) -> str:
    for old, new in beginnings.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _block(name: str, body: str, new_body: str, beginnings: dict[str, str]) -> str | None:
    """Rename an entry of one of RegNet's blocks; None for any other entry."""
    if not name.startswith(body) or not (block := _BLOCK.match(name, len(body))):
        return None
    return new_body + block[0] + _renamed(name[block.end() :], beginnings)


DETECTRON2 = Names(
    name="detectron2", kind="detectron2", matches=_matches, to_ours=_to_ours, to_theirs=_to_theirs
)
