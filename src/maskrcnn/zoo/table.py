"""Table of the published models: results, recipes, and addresses of their weights. Facts only: no torch, no models.

Sources: detectron2's MODEL_ZOO.md, the tables of MMDetection's, InternImage's, ViT-Adapter's, Swin's and ConvNeXt's
repositories, torchvision's weight enumerations. What was counted and measured here lies beside, in `measured.json`,
which `benchmarks/measure_zoo.py` writes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Published facts of one model of the zoo.

    data: what AP is on; box_ap, mask_ap, keypoint_ap: published; train_seconds: published, an iteration of 16 images
    (Cityscapes: 8) on `hardware`; weights: the address of the published file; licence: that of the weights, as their
    source states it.
    """

    name: str
    backbone: str
    schedule: str | None = None
    box_ap: float | None = None
    mask_ap: float | None = None
    keypoint_ap: float | None = None
    train_seconds: float | None = None
    hardware: str | None = None
    weights: str | None = None
    licence: str | None = None
    data: str = "COCO val2017"


def listing() -> list[dict[str, Any]]:
    """List the models, one object each: the fields of `Entry`; `parameters`, all but frozen norms; `gflops`,
    multiply-adds counted once, in 10^9, at 800 x 1280 (ViTDet: 1024 x 1024) with 1000 proposals and 100 detections;
    `measured`, here: the machine, seconds an image and peak MiB by precision.
    """
    measured = json.loads((Path(__file__).parent / "measured.json").read_text())
    return [asdict(entry) | measured.get(entry.name, {}) for entry in ENTRIES]


def find(name: str) -> Entry | None:
    return next((entry for entry in ENTRIES if entry.name == name), None)


_V100, _A100 = "8 V100", "8 A100"
_FAIR = "https://dl.fbaipublicfiles.com/detectron2"
_ADAPTER = "https://github.com/czczup/ViT-Adapter/releases/download"
_ADAPTER_HF = "https://huggingface.co/czczup/ViT-Adapter/resolve/main"
_INTERN = "https://github.com/OpenGVLab/InternImage/releases/download/det_model"
_SWIN = "https://github.com/SwinTransformer/storage/releases/download"
_OPENMMLAB = "https://download.openmmlab.com/mmdetection/v2.0"
_TORCH = "https://download.pytorch.org/models"


def _d2(
    name: str,
    backbone: str,
    schedule: str | None,
    ap: tuple[float, float],
    train_seconds: float | None,
    file: str,
    folder: str = "COCO-InstanceSegmentation",
) -> Entry:
    """Row of detectron2's zoo; `ap` is box and mask, for key-point models box and key points."""
    keypoints = name.startswith("keypoint")
    box_ap, other_ap = ap
    return Entry(
        name=name,
        backbone=backbone,
        schedule=schedule,
        box_ap=box_ap,
        mask_ap=None if keypoints else other_ap,
        keypoint_ap=other_ap if keypoints else None,
        train_seconds=train_seconds,
        hardware=None if train_seconds is None else _V100,
        weights=f"{_FAIR}/{folder}/{name}/{file}",
        licence="CC BY-SA 3.0",
    )


def _lvis(body: str, backbone: str, ap: tuple[float, float], train_seconds: float, file: str) -> Entry:
    """Row of detectron2's LVIS table, whose names are COCO's with the folder before them."""
    folder, name = "LVISv0.5-InstanceSegmentation", f"mask_rcnn_{body}_FPN_1x"
    return replace(
        _d2(name, backbone, "1x, LVIS", ap, train_seconds, file, folder),
        name=f"{folder}/{name}",
        data="LVIS v0.5 val",
    )


def _intern(size: str, schedule: str, ap: tuple[float, float], train_seconds: float) -> Entry:
    name = f"mask_rcnn_internimage_{size}_fpn_{schedule}_coco"
    return Entry(
        name=name,
        backbone=f"InternImage-{size.upper()} FPN",
        schedule=schedule,
        box_ap=ap[0],
        mask_ap=ap[1],
        train_seconds=train_seconds,
        hardware=_A100,
        weights=f"{_INTERN}/{name}.pth",
        licence="MIT",
    )


