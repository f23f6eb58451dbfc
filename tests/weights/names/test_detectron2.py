"""Our models have the original's weights: every name, every shape, every count.

`state_shapes.json.gz` is the original's own list. It lacks some of the zoo; these are compared with the parts that they
are made of.
"""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn import presets
from maskrcnn.models.build import build_model
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.presets import point_rend, vitdet
from maskrcnn.presets.detectron2 import PRESETS
from maskrcnn.weights.load import WeightFile, load_weights
from maskrcnn.weights.names.detectron2 import from_detectron2, to_detectron2
from tests.models.tiny import tiny
from tests.references import detectron2_state

LVIS = "LVISv0.5-InstanceSegmentation"
# As published, without frozen norms.
PARAMETERS = {
    "mask_rcnn_R_50_FPN_1x": 44_343_216,
    "mask_rcnn_R_50_C4_1x": 35_909_612,
    "mask_rcnn_R_50_DC5_1x": 172_353_516,
    "mask_rcnn_R_101_FPN_3x": 63_283_120,
    "mask_rcnn_R_101_C4_3x": 54_849_516,
    "mask_rcnn_R_101_DC5_3x": 191_293_420,
    "mask_rcnn_X_101_32x8d_FPN_3x": 107_427_760,
    "keypoint_rcnn_R_50_FPN_3x": 59_133_158,
    "cascade_mask_rcnn_R_50_FPN_1x": 71_984_926,
    "mask_rcnn_R_50_FPN_3x_gn": 45_711_152,
    "mask_rcnn_R_50_FPN_1x_dconv_c3-c5": 44_924_058,
    "mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ": 43_140_848,
    "mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ": 41_859_336,
    "Cityscapes/mask_rcnn_R_50_FPN": 43_955_712,
    f"{LVIS}/mask_rcnn_R_50_FPN_1x": 50_532_516,
    "mask_rcnn_vitdet_b_100ep": 110_895_792,
    "cascade_mask_rcnn_vitdet_b_100ep": 141_160_990,
    # By hand, over COCO's: 1,123 more classes of 1,024 features, with 4 deltas each or (cascade) without, three times
    # in a cascade, and of 256 channels in the mask head.
    "LVIS/mask_rcnn_vitdet_b_100ep": 110_895_792 + 1123 * (1025 + 4 * 1025 + 257),
    "LVIS/cascade_mask_rcnn_vitdet_b_100ep": 141_160_990 + 1123 * (3 * 1025 + 257),
}
# A model whose shapes the list lacks has those of another.
SAME_SHAPES = {
    "cascade_mask_rcnn_R_50_FPN_1x": "cascade_mask_rcnn_R_50_FPN_3x",
    "keypoint_rcnn_R_50_FPN_1x": "keypoint_rcnn_R_50_FPN_3x",
    "mask_rcnn_R_50_FPN_3x_dconv_c3-c5": "mask_rcnn_R_50_FPN_1x_dconv_c3-c5",
    "scratch_mask_rcnn_R_50_FPN_3x_gn": "mask_rcnn_R_50_FPN_3x_gn",
}
# Compared in parts, by the last tests here.
IN_PARTS = ("keypoint_rcnn_R_101", "keypoint_rcnn_X", "syncbn", "LSJ", "X_152", "9x")

Shapes = dict[str, dict[str, list[int]]]


@pytest.fixture(scope="module")
def shapes(shared: Path) -> Shapes:
    with gzip.open(shared / "reference" / "detectron2" / "state_shapes.json.gz") as file:
        return json.load(file)


def on_meta(name: str) -> MaskRCNN:
    """Model of a preset on the meta device, whole but without memory for it."""
    with torch.device("meta"):
        return build_model(presets.get(name).model)


def shapes_of(name: str) -> dict[str, list[int]]:
    return {k: list(v.shape) for k, v in detectron2_state(on_meta(name)).items()}


@pytest.mark.parametrize("name", [n for n in PRESETS if not any(part in n for part in IN_PARTS)])
def test_names_and_shapes(shapes: Shapes, name: str) -> None:
    assert shapes_of(name) == shapes[SAME_SHAPES.get(name, name)]


@pytest.mark.parametrize("name", [*PRESETS, *point_rend.PRESETS, *vitdet.PRESETS])
def test_every_name_there_and_back(name: str) -> None:
    model = on_meta(name)
    for ours in model.state_dict():
        theirs = to_detectron2(ours, pyramid=model.config.fpn is not None)
        if not ours.endswith("num_batches_tracked"):
            assert theirs not in (None, ours)
            assert from_detectron2(theirs) == ours


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name: str) -> None:
    assert sum(p.numel() for p in on_meta(name).parameters()) == PARAMETERS[name]


