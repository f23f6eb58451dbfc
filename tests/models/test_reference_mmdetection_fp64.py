"""MMDetection's models in float64, where rounding hides nothing: every stage to a millionth of what float32 allows.

Inputs were normalised in float32 and anchors start from its values there, as here. Of the two cascades that look at
1,000 proposals, which takes minutes in float64, the stages are compared on the proposals that are recorded, and the
detections in float32 alone (`test_reference_cascades`); the third one, with 300, has both.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from maskrcnn.models.box_head import BoxHead
from maskrcnn.models.cascade import CascadeHead
from maskrcnn.models.places import RoIs, of_image
from tests.models.test_reference_inference import worst
from tests.models.test_reference_mmdetection import FILES
from tests.parity import Parity
from tests.references import filled_mmdetection_model, image_tensor, read_npz

NAMES = (
    "mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco",
    "mask_rcnn_convnext_tiny_1k_3x",
    "mask_rcnn_dinov2_adapter_small_fpn_3x_coco",
    "cascade_mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco",
    "cascade_mask_rcnn_convnext_tiny_1k_3x",
    "cascade_mask_rcnn_deit_adapter_small_fpn_3x_coco",
)
CASE = "astronaut, fp64"  # as `make parity` calls it

FEATURE = 1e-9  # of the level's standard deviation
LOGIT = 1e-8
BOX = 1e-6  # pixels
SCORE = 1e-9
MASK = 1e-8  # probability


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_stage(shared: Path, name: str, parity: Parity) -> None:
    folder = shared / "reference" / "mmdetection"
    case = read_npz(folder / f"{FILES.get(name, name)}.npz")
    model = filled_mmdetection_model(folder, name, case)[0].double().eval()
    meta = json.loads(str(case["meta"]))
    if "rpn_max_per_img" in meta:
        model.config.rpn.post_nms_topk_test = meta["rpn_max_per_img"]
    with Image.open(folder / "input_a_rgb.png") as image:
        rgb = np.asarray(image.convert("RGB"))
    height, width, _ = case["a/ori_shape"].tolist()
    batch = model.preprocess([image_tensor(rgb)], [(height, width)])
    batch.pixels = batch.pixels.float().double()
    head = model.box_head
    maps: dict[str, list[Tensor]] = {}

    def keep(body: nn.Module, inputs: tuple[Tensor, ...], output: dict[str, Tensor]) -> None:
        maps["backbone"] = list(output.values())

    model.backbone.body.register_forward_hook(keep)
    with torch.inference_mode():
        maps["neck"] = model.backbone(batch.pixels)
        for part, levels in maps.items():
            for i, x in enumerate(levels):
                crop, spread = case[f"a64/{part}.{i}/crop"], float(case[f"a/{part}.{i}/std"])
                c, h, w = crop.shape[1:]
                parity(name, CASE, part, worst(x[:, :c, :h, :w], crop) / spread, FEATURE, "of spread")
        features, proposals = model.roi_features(maps["neck"]), model.rpn(maps["neck"], batch.sizes)
        best = case["a64/proposals_top50"]
        assert int(proposals.valid.sum()) == int(case["a64/n_proposals"])
        boxes, logits = (of_image(proposals, 0)[k][:50] for k in (0, 1))
        parity(name, CASE, "top 50 proposals", worst(boxes, best[:, :4]), BOX, "px")
        parity(name, CASE, "proposal scores", worst(logits.sigmoid(), best[:, 4]), SCORE)
        stages = head.heads if isinstance(head, CascadeHead) else [head]
        for k, stage in enumerate(stages):
            assert isinstance(stage, BoxHead)
            end = f".s{k}" if isinstance(head, CascadeHead) else ""
            seen = case[f"a64/roi_boxes_top50{end}"][:, -4:] if end else best[:, :4]
            logits, deltas = stage.predict_rois(features, RoIs.of([torch.from_numpy(seen[:10])]))
            parity(name, CASE, "RoI logits", worst(logits, case[f"a64/roi_cls_logits_top10{end}"]), LOGIT)
            parity(name, CASE, "RoI deltas", worst(deltas.flatten(1), case[f"a64/roi_reg_top10{end}"]), LOGIT)
        if len(stages) > 1 and int(proposals.valid.sum()) > 300:
            return
        sizes = torch.tensor([[height, width]])
        found = model.describe(features, head(features, proposals, batch.sizes, original_sizes=sizes), batch)[
            0
        ]
    expected = torch.from_numpy(case["a64/det_boxes"])
    assert len(found) == len(expected)
    apart = torch.cdist(expected, found.boxes, p=float("inf"))
    same = torch.from_numpy(case["a64/det_labels"])[:, None] == found.labels[None]
    distance, order = torch.where(same, apart, torch.inf).min(1)
    assert len(set(order.tolist())) == len(expected)
    parity(name, CASE, "boxes", float(distance.max()), BOX, "px")
    parity(name, CASE, "scores", worst(found.scores[order], case["a64/det_scores"]), SCORE)
    assert found.masks is not None
    masks = found.masks[order.tolist()]
    parity(name, CASE, "mask probabilities", worst(masks.probs[:10], case["a64/mask_prob28_top10"]), MASK)
    parity(name, CASE, "mask areas", worst(masks.areas(), case["a64/mask_areas"]), 1, "px")