def _convnext(kind: str, size: str, letter: str, ap: tuple[float, float]) -> Entry:
    name = f"{kind}_convnext_{size}_3x"
    return Entry(
        name=name,
        backbone=f"ConvNeXt-{letter} FPN" + (", cascade" if kind.startswith("cascade") else ""),
        schedule="3x",
        box_ap=ap[0],
        mask_ap=ap[1],
        weights=f"https://dl.fbaipublicfiles.com/convnext/coco/{name}.pth",
        licence="MIT",
    )


def _swin(size: str, schedule: str, ap: tuple[float, float], file: str, *, cascade: bool = False) -> Entry:
    """Row of Swin's detection tables; no licence is stated for its files."""
    kind, how = ("cascade_mask_rcnn", "giou_4conv1f_adamw") if cascade else ("mask_rcnn", "adamw")
    return Entry(
        name=f"{kind}_swin_{size}_patch4_window7_mstrain_480-800_{how}_{schedule}_coco",
        backbone=f"Swin-{size[0].upper()} FPN" + (", cascade" if cascade else ""),
        schedule=schedule,
        box_ap=ap[0],
        mask_ap=ap[1],
        weights=f"{_SWIN}/{file}",
        licence="not stated",
    )


def _vit(name: str, backbone: str, schedule: str, ap: tuple[float, float], weights: str | None) -> Entry:
    """Row of ViT-Adapter's tables; some models have published results and no checkpoint."""
    return Entry(
        name=name,
        backbone=backbone,
        schedule=schedule,
        box_ap=ap[0],
        mask_ap=ap[1],
        weights=weights,
        licence="Apache-2.0" if weights else None,
    )


def _vitdet(name: str, backbone: str, ap: tuple[float, float], file: str) -> Entry:
    """Row of detectron2's ViTDet project, whose weights began as an autoencoder's."""
    return Entry(
        name=name,
        backbone=backbone + (", cascade" if name.startswith("cascade") else ""),
        schedule=f"{name.rpartition('_')[2].removesuffix('ep')} epochs, LSJ",
        box_ap=ap[0],
        mask_ap=ap[1],
        weights=f"{_FAIR}/ViTDet/COCO/{name.rpartition('_')[0]}/{file}",
        licence="CC BY-SA 3.0, from MAE: CC BY-NC 4.0",
    )


def _vitdet_lvis(name: str, backbone: str, ap: tuple[float, float], file: str) -> Entry:
    """Row of detectron2's ViTDet project for LVIS v1; its AP of rare classes is not published."""
    row = _vitdet(name, backbone, ap, file)
    return replace(
        row,
        name=f"LVIS/{name}",
        schedule=f"{row.schedule}, LVIS",
        weights=f"{_FAIR}/ViTDet/LVIS/{name.rpartition('_')[0]}/{file}",
        data="LVIS v1 val",
    )


def _point_rend(body: str, schedule: str, mask_ap: float, file: str) -> Entry:
    """Row of detectron2's PointRend project, which publishes AP of masks alone."""
    name = f"pointrend_rcnn_{body}_FPN_{schedule}"
    letter, depth = body.split("_")[:2]
    return Entry(
        name=name,
        backbone=f"{letter}{depth}-FPN, PointRend",
        schedule="24k, Cityscapes" if schedule.endswith("cityscapes") else schedule.removesuffix("_coco"),
        mask_ap=mask_ap,
        weights=f"{_FAIR}/PointRend/InstanceSegmentation/{name}/{file}",
        licence="CC BY-SA 3.0",
    )