def test_key_points_on_deeper_bodies(shapes: Shapes) -> None:
    for body in ("R_101", "X_101_32x8d"):
        found, masks = shapes_of(f"keypoint_rcnn_{body}_FPN_3x"), shapes[f"mask_rcnn_{body}_FPN_3x"]
        body_and_pyramid = {k: v for k, v in masks.items() if k.startswith("backbone.")}
        heads = {
            k: v for k, v in shapes["keypoint_rcnn_R_50_FPN_3x"].items() if not k.startswith("backbone.")
        }
        assert found == body_and_pyramid | heads


def test_synchronised_norms_stand_where_group_norms_do(shapes: Shapes) -> None:
    group_norm, plain = shapes["mask_rcnn_R_50_FPN_3x_gn"], shapes["mask_rcnn_R_50_FPN_3x"]
    found = shapes_of("mask_rcnn_R_50_FPN_3x_syncbn")
    assert {k: v for k, v in found.items() if "running" not in k} == group_norm
    body = {k: v for k, v in plain.items() if "bottom_up" in k}
    assert {k: v for k, v in found.items() if "bottom_up" in k} == body
    statistics = {k.rsplit(".", 1)[0] for k in found if k.endswith("running_var")}
    assert statistics == {k.rsplit(".", 1)[0] for k in group_norm if k.endswith("norm.bias")}


@pytest.fixture(scope="module")
def wider(shared: Path) -> Shapes:
    """Shapes of the models added later, without the counts of batches, and without what is no weight."""
    with gzip.open(shared / "reference" / "detectron2" / "state_shapes_wider.json.gz") as file:
        models = json.load(file)
    return {
        name: {k: v for k, v in shapes.items() if "num_batches" not in k and from_detectron2(k) is not None}
        for name, shapes in models.items()
    }


@pytest.mark.parametrize("kind", ["regnetx", "regnety"])
def test_names_and_shapes_of_a_regnet(wider: Shapes, kind: str) -> None:
    name = f"mask_rcnn_{kind}_4gf_dds_FPN_100ep_LSJ"
    assert shapes_of(name) == wider[f"new_baselines/{name}"]


def test_names_and_shapes_of_point_rend(wider: Shapes) -> None:
    name = "pointrend_rcnn_R_50_FPN_3x_coco"
    assert shapes_of(name) == wider[f"PointRend/{name}"]


@pytest.mark.parametrize("name", ["Cityscapes/mask_rcnn_R_50_FPN", f"{LVIS}/mask_rcnn_R_50_FPN_1x"])
def test_names_and_shapes_of_models_for_other_data(wider: Shapes, name: str) -> None:
    assert shapes_of(name) == wider[name]


@pytest.mark.parametrize("body", ["R_101", "X_101_32x8d"])
def test_deeper_models_of_lvis_have_coco_s_bodies(shapes: Shapes, wider: Shapes, body: str) -> None:
    coco, lvis = shapes[f"mask_rcnn_{body}_FPN_3x"], wider[f"{LVIS}/mask_rcnn_R_50_FPN_1x"]
    expected = {k: v for k, v in coco.items() if k.startswith("backbone.")}
    expected |= {k: v for k, v in lvis.items() if not k.startswith("backbone.")}
    assert shapes_of(f"{LVIS}/mask_rcnn_{body}_FPN_1x") == expected


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn"])
def test_names_and_shapes_of_vitdet_for_coco_and_lvis(wider: Shapes, kind: str) -> None:
    """LVIS v1's file has COCO's entries, of more classes, and the weights of classes in the federated loss, which are
    settings here (`class_image_counts`).
    """
    name = f"{kind}_vitdet_b_100ep"
    coco = wider[f"ViTDet/COCO/{name}"]
    assert shapes_of(name) == coco
    classes = {80: 1203, 81: 1204, 320: 4 * 1203}
    last = ("cls_score.", "bbox_pred.", "mask_head.predictor.")
    lvis = {
        k: [classes.get(v[0], v[0]), *v[1:]] if any(layer in k for layer in last) else v
        for k, v in coco.items()
    }
    assert shapes_of(f"LVIS/{name}") == lvis
    stages = ("0.", "1.", "2.") if kind.startswith("cascade") else ("",)
    for stage in stages:
        assert from_detectron2(f"roi_heads.box_predictor.{stage}fed_loss_cls_weights") is None


