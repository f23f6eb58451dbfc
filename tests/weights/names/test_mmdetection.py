"""MMDetection's own ResNet models and ViT-Adapter's upgraded one: in the body their names are torchvision's or another
ViT-Adapter's, in the heads those of the models that are compared with the original's numbers, or written down here.
"""

from __future__ import annotations

import re

import pytest
import torch
import torchvision

from maskrcnn import presets
from maskrcnn.models.build import build_model
from maskrcnn.presets.mmdetection_resnet import PRESETS
from maskrcnn.weights.names.mmdetection import MMDETECTION, from_mmdetection, to_mmdetection

SWIN = "mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco"
CASCADE = "cascade_mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco"
DEIT, MAE = "mask_rcnn_deit_adapter_base_fpn_3x_coco", "mask_rcnn_mae_adapter_base_lsj_fpn_25ep_coco"
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


def convs(name: str, *shape: int) -> dict[str, list[int]]:
    """A convolution without a bias and its batch norm, as MMDetection names them."""
    per_channel = {
        f"{name}.bn.{part}": [shape[0]] for part in ("weight", "bias", "running_mean", "running_var")
    }
    return {f"{name}.conv.weight": list(shape), **per_channel, f"{name}.bn.num_batches_tracked": []}


def linear(name: str, *shape: int) -> dict[str, list[int]]:
    return {f"{name}.weight": list(shape), f"{name}.bias": [shape[0]]}


def test_the_upgraded_model_s_entries() -> None:
    """By its settings: no layer scale, no extra extractors; norms in pyramid and heads; two convolutions in the RPN."""
    found, deit = shapes_of(MAE), shapes_of(DEIT)
    body = {k: v for k, v in found.items() if k.startswith("backbone.")}
    absent = re.compile(r"blocks\.\d+\.gamma[12]|\.extra_extractors\.")
    assert body == {k: v for k, v in deit.items() if k.startswith("backbone.") and not absent.search(k)}
    expected: dict[str, list[int]] = {}
    for k in range(4):
        expected |= convs(f"neck.lateral_convs.{k}", 256, 768, 1, 1)
        expected |= convs(f"neck.fpn_convs.{k}", 256, 256, 3, 3)
        expected |= convs(f"roi_head.bbox_head.shared_convs.{k}", 256, 256, 3, 3)
        expected |= convs(f"roi_head.mask_head.convs.{k}", 256, 256, 3, 3)
    for k in range(2):
        expected |= linear(f"rpn_head.rpn_conv.{k}.conv", 256, 256, 3, 3)
    expected |= linear("rpn_head.rpn_cls", 3, 256, 1, 1) | linear("rpn_head.rpn_reg", 12, 256, 1, 1)
    expected |= linear("roi_head.bbox_head.shared_fcs.0", 1024, 256 * 7 * 7)
    expected |= linear("roi_head.bbox_head.fc_cls", 81, 1024) | linear("roi_head.bbox_head.fc_reg", 320, 1024)
    expected |= linear("roi_head.mask_head.upsample", 256, 256, 2, 2)
    expected |= linear("roi_head.mask_head.conv_logits", 80, 256, 1, 1)
    assert {k: v for k, v in found.items() if k not in body} == expected
    # DINOv2's ViT-Adapter-B has 452 entries, of which 42 are not the body's; a block's scales are 2, an extractor's 20.
    assert len(found) == (452 - 42 - 12 * 2 - 2 * 20) + len(expected) == 460


def test_the_upgraded_model_s_parameters() -> None:
    """From the original's own count of ViT-Adapter-B with the usual heads."""
    extractor = (768 * 384 + 384) + (384 * 768 + 768)  # values, their projection back
    extractor += (768 * 96 + 96) + (768 * 48 + 48)  # 12 heads of 4 points: places, weights
    extractor += (768 * 192 + 192) + (192 * 9 + 192) + (192 * 768 + 768)  # convolutional MLP
    extractor += 3 * 2 * 768  # norms
    conv = 256 * 256 * 9
    more = (conv + 256) + 4 * (conv + 2 * 256) - (1024 * 1024 + 1024)  # RPN; box head, one layer less
    more += 8 * 256 + 4 * 256  # norms, two numbers a channel in place of a bias, in pyramid and mask head
    with torch.device("meta"):
        model = build_model(presets.get(MAE).model)
    count = sum(p.numel() for p in model.parameters())
    assert count == 120_187_088 - 12 * 2 * 768 - 2 * extractor + more == 120_065_328
