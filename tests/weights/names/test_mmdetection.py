"""MMDetection's own ResNet models: their names are torchvision's in the body, and in the heads those of the models that
are compared with the original's numbers.
"""

from __future__ import annotations

import pytest
import torch
import torchvision

from maskrcnn import presets
from maskrcnn.models.build import build_model
from maskrcnn.presets.mmdetection_resnet import PRESETS
from maskrcnn.weights.names.mmdetection import MMDETECTION, from_mmdetection, to_mmdetection

SWIN = "mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco"
CASCADE = "cascade_mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco"
BODIES = {
    "r50": torchvision.models.resnet50,
    "r101": torchvision.models.resnet101,
    "x101_64x4d": torchvision.models.resnext101_64x4d,
}


def shapes_of(name: str) -> dict[str, list[int]]:
    with torch.device("meta"):
        model = build_model(presets.get(name).model)
    return {to_mmdetection(k): list(v.shape) for k, v in model.state_dict().items()}


def heads(shapes: dict[str, list[int]], *but: str) -> dict[str, list[int]]:
    """What is neither in the body nor takes its maps, nor named in `but`."""
    return {k: v for k, v in shapes.items() if not k.startswith(("backbone.", "neck.lateral", *but))}


@pytest.mark.parametrize("body", BODIES)
def test_the_body_is_torchvision_s(body: str) -> None:
    with torch.device("meta"):
        state = BODIES[body]().state_dict()
    expected = {
        f"backbone.{k}": list(v.shape)
        for k, v in state.items()
        if not k.startswith("fc.") and not k.endswith("num_batches_tracked")
    }
    found = {k: v for k, v in shapes_of(f"mask_rcnn_{body}_fpn_1x_coco").items() if k.startswith("backbone.")}
    assert found == expected


def test_the_heads_are_those_of_swin_s_mask_rcnn() -> None:
    assert heads(shapes_of("mask_rcnn_r50_fpn_1x_coco")) == heads(shapes_of(SWIN))


def test_the_cascade_has_swin_s_masks_and_its_own_boxes() -> None:
    found, box_heads = shapes_of("cascade_mask_rcnn_r50_fpn_1x_coco"), "roi_head.bbox_head."
    assert heads(found, box_heads) == heads(shapes_of(CASCADE), box_heads)
    for stage in range(3):
        own = {
            k.removeprefix(f"{box_heads}{stage}."): v for k, v in found.items() if f"{box_heads}{stage}." in k
        }
        assert {k: v for k, v in own.items() if k.endswith("weight")} == {
            "shared_fcs.0.weight": [1024, 256 * 49],
            "shared_fcs.1.weight": [1024, 1024],
            "fc_cls.weight": [81, 1024],
            "fc_reg.weight": [4, 1024],  # one box for all classes
        }


@pytest.mark.parametrize("name", PRESETS)
def test_every_name_there_and_back(name: str) -> None:
    with torch.device("meta"):
        model = build_model(presets.get(name).model)
    theirs = {ours: to_mmdetection(ours) for ours in model.state_dict()}
    assert all(from_mmdetection(name) == ours != name for ours, name in theirs.items())


def test_counters_of_a_resnet_s_norms_are_left_out() -> None:
    model = build_model(presets.get("mask_rcnn_r50_fpn_1x_coco", tiny=True).model)
    file = {f"module.{to_mmdetection(k)}": v for k, v in model.state_dict().items()}
    counters = [k.replace("running_var", "num_batches_tracked") for k in file if k.endswith("running_var")]
    ours = MMDETECTION.to_ours(file | {k: torch.tensor(9) for k in counters}).state
    assert len(counters) == 53
    assert set(ours) == set(model.state_dict())