def test_a_file_of_a_federated_loss_is_read(tmp_path: Path) -> None:
    """As detectron2 writes it: numpy arrays under `model`, with the weights of classes beside the parameters."""
    model = tiny("LVIS/cascade_mask_rcnn_vitdet_b_100ep")
    arrays = {k: v.numpy() for k, v in detectron2_state(model).items()}
    arrays |= {f"roi_heads.box_predictor.{k}.fed_loss_cls_weights": np.ones(3, np.float32) for k in range(3)}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "trainer"}))
    other = tiny("LVIS/cascade_mask_rcnn_vitdet_b_100ep")
    for p in other.parameters():
        p.data.zero_()
    assert load_weights(other, path) == []
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("norm", ["gn", "syncbn"])
def test_nine_times_as_long_changes_no_shape(norm: str) -> None:
    assert shapes_of(f"scratch_mask_rcnn_R_50_FPN_9x_{norm}") == shapes_of(f"mask_rcnn_R_50_FPN_3x_{norm}")
    assert all(p.requires_grad for p in on_meta(f"scratch_mask_rcnn_R_50_FPN_9x_{norm}").parameters())


def test_point_rend_s_older_files_name_its_heads_otherwise() -> None:
    found = shapes_of("pointrend_rcnn_R_50_FPN_1x_cityscapes")
    older = {
        name.replace("mask_head.coarse_head.fc", "mask_coarse_head.coarse_mask_fc")
        .replace("mask_head.coarse_head.", "mask_coarse_head.")
        .replace("mask_head.point_head.", "mask_point_head."): name
        for name in found
        if "mask_head" in name
    }
    assert len(older) == 16
    for old, new in older.items():
        assert from_detectron2(old) == from_detectron2(new) != old
    assert found["roi_heads.mask_head.point_head.fc2.weight"] == [256, 256 + 8, 1]
    assert found["roi_heads.mask_head.coarse_head.prediction.weight"] == [8 * 49, 1024]


def test_the_largest_cascade() -> None:
    found = shapes_of("cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv")
    assert found["backbone.bottom_up.res4.35.conv2.weight"] == [1024, 32, 3, 3]
    assert found["backbone.bottom_up.res3.0.conv2_offset.weight"] == [18, 512, 3, 3]
    assert "backbone.bottom_up.res2.0.conv2_offset.weight" not in found
    assert (
        "backbone.bottom_up.res2.0.conv2.norm.running_var" in found
    )  # frozen: the name's gn is of the heads
    assert found["roi_heads.box_head.2.conv4.norm.weight"] == [256]
    assert found["roi_heads.box_head.2.fc1.weight"] == [1024, 256 * 7 * 7]
    assert found["roi_heads.mask_head.mask_fcn8.norm.weight"] == [256]
    assert found["backbone.fpn_lateral5.bias"] == [256]


def test_large_scale_jitter_has_two_convolutions_before_the_proposals(shapes: Shapes) -> None:
    found = shapes_of("mask_rcnn_R_50_FPN_100ep_LSJ")
    same = shapes_of("mask_rcnn_R_50_FPN_3x_syncbn")
    first = "proposal_generator.rpn_head.conv.conv0."
    second = "proposal_generator.rpn_head.conv.conv1."
    extra = {first + "weight", first + "bias", second + "weight", second + "bias"}
    replaced = {"proposal_generator.rpn_head.conv.weight", "proposal_generator.rpn_head.conv.bias"}
    assert found.keys() - same.keys() == extra
    assert same.keys() - found.keys() == replaced


@pytest.mark.parametrize(
    "name", ["mask_rcnn_R_50_C4_1x", "mask_rcnn_R_50_DC5_1x", "mask_rcnn_R_50_FPN_1x_dconv_c3-c5"]
)
def test_an_imagenet_backbone_fills_every_structure(name: str) -> None:
    body = tiny("mask_rcnn_R_50_FPN_1x").backbone.body.state_dict()
    file = WeightFile(
        Path("R-50.pkl"),
        {f"backbone.body.{k}": torch.rand_like(v) for k, v in body.items()},
        None,
        "backbone",
    )
    model = tiny(name)
    load_weights(model, file)
    filled = model.backbone.body.state_dict() | {
        f"res5.{k}": v for k, v in (model.res5.state_dict() if model.res5 else {}).items()
    }
    for key, value in filled.items():
        if "conv2_offset" in key:
            assert not value.any()
        else:
            assert torch.equal(value, file.state[f"backbone.body.{key}"]), key
    assert len([k for k in filled if "conv2_offset" not in k]) == len(body)
