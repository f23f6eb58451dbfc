"""Table of published facts, with the counts and measurements beside it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from maskrcnn import presets
from maskrcnn.bench.flops import count_macs
from maskrcnn.cli.main import main
from maskrcnn.models.build import build_model
from maskrcnn.presets import point_rend
from maskrcnn.zoo.table import ENTRIES, listing

ROWS = {row["name"]: row for row in listing()}

# Measured on the originals at 800 x 1200 with 1000 proposals and 100 detections, in 10^9; they count the
# normalisations too, which makes up to 0.5 % of the whole.
DETECTRON2_GMACS = {
    "mask_rcnn_R_50_FPN_3x": 245.7,
    "mask_rcnn_R_50_C4_3x": 913.9,
    "mask_rcnn_R_50_DC5_3x": 496.5,
    "mask_rcnn_R_101_FPN_3x": 317.8,
    "mask_rcnn_R_101_C4_3x": 985.2,
    "mask_rcnn_R_101_DC5_3x": 567.8,
    "mask_rcnn_X_101_32x8d_FPN_3x": 489.9,
    "keypoint_rcnn_R_50_FPN_3x": 541.8,
    "cascade_mask_rcnn_R_50_FPN_3x": 273.3,
    "mask_rcnn_R_50_FPN_3x_gn": 365.9,
}
# Measured on the originals at 1280 x 800; those of InternImage are also the published ones.
MMDETECTION_GMACS = {
    "mask_rcnn_convnext_tiny_1k_3x": 262.0,
    "mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco": 267.0,
    "mask_rcnn_swin_small_patch4_window7_mstrain_480-800_adamw_3x_coco": 359.0,
    "cascade_mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco": 745.0,
    "cascade_mask_rcnn_swin_small_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco": 838.0,
    "cascade_mask_rcnn_swin_base_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco": 982.0,
    "cascade_mask_rcnn_convnext_tiny_1k_3x": 741.0,
    "cascade_mask_rcnn_convnext_small_1k_3x": 827.0,
    "cascade_mask_rcnn_convnext_base_1k_3x": 964.0,
    "cascade_mask_rcnn_convnext_large_22k_3x": 1354.0,
    "cascade_mask_rcnn_convnext_xlarge_22k_3x": 1898.0,
    "cascade_internimage_l_fpn_1x_coco": 1399.0,
    "cascade_internimage_xl_fpn_1x_coco": 1782.0,
    "mask_rcnn_internimage_t_fpn_1x_coco": 269.82,
    "mask_rcnn_internimage_s_fpn_1x_coco": 340.01,
    "mask_rcnn_internimage_b_fpn_1x_coco": 501.33,
    "mask_rcnn_deit_adapter_tiny_fpn_3x_coco": 261.5,
    "mask_rcnn_deit_tiny_fpn_3x_coco": 224.8,
    "mask_rcnn_deit_adapter_small_fpn_3x_coco": 402.8,
    "mask_rcnn_deit_small_fpn_3x_coco": 330.9,
    "mask_rcnn_deit_adapter_small_3x_coco": 352.6,
    "mask_rcnn_deit_adapter_base_fpn_3x_coco": 831.9,
    "mask_rcnn_deit_base_fpn_3x_coco": 691.8,
    "mask_rcnn_augreg_adapter_large_fpn_3x_coco": 1894.8,
    "mask_rcnn_augreg_large_fpn_3x_coco": 1666.0,
}


def gmacs(name: str, size: tuple[int, int]) -> float:
    with torch.device("meta"):
        model = build_model(presets.get(name).model)
    return sum(count_macs(model, size).values()) / 1e9


def test_every_preset_is_listed_once() -> None:
    assert len(ROWS) == len(ENTRIES)
    assert set(ROWS) == set(presets.PRESETS)


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        model = build_model(presets.get(name).model)
    assert ROWS[name]["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "expected"), DETECTRON2_GMACS.items())
def test_multiply_adds_of_detectron2(name: str, expected: float) -> None:
    assert gmacs(name, (800, 1200)) == pytest.approx(expected, rel=0.006)


@pytest.mark.parametrize(("name", "expected"), MMDETECTION_GMACS.items())
def test_multiply_adds_of_mmdetection(name: str, expected: float) -> None:
    assert gmacs(name, (800, 1280)) == pytest.approx(expected, rel=0.01)
    assert ROWS[name]["gflops"] == pytest.approx(expected, rel=0.01)


def test_published_rows(shared: Path) -> None:
    with open(shared / "facts" / "published_models.csv") as file:
        for row in csv.DictReader(file):
            ours = ROWS[row["name"]]
            assert ours["box_ap"] == float(row["box_ap"])
            assert ours["mask_ap"] == float(row["mask_ap"])
            assert ours["weights"] == row["checkpoint_url"]
            if row["train_s_per_iter"]:
                assert ours["train_seconds"] == float(row["train_s_per_iter"])


@pytest.mark.parametrize(
    "name",
    [
        "LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
        "LVISv0.5-InstanceSegmentation/mask_rcnn_R_101_FPN_1x",
        "LVISv0.5-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_1x",
        "Cityscapes/mask_rcnn_R_50_FPN",
        "scratch_mask_rcnn_R_50_FPN_9x_gn",
        "scratch_mask_rcnn_R_50_FPN_9x_syncbn",
    ],
)
def test_published_rows_beyond_the_first(shared: Path, name: str) -> None:
    with open(shared / "facts" / "wider_models.csv") as file:
        row = next(row for row in csv.DictReader(file) if row["model"].removeprefix("Misc/") == name)
    ours = ROWS[name]
    assert ours["box_ap"] == (float(row["box_ap"]) if row["box_ap"] else None)
    assert ours["mask_ap"] == float(row["mask_ap"])
    assert (ours["weights"], ours["licence"]) == (row["checkpoint"], row["licence"])
    assert (ours["data"] == "COCO val2017") == (row["note"] == "")


# projects/ViTDet/README.md of detectron2, its LVIS tables.
@pytest.mark.parametrize(
    ("name", "box_ap", "mask_ap", "file"),
    [
        ("mask_rcnn_vitdet_b", 40.2, 38.2, "329225748/model_final_5251c5.pkl"),
        ("mask_rcnn_vitdet_l", 46.1, 43.6, "329211570/model_final_021b3a.pkl"),
        ("mask_rcnn_vitdet_h", 49.1, 46.0, "332434656/model_final_866730.pkl"),
        ("cascade_mask_rcnn_vitdet_b", 43.0, 38.9, "329226874/model_final_df306f.pkl"),
        ("cascade_mask_rcnn_vitdet_l", 49.2, 44.5, "329042206/model_final_3e81c2.pkl"),
        ("cascade_mask_rcnn_vitdet_h", 51.5, 46.6, "332552778/model_final_11bbb7.pkl"),
    ],
)
def test_published_rows_of_vitdet_for_lvis(name: str, box_ap: float, mask_ap: float, file: str) -> None:
    row = ROWS[f"LVIS/{name}_100ep"]
    assert (row["box_ap"], row["mask_ap"], row["data"]) == (box_ap, mask_ap, "LVIS v1 val")
    assert row["weights"] == f"https://dl.fbaipublicfiles.com/detectron2/ViTDet/LVIS/{name}/{file}"


# detectron2's MODEL_ZOO.md and ViT-Adapter's detection/configs/{mask_rcnn,upgraded_mask_rcnn}/README.md.
@pytest.mark.parametrize(
    ("name", "box_ap", "mask_ap"),
    [
        ("mask_rcnn_R_101_FPN_200ep_LSJ", 48.0, 43.1),
        ("mask_rcnn_deit_adapter_small_fpn_1x_coco", 44.7, 39.9),
        ("mask_rcnn_deit_adapter_base_fpn_1x_coco", 47.0, 41.8),
        ("mask_rcnn_augreg_adapter_large_fpn_1x_coco", 48.7, 43.3),
        ("mask_rcnn_mae_adapter_base_lsj_fpn_25ep_coco", 50.3, 44.7),
        ("mask_rcnn_mae_adapter_base_lsj_fpn_50ep_coco", 50.8, 45.1),
    ],
)
def test_published_scores(name: str, box_ap: float, mask_ap: float) -> None:
    assert (ROWS[name]["box_ap"], ROWS[name]["mask_ap"]) == (box_ap, mask_ap)


def test_weights_that_began_as_an_autoencoder_s_have_its_licence_too() -> None:
    from_mae = {name for name, row in ROWS.items() if "CC BY-NC" in (row["licence"] or "")}
    assert from_mae == {name for name in ROWS if "vitdet" in name or "_mae_" in name}


def test_every_model_but_our_own_has_its_published_scores() -> None:
    without = {name for name, row in ROWS.items() if row["box_ap"] is None}
    # Cityscapes' rows and PointRend's were published with the masks' AP alone.
    masks_alone = {"Cityscapes/mask_rcnn_R_50_FPN", *point_rend.PRESETS}
    assert without == {"mask_rcnn_mobilenet_v2_FPN", *masks_alone}
    assert all(ROWS[name]["mask_ap"] for name in masks_alone)


def test_addresses_differ() -> None:
    addresses = [entry.weights for entry in ENTRIES if entry.weights]
    assert len(set(addresses)) == len(addresses)
    assert all(a.startswith("https://") for a in addresses)


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(ROWS)
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(ROWS)
    assert max(map(len, lines)) < 160


def test_the_page_is_of_this_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--markdown"]) == 0
    page = Path(__file__).parents[2] / "docs" / "zoo.md"
    assert page.read_text() == capsys.readouterr().out, (
        "write it anew: maskrcnn list --markdown > docs/zoo.md"
    )