def _mmdetection(name: str, backbone: str, ap: tuple[float, float], file: str) -> Entry:
    """Row of MMDetection's own tables, of 2.x; no licence is stated for its files. file: what follows the name."""
    cascade = name.startswith("cascade")
    return Entry(
        name=name,
        backbone=f"{backbone} FPN" + (", cascade" if cascade else ""),
        schedule=name.split("_")[-2],
        box_ap=ap[0],
        mask_ap=ap[1],
        weights=f"{_OPENMMLAB}/{'cascade_rcnn' if cascade else 'mask_rcnn'}/{name}/{name}_{file}.pth",
        licence="not stated",
    )


def _torchvision(name: str, backbone: str, ap: tuple[float, float], file: str) -> Entry:
    keypoints = name.startswith("keypoint")
    return Entry(
        name=name,
        backbone=backbone,
        box_ap=ap[0],
        mask_ap=None if keypoints else ap[1],
        keypoint_ap=ap[1] if keypoints else None,
        weights=f"{_TORCH}/{file}",
        licence="BSD-3-Clause",
    )


ENTRIES: tuple[Entry, ...] = (
    _d2("mask_rcnn_R_50_C4_1x", "R50-C4", "1x", (36.8, 32.2), 0.584, "137259246/model_final_9243eb.pkl"),
    _d2("mask_rcnn_R_50_DC5_1x", "R50-DC5", "1x", (38.3, 34.2), 0.471, "137260150/model_final_4f86c3.pkl"),
    _d2("mask_rcnn_R_50_FPN_1x", "R50-FPN", "1x", (38.6, 35.2), 0.261, "137260431/model_final_a54504.pkl"),
    _d2("mask_rcnn_R_50_C4_3x", "R50-C4", "3x", (39.8, 34.4), 0.575, "137849525/model_final_4ce675.pkl"),
    _d2("mask_rcnn_R_50_DC5_3x", "R50-DC5", "3x", (40.0, 35.9), 0.470, "137849551/model_final_84107b.pkl"),
    _d2("mask_rcnn_R_50_FPN_3x", "R50-FPN", "3x", (41.0, 37.2), 0.261, "137849600/model_final_f10217.pkl"),
    _d2("mask_rcnn_R_101_C4_3x", "R101-C4", "3x", (42.6, 36.7), 0.652, "138363239/model_final_a2914c.pkl"),
    _d2("mask_rcnn_R_101_DC5_3x", "R101-DC5", "3x", (41.9, 37.3), 0.545, "138363294/model_final_0464b7.pkl"),
    _d2("mask_rcnn_R_101_FPN_3x", "R101-FPN", "3x", (42.9, 38.6), 0.340, "138205316/model_final_a3ec72.pkl"),
    _d2(
        "mask_rcnn_X_101_32x8d_FPN_3x",
        "X101-FPN",
        "3x",
        (44.3, 39.5),
        0.690,
        "139653917/model_final_2d9806.pkl",
    ),
    *(
        _d2(name, backbone, schedule, ap, seconds, file, "COCO-Keypoints")
        for name, backbone, schedule, ap, seconds, file in (
            (
                "keypoint_rcnn_R_50_FPN_1x",
                "R50-FPN",
                "1x",
                (53.6, 64.0),
                0.315,
                "137261548/model_final_04e291.pkl",
            ),
            (
                "keypoint_rcnn_R_50_FPN_3x",
                "R50-FPN",
                "3x",
                (55.4, 65.5),
                0.316,
                "137849621/model_final_a6e10b.pkl",
            ),
            (
                "keypoint_rcnn_R_101_FPN_3x",
                "R101-FPN",
                "3x",
                (56.4, 66.1),
                0.390,
                "138363331/model_final_997cc7.pkl",
            ),
            (
                "keypoint_rcnn_X_101_32x8d_FPN_3x",
                "X101-FPN",
                "3x",
                (57.3, 66.0),
                0.738,
                "139686956/model_final_5ad38f.pkl",
            ),
        )
    ),
    *(
        _d2(name, backbone, schedule, ap, seconds, file, "Misc")
        for name, backbone, schedule, ap, seconds, file in (
            (
                "mask_rcnn_R_50_FPN_1x_dconv_c3-c5",
                "R50-FPN, deformable",
                "1x",
                (41.5, 37.5),
                0.342,
                "138602867/model_final_65c703.pkl",
            ),
            (
                "mask_rcnn_R_50_FPN_3x_dconv_c3-c5",
                "R50-FPN, deformable",
                "3x",
                (42.7, 38.5),
                0.349,
                "144998336/model_final_821d0b.pkl",
            ),
            (
                "cascade_mask_rcnn_R_50_FPN_1x",
                "R50-FPN, cascade",
                "1x",
                (42.1, 36.4),
                0.317,
                "138602847/model_final_e9d89b.pkl",
            ),
            (
                "cascade_mask_rcnn_R_50_FPN_3x",
                "R50-FPN, cascade",
                "3x",
                (44.3, 38.5),
                0.328,
                "144998488/model_final_480dd8.pkl",
            ),
            (
                "cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv",
                "X152-FPN, GN, deformable, cascade",
                None,
                (50.2, 44.0),
                None,
                "18131413/model_0039999_e76410.pkl",
            ),
            (
                "mask_rcnn_R_50_FPN_3x_gn",
                "R50-FPN, GN",
                "3x",
                (42.6, 38.6),
                0.356,
                "138602888/model_final_dc5d9e.pkl",
            ),
            (
                "scratch_mask_rcnn_R_50_FPN_3x_gn",
                "R50-FPN, GN",
                "3x, from scratch",
                (39.9, 36.6),
                0.400,
                "138602908/model_final_01ca85.pkl",
            ),
            (
                "mask_rcnn_R_50_FPN_3x_syncbn",
                "R50-FPN, SyncBN",
                "3x",
                (41.9, 37.8),
                0.371,
                "169527823/model_final_3b3c51.pkl",
            ),
            (
                "scratch_mask_rcnn_R_50_FPN_9x_gn",
                "R50-FPN, GN",
                "9x, from scratch",
                (43.7, 39.6),
                None,
                "183808979/model_final_da7b4c.pkl",
            ),
            (
                "scratch_mask_rcnn_R_50_FPN_9x_syncbn",
                "R50-FPN, SyncBN",
                "9x, from scratch",
                (43.6, 39.3),
                None,
                "184226666/model_final_5ce33e.pkl",
            ),
        )
    ),
    *(
        _d2(name, f"{backbone}, SyncBN", f"{epochs} epochs, LSJ", ap, None, file, "new_baselines")
        for name, backbone, epochs, ap, file in (
            (
                "mask_rcnn_R_50_FPN_100ep_LSJ",
                "R50-FPN",
                100,
                (44.6, 40.3),
                "42047764/model_final_bb69de.pkl",
            ),
            (
                "mask_rcnn_R_50_FPN_200ep_LSJ",
                "R50-FPN",
                200,
                (46.3, 41.7),
                "42047638/model_final_89a8d3.pkl",
            ),
            (
                "mask_rcnn_R_50_FPN_400ep_LSJ",
                "R50-FPN",
                400,
                (47.4, 42.5),
                "42019571/model_final_14d201.pkl",
            ),
            (
                "mask_rcnn_R_101_FPN_100ep_LSJ",
                "R101-FPN",
                100,
                (46.4, 41.6),
                "42025812/model_final_4f7b58.pkl",
            ),
            (
                "mask_rcnn_R_101_FPN_200ep_LSJ",
                "R101-FPN",
                200,
                (48.0, 43.1),
                "42131867/model_final_0bb7ae.pkl",
            ),
            (
                "mask_rcnn_R_101_FPN_400ep_LSJ",
                "R101-FPN",
                400,
                (48.9, 43.7),
                "42073830/model_final_f96b26.pkl",
            ),
        )
    ),
    *(
        _d2(
            f"mask_rcnn_regnet{kind}_4gf_dds_FPN_{epochs}ep_LSJ",
            f"RegNet{kind.upper()}-4GF FPN, SyncBN",
            f"{epochs} epochs, LSJ",
            ap,
            None,
            file,
            "new_baselines",
        )
        for kind, epochs, ap, file in (
            ("x", 100, (46.0, 41.3), "42047771/model_final_b7fbab.pkl"),
            ("x", 200, (48.1, 43.1), "42132721/model_final_5d87c1.pkl"),
            ("x", 400, (48.6, 43.5), "42025447/model_final_f1362d.pkl"),
            ("y", 100, (46.1, 41.6), "42047784/model_final_6ba57e.pkl"),
            ("y", 200, (47.8, 43.0), "42047642/model_final_27b9c1.pkl"),
            ("y", 400, (48.2, 43.3), "42045954/model_final_ef3a80.pkl"),
        )
    ),
    _lvis("R_50", "R50-FPN", (23.6, 24.4), 0.292, "144219072/model_final_571f7c.pkl"),
    _lvis("R_101", "R101-FPN", (25.6, 25.9), 0.371, "144219035/model_final_824ab5.pkl"),
    _lvis("X_101_32x8d", "X101-FPN", (26.7, 27.1), 0.712, "144219108/model_final_5e3439.pkl"),
    Entry(
        name="Cityscapes/mask_rcnn_R_50_FPN",
        backbone="R50-FPN",
        schedule="24k, Cityscapes",
        mask_ap=36.5,
        train_seconds=0.240,
        hardware=_V100,
        weights=f"{_FAIR}/Cityscapes/mask_rcnn_R_50_FPN/142423278/model_final_af9cf5.pkl",
        licence="CC BY-SA 3.0",
        data="Cityscapes val",
    ),
    _vitdet("mask_rcnn_vitdet_b_100ep", "ViTDet-B", (51.6, 45.9), "f325346929/model_final_61ccd1.pkl"),
    _vitdet("mask_rcnn_vitdet_l_100ep", "ViTDet-L", (55.5, 49.2), "f325599698/model_final_6146ed.pkl"),
    _vitdet("mask_rcnn_vitdet_h_75ep", "ViTDet-H", (56.7, 50.2), "f329145471/model_final_7224f1.pkl"),
    _vitdet(
        "cascade_mask_rcnn_vitdet_b_100ep", "ViTDet-B", (54.0, 46.7), "f325358525/model_final_435fa9.pkl"
    ),
    _vitdet(
        "cascade_mask_rcnn_vitdet_l_100ep", "ViTDet-L", (57.6, 50.0), "f328021305/model_final_1a9f28.pkl"
    ),
    _vitdet("cascade_mask_rcnn_vitdet_h_75ep", "ViTDet-H", (58.7, 51.0), "f328730692/model_final_f05665.pkl"),
    *(
        _vitdet_lvis(f"{kind}_vitdet_{size}_100ep", f"ViTDet-{size.upper()}", ap, file)
        for kind, size, ap, file in (
            ("mask_rcnn", "b", (40.2, 38.2), "329225748/model_final_5251c5.pkl"),
            ("mask_rcnn", "l", (46.1, 43.6), "329211570/model_final_021b3a.pkl"),
            ("mask_rcnn", "h", (49.1, 46.0), "332434656/model_final_866730.pkl"),
            ("cascade_mask_rcnn", "b", (43.0, 38.9), "329226874/model_final_df306f.pkl"),
            ("cascade_mask_rcnn", "l", (49.2, 44.5), "329042206/model_final_3e81c2.pkl"),
            ("cascade_mask_rcnn", "h", (51.5, 46.6), "332552778/model_final_11bbb7.pkl"),
        )
    ),
    _point_rend("R_50", "1x_coco", 36.2, "164254221/model_final_736f5a.pkl"),
    _point_rend("R_50", "3x_coco", 38.3, "164955410/model_final_edd263.pkl"),
    _point_rend("R_101", "3x_coco", 40.1, "28119983/model_final_3f4d2a.pkl"),
    _point_rend("X_101_32x8d", "3x_coco", 41.1, "28119989/model_final_ba17b9.pkl"),
    _point_rend("R_50", "1x_cityscapes", 35.9, "164255101/model_final_115bfb.pkl"),
    *(
        _mmdetection(f"{kind}_{body}_fpn_{schedule}_coco", body.upper().replace("_", "-"), ap, file)
        for kind, body, schedule, ap, file in (
            ("mask_rcnn", "r50", "1x", (38.2, 34.7), "20200205-d4b0c5d6"),
            (
                "mask_rcnn",
                "r50",
                "2x",
                (39.2, 35.4),
                "bbox_mAP-0.392__segm_mAP-0.354_20200505_003907-3e542a40",
            ),
            ("mask_rcnn", "r101", "1x", (40.0, 36.1), "20200204-1efe0ed5"),
            (
                "mask_rcnn",
                "r101",
                "2x",
                (40.8, 36.6),
                "bbox_mAP-0.408__segm_mAP-0.366_20200505_071027-14b391c7",
            ),
            ("mask_rcnn", "x101_32x4d", "1x", (41.9, 37.5), "20200205-478d0b67"),
            (
                "mask_rcnn",
                "x101_32x4d",
                "2x",
                (42.2, 37.8),
                "bbox_mAP-0.422__segm_mAP-0.378_20200506_004702-faef898c",
            ),
            ("mask_rcnn", "x101_64x4d", "1x", (42.8, 38.4), "20200201-9352eb0d"),
            ("mask_rcnn", "x101_64x4d", "2x", (42.7, 38.1), "20200509_224208-39d6f70c"),
            ("cascade_mask_rcnn", "r50", "1x", (41.2, 35.9), "20200203-9d4dcb24"),
            (
                "cascade_mask_rcnn",
                "r50",
                "20e",
                (41.9, 36.5),
                "bbox_mAP-0.419__segm_mAP-0.365_20200504_174711-4af8e66e",
            ),
            ("cascade_mask_rcnn", "r101", "1x", (42.9, 37.3), "20200203-befdf6ee"),
            (
                "cascade_mask_rcnn",
                "r101",
                "20e",
                (43.4, 37.8),
                "bbox_mAP-0.434__segm_mAP-0.378_20200504_174836-005947da",
            ),
            ("cascade_mask_rcnn", "x101_32x4d", "1x", (44.3, 38.3), "20200201-0f411b1f"),
            ("cascade_mask_rcnn", "x101_64x4d", "1x", (45.3, 39.2), "20200203-9a2db89d"),
        )
    ),
    _intern("t", "1x", (47.2, 42.5), 0.36),
    _intern("t", "3x", (49.1, 43.7), 0.34),
    _intern("s", "1x", (47.8, 43.3), 0.40),
    _intern("s", "3x", (49.7, 44.5), 0.40),
    _intern("b", "1x", (48.8, 44.0), 0.45),
    _intern("b", "3x", (50.3, 44.8), 0.45),
    _swin("tiny", "1x", (43.7, 39.8), "v1.0.3/mask_rcnn_swin_tiny_patch4_window7_1x.pth"),
    _swin("tiny", "3x", (46.0, 41.6), "v1.0.2/mask_rcnn_swin_tiny_patch4_window7.pth"),
    _swin("small", "3x", (48.5, 43.3), "v1.0.2/mask_rcnn_swin_small_patch4_window7.pth"),
    _swin(
        "tiny", "1x", (48.1, 41.7), "v1.0.3/cascade_mask_rcnn_swin_tiny_patch4_window7_1x.pth", cascade=True
    ),
    _swin("tiny", "3x", (50.4, 43.7), "v1.0.2/cascade_mask_rcnn_swin_tiny_patch4_window7.pth", cascade=True),
    _swin(
        "small", "3x", (51.9, 45.0), "v1.0.2/cascade_mask_rcnn_swin_small_patch4_window7.pth", cascade=True
    ),
    _swin("base", "3x", (51.9, 45.0), "v1.0.2/cascade_mask_rcnn_swin_base_patch4_window7.pth", cascade=True),
    _convnext("mask_rcnn", "tiny_1k", "T", (46.2, 41.7)),
    _convnext("cascade_mask_rcnn", "tiny_1k", "T", (50.4, 43.7)),
    _convnext("cascade_mask_rcnn", "small_1k", "S", (51.9, 45.0)),
    _convnext("cascade_mask_rcnn", "base_1k", "B", (52.7, 45.6)),
    _convnext("cascade_mask_rcnn", "base_22k", "B", (54.0, 46.9)),
    _convnext("cascade_mask_rcnn", "large_22k", "L", (54.8, 47.6)),
    _convnext("cascade_mask_rcnn", "xlarge_22k", "XL", (55.2, 47.7)),
    *(
        Entry(
            name=name,
            backbone=f"InternImage-{name.split('_')[2].upper()} FPN, cascade",
            schedule="1x" if "_1x_" in name else "3x",
            box_ap=box_ap,
            mask_ap=mask_ap,
            weights=f"https://huggingface.co/OpenGVLab/InternImage/resolve/main/{name}.pth",
            licence="MIT",
        )
        for name, box_ap, mask_ap in (
            ("cascade_internimage_l_fpn_1x_coco", 54.9, 47.7),
            ("cascade_internimage_l_fpn_3x_coco", 56.1, 48.5),
            ("cascade_internimage_xl_fpn_1x_coco", 55.3, 48.1),
            ("cascade_internimage_xl_fpn_3x_coco", 56.2, 48.8),
        )
    ),
    *(
        _vit(
            f"mask_rcnn_dinov2_adapter_{size}_fpn_3x_coco",
            f"ViT-Adapter-{size[0].upper()} DINOv2 FPN",
            "3x",
            ap,
            f"{_ADAPTER_HF}/mask_rcnn_dinov2_adapter_{size}_fpn_3x_coco.pth",
        )
        for size, ap in (("small", (51.5, 45.6)), ("base", (54.1, 47.8)), ("large", (55.3, 49.0)))
    ),
    _vit(
        "cascade_mask_rcnn_deit_adapter_small_fpn_3x_coco",
        "ViT-Adapter-S FPN, cascade",
        "3x",
        (51.5, 44.3),
        f"{_ADAPTER}/v0.1.3/cascade_mask_rcnn_deit_adapter_small_fpn_3x_coco.pth.tar",
    ),
    _vit(
        "cascade_mask_rcnn_deit_adapter_base_fpn_3x_coco",
        "ViT-Adapter-B FPN, cascade",
        "3x",
        (52.1, 44.8),
        f"{_ADAPTER}/v0.3.1/cascade_mask_rcnn_deit_adapter_base_fpn_3x_coco.pth",
    ),
    *(
        replace(
            _vit(
                name,
                "ViT-Adapter-B MAE FPN, BN",
                f"{epochs} epochs, LSJ",
                ap,
                f"{_ADAPTER}/v0.1.4/{name}.pth.tar",
            ),
            licence="Apache-2.0, from MAE: CC BY-NC 4.0",
        )
        for epochs, ap in ((25, (50.3, 44.7)), (50, (50.8, 45.1)))
        for name in (f"mask_rcnn_mae_adapter_base_lsj_fpn_{epochs}ep_coco",)
    ),
    *(
        _vit(name, backbone, "1x" if "_1x" in name else "3x", ap, weights)
        for name, backbone, ap, weights in (
            (
                "mask_rcnn_deit_tiny_fpn_3x_coco",
                "ViT-T FPN",
                (40.2, 37.0),
                f"{_ADAPTER}/v0.3.1/mask_rcnn_deit_tiny_fpn_3x_coco.pth.tar",
            ),
            (
                "mask_rcnn_deit_small_fpn_3x_coco",
                "ViT-S FPN",
                (44.0, 39.9),
                f"{_ADAPTER}/v0.3.1/mask_rcnn_deit_small_fpn_3x_coco.pth.tar",
            ),
            (
                "mask_rcnn_deit_base_fpn_3x_coco",
                "ViT-B FPN",
                (45.8, 41.3),
                f"{_ADAPTER}/v0.3.1/mask_rcnn_deit_base_fpn_3x_coco.pth.tar",
            ),
            (
                "mask_rcnn_augreg_large_fpn_3x_coco",
                "ViT-L FPN",
                (48.3, 43.3),
                f"{_ADAPTER}/v0.3.1/mask_rcnn_augreg_large_fpn_3x_coco.pth.tar",
            ),
            (
                "mask_rcnn_deit_adapter_tiny_fpn_1x_coco",
                "ViT-Adapter-T FPN",
                (41.1, 37.5),
                f"{_ADAPTER_HF}/mask_rcnn_deit_adapter_tiny_fpn_1x_coco.pth",
            ),
            (
                "mask_rcnn_deit_adapter_tiny_fpn_3x_coco",
                "ViT-Adapter-T FPN",
                (46.0, 41.0),
                f"{_ADAPTER}/v0.1.2/mask_rcnn_deit_adapter_tiny_fpn_3x_coco.pth.tar",
            ),
            ("mask_rcnn_deit_adapter_small_fpn_1x_coco", "ViT-Adapter-S FPN", (44.7, 39.9), None),
            (
                "mask_rcnn_deit_adapter_small_fpn_3x_coco",
                "ViT-Adapter-S FPN",
                (48.2, 42.8),
                f"{_ADAPTER}/v0.1.2/mask_rcnn_deit_adapter_small_fpn_3x_coco.pth.tar",
            ),
            (
                "mask_rcnn_deit_adapter_small_3x_coco",
                "ViT-Adapter-S",
                (48.2, 42.7),
                f"{_ADAPTER}/v0.1.6/mask_rcnn_deit_adapter_small_3x_coco.pth.tar",
            ),
            ("mask_rcnn_deit_adapter_base_fpn_1x_coco", "ViT-Adapter-B FPN", (47.0, 41.8), None),
            (
                "mask_rcnn_deit_adapter_base_fpn_3x_coco",
                "ViT-Adapter-B FPN",
                (49.6, 43.6),
                f"{_ADAPTER}/v0.1.6/mask_rcnn_deit_adapter_base_fpn_3x_coco.pth.tar",
            ),
            (
                "mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco",
                "ViT-Adapter-B FPN, Uni-Perceiver",
                (51.2, 45.3),
                f"{_ADAPTER}/v0.3.1/mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco.pth",
            ),
            ("mask_rcnn_augreg_adapter_large_fpn_1x_coco", "ViT-Adapter-L FPN", (48.7, 43.3), None),
            (
                "mask_rcnn_augreg_adapter_large_fpn_3x_coco",
                "ViT-Adapter-L FPN",
                (52.1, 46.0),
                f"{_ADAPTER}/v0.3.1/mask_rcnn_augreg_adapter_large_fpn_3x_coco.pth",
            ),
        )
    ),
    _torchvision("maskrcnn_resnet50_fpn", "R50-FPN", (37.9, 34.6), "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"),
    _torchvision(
        "maskrcnn_resnet50_fpn_v2", "R50-FPN, BN", (47.4, 41.8), "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"
    ),
    _torchvision(
        "keypointrcnn_resnet50_fpn", "R50-FPN", (54.6, 65.0), "keypointrcnn_resnet50_fpn_coco-fc266e95.pth"
    ),
    Entry(name="mask_rcnn_mobilenet_v2_FPN", backbone="MobileNetV2-FPN"),
)
