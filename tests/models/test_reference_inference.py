"""Every stage of inference against what detectron2 computed with the same weights and image.

Tolerances. In float64 both programs do the same arithmetic; what is left is the rounding of the reference file to
float32. In float32 the bound is the original's own distance from its float64 run (`fp32_vs_fp64` in the file, and
the table "Natural tolerance" of the facts): features 2e-5 of their spread, boxes 0.002 px, scores 8e-5, mask logits
0.004; we allow the features 1e-4 and twice the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn.models.box_head import Detections
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.rpn import Proposals
from maskrcnn.structures import ImageBatch, Instances
from tests.parity import Parity
from tests.references import filled_detectron2_model, image_tensor, meta, read_npz

NAME = "mask_rcnn_R_50_FPN_3x"
CASES = {"coffee_s": "coffee, fp32", "coffee_s64": "coffee, fp64"}  # as `make parity` calls them


class Tolerance(NamedTuple):
    feature: float  # of the level's standard deviation
    logit: float
    box: float  # pixels
    score: float
    mask_logit: float
    mask_area: int  # pixels


TOLERANCES = {
    "coffee_s": Tolerance(1e-4, 2e-4, 0.005, 2e-4, 0.008, 3),
    "coffee_s64": Tolerance(2e-6, 5e-6, 1e-4, 5e-6, 2e-4, 1),
}


class Stages(NamedTuple):
    batch: ImageBatch
    features: list[torch.Tensor]
    proposals: Proposals
    detections: Detections
    mask_logits: torch.Tensor
    instances: Instances


@pytest.fixture(scope="module")
def case(shared: Path) -> dict[str, np.ndarray]:
    return read_npz(shared / "reference" / "detectron2" / f"{NAME}.npz")


@pytest.fixture(scope="module")
def model(shared: Path, case: dict[str, np.ndarray]) -> MaskRCNN:
    model, sha256 = filled_detectron2_model(shared / "reference" / "detectron2", NAME)
    assert sha256 == meta(case)["fill_sha256"]
    return model.eval()


@pytest.fixture(scope="module", params=list(TOLERANCES))
def tag(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def stages(shared: Path, model: MaskRCNN, case: dict[str, np.ndarray], tag: str) -> Stages:
    """All intermediate results, in the tag's precision."""
    model = model.to(torch.float64 if tag.endswith("64") else torch.float32)
    with Image.open(shared / "reference" / "detectron2" / "input_coffee_s_rgb.png") as image:
        rgb = np.asarray(image.convert("RGB"))
    height, width = case[f"{tag}/orig_hw"].tolist()
    batch = model.preprocess([image_tensor(rgb)], [(height, width)])
    with torch.inference_mode():
        features = model.backbone(batch.pixels)
        proposals = model.rpn(features, batch.image_sizes)
        detections = model.box_head(features[:-1], proposals, batch.image_sizes)[0]
        mask_logits = model.mask_head(features[:-1], [detections.boxes], detections.labels)
        return Stages(batch, features, proposals[0], detections, mask_logits, model.detect(batch)[0])


def worst(actual: torch.Tensor | np.ndarray, expected: np.ndarray) -> float:
    """The largest difference between two arrays, which have to have one shape."""
    assert tuple(actual.shape) == expected.shape
    return float(np.abs(np.asarray(actual, np.float64) - expected.astype(np.float64)).max(initial=0.0))


@pytest.mark.slow
class TestInference:
    def test_parameters(self, model: MaskRCNN, case: dict[str, np.ndarray]) -> None:
        assert sum(p.numel() for p in model.parameters()) == meta(case)["params"]
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == meta(case)["trainable_params"]

    def test_padding(self, stages: Stages, case: dict[str, np.ndarray], tag: str) -> None:
        assert list(stages.batch.pixels.shape[2:]) == case[f"{tag}/padded_hw"].tolist()

    @pytest.mark.parametrize("level", [2, 3, 4, 5, 6])
    def test_features(
        self, stages: Stages, case: dict[str, np.ndarray], tag: str, level: int, parity: Parity
    ) -> None:
        feature, key = stages.features[level - 2], f"{tag}/feat_p{level}"
        spread, bound = float(case[f"{key}_std"]), TOLERANCES[tag].feature
        y, x = case[f"{key}_crop_yx"]
        channels = torch.arange(8) * (feature.shape[1] // 8)
        assert list(feature.shape) == case[f"{key}_shape"].tolist()
        crop = worst(feature[0, channels, y : y + 16, x : x + 16], case[f"{key}_crop"])
        mean = abs(float(feature.double().mean()) - float(case[f"{key}_mean"]))
        parity(NAME, CASES[tag], "features", max(crop, mean) / spread, bound, "of spread")
        assert float(feature.double().std(correction=0)) == pytest.approx(spread, rel=1e-4)

    def test_proposals(self, stages: Stages, case: dict[str, np.ndarray], tag: str, parity: Parity) -> None:
        tolerance, proposals = TOLERANCES[tag], stages.proposals
        assert len(proposals.boxes) == case[f"{tag}/n_proposals"]
        boxes = worst(proposals.boxes[:50], case[f"{tag}/proposal_boxes_top50"])
        logits = worst(proposals.objectness_logits[:50], case[f"{tag}/proposal_logits_top50"])
        parity(NAME, CASES[tag], "proposals", boxes, tolerance.box, "px")
        parity(NAME, CASES[tag], "objectness", logits, tolerance.logit)

    def test_detections(self, stages: Stages, case: dict[str, np.ndarray], tag: str, parity: Parity) -> None:
        tolerance, detections = TOLERANCES[tag], stages.detections
        assert detections.labels.tolist() == case[f"{tag}/det_classes"].tolist()
        parity(
            NAME, CASES[tag], "boxes", worst(detections.boxes, case[f"{tag}/det_boxes"]), tolerance.box, "px"
        )
        parity(
            NAME, CASES[tag], "scores", worst(detections.scores, case[f"{tag}/det_scores"]), tolerance.score
        )

    def test_mask_logits(self, stages: Stages, case: dict[str, np.ndarray], tag: str, parity: Parity) -> None:
        logits, means = stages.mask_logits, stages.mask_logits.sigmoid().mean((1, 2))
        difference = max(
            worst(logits[:10], case[f"{tag}/mask_logits_first10"]),
            worst(means, case[f"{tag}/mask_prob_mean"]),
        )
        parity(NAME, CASES[tag], "mask logits", difference, TOLERANCES[tag].mask_logit)

    def test_final_boxes_and_masks(
        self, stages: Stages, case: dict[str, np.ndarray], tag: str, parity: Parity
    ) -> None:
        instances, tolerance = stages.instances, TOLERANCES[tag]
        assert len(instances) == case[f"{tag}/n_final"]
        boxes = worst(instances.boxes, case[f"{tag}/final_boxes"])
        parity(NAME, CASES[tag], "final boxes", boxes, tolerance.box, "px")
        assert instances.masks is not None
        areas = worst(np.asarray(instances.masks.areas()), case[f"{tag}/mask_areas"])
        parity(NAME, CASES[tag], "mask areas", areas, tolerance.mask_area, "px")
        if f"{tag}/masks_first5_packed" not in case:
            return  # kept for the float32 run only
        height, width = instances.image_size
        packed = case[f"{tag}/masks_first5_packed"]
        expected = np.unpackbits(packed)[: 5 * height * width].reshape(5, height, width).astype(bool)
        differing = (np.asarray(instances.masks[:5]) != expected).sum(axis=(1, 2)).max()
        parity(NAME, CASES[tag], "mask pixels", differing, tolerance.mask_area, "px")
