"""Every stage of MMDetection's cascades against what it computed with the same weights and image, in float32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn.models.cascade import CascadeHead
from maskrcnn.models.mask_stages import MaskHeads
from maskrcnn.models.places import RoIs
from tests.models.test_reference_inference import worst
from tests.models.test_reference_mmdetection import BOX, CASE, FEATURE, FILES, LOGIT, MASK, MASK_AREA, SCORE
from tests.parity import Parity
from tests.references import filled_mmdetection_model, image_tensor, read_npz

NAMES = (
    "cascade_mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco",
    "cascade_mask_rcnn_convnext_tiny_1k_3x",
    "cascade_mask_rcnn_deit_adapter_small_fpn_3x_coco",
    "cascade_internimage_l_fpn_1x_coco",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_stage(shared: Path, name: str, parity: Parity) -> None:
    folder = shared / "reference" / "mmdetection"
    case = read_npz(folder / f"{FILES.get(name, name)}.npz")
    model, state, sha256 = filled_mmdetection_model(folder, name, case)
    meta = json.loads(str(case["meta"]))
    assert set(state) == set(case["state_dict_names"].tolist())
    assert sum(p.numel() for p in model.parameters()) == meta["nparam"]
    assert sha256 == str(case["filled_sha256"])
    if "rpn_max_per_img" in meta:
        model.config.rpn.post_nms_topk_test = meta["rpn_max_per_img"]
    model.eval()
    with Image.open(folder / "input_a_rgb.png") as image:
        rgb = np.asarray(image.convert("RGB"))
    height, width, _ = case["a/ori_shape"].tolist()
    batch = model.preprocess([image_tensor(rgb)], [(height, width)])
    head = model.box_head
    assert isinstance(head, CascadeHead)
    assert isinstance(model.mask_head, MaskHeads)
    with torch.inference_mode():
        neck = model.backbone(batch.pixels)
        for i, x in enumerate(neck):
            crop, spread = case[f"a/neck.{i}/crop"], float(case[f"a/neck.{i}/std"])
            c, h, w = crop.shape[1:]
            parity(name, CASE, "neck", worst(x[:, :c, :h, :w], crop) / spread, FEATURE, "of spread")
        features, proposals = model.roi_features(neck), model.rpn(neck, batch.sizes)
        assert int(proposals.valid.sum()) == int(case["a/n_proposals"])
        mean = torch.zeros(())
        for k, stage in enumerate(head.heads):
            boxes = torch.from_numpy(case[f"a/roi_boxes_top50.s{k}"][:, -4:]).float()
            logits, deltas = stage.predict_rois(features, RoIs.of([boxes]))
            key = f"roi_cls_logits_top50.s{k}"
            parity(name, CASE, "RoI logits", worst(logits, case[f"a/{key}"]), 4 * LOGIT)
            parity(name, CASE, "RoI deltas", worst(deltas.flatten(1), case[f"a/roi_reg_top50.s{k}"]), LOGIT)
            mean = mean + logits / len(head.heads)
        parity(name, CASE, "mean logits", worst(mean, case["a/roi_cls_logits_mean_top50"]), 4 * LOGIT)
        found = model.describe(
            features,
            head(features, proposals, batch.sizes, original_sizes=torch.tensor([[height, width]])),
            batch,
        )[0]
    expected = torch.from_numpy(case["a/det_boxes"]).float()
    assert len(found) == len(expected)
    apart = torch.cdist(expected, found.boxes, p=float("inf"))
    same = torch.from_numpy(case["a/det_labels"])[:, None] == found.labels[None]
    distance, order = torch.where(same, apart, torch.inf).min(1)
    parity(name, CASE, "boxes", float(distance.max()), BOX, "px")
    parity(name, CASE, "scores", worst(found.scores[order], case["a/det_scores"]), SCORE)
    assert found.masks is not None
    masks = found.masks[order.tolist()]
    parity(name, CASE, "mask probabilities", worst(masks.probs[:10], case["a/mask_prob28_top10"]), MASK)
    parity(name, CASE, "mask areas", worst(masks.areas(), case["a/mask_areas"]), MASK_AREA, "px")
