"""Losses, sampled anchors and RoIs, mask targets and gradients against a training step of detectron2.

Case A replaces random sampling by "the first in index order"; case B samples everything. Losses agree to 1e-5
(measured 2e-6). Gradient norms agree to 2e-3: a proposal that changes places with its neighbour by float32 rounding
changes which RoIs are sampled, in the original's own reruns too.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn.models.detectron2_keys import to_detectron2
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.ops import matching
from maskrcnn.ops.masks import InstanceMasks
from maskrcnn.structures import GroundTruth, ImageBatch
from tests.references import filled_detectron2_model, image_tensor, read_npz

NAME = "mask_rcnn_R_50_FPN_3x"
GRADIENT_TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def case(shared: Path) -> dict[str, np.ndarray]:
    return read_npz(shared / "reference" / "detectron2" / f"train__{NAME}.npz")


@pytest.fixture(scope="module")
def model(shared: Path, case: dict[str, np.ndarray]) -> MaskRCNN:
    model, sha256 = filled_detectron2_model(shared / "reference" / "detectron2", NAME)
    assert sha256 == str(case["fill_sha256"])
    return model.train()


@pytest.fixture(scope="module")
def batch(shared: Path, model: MaskRCNN) -> ImageBatch:
    data = pytest.importorskip("skimage.data", reason="scikit-image has the second picture of the case")
    with Image.open(shared / "reference" / "detectron2" / "input_coffee_s_rgb.png") as image:
        coffee = np.asarray(image.convert("RGB"))
    astronaut = np.asarray(Image.fromarray(data.astronaut()).resize((320, 320), Image.Resampling.BILINEAR))
    return model.preprocess([image_tensor(coffee), image_tensor(astronaut)])


@pytest.fixture(scope="module")
def targets(case: dict[str, np.ndarray], batch: ImageBatch) -> list[GroundTruth]:
    return [
        GroundTruth(
            torch.from_numpy(case[f"gt_img{i}_boxes"]),
            torch.from_numpy(case[f"gt_img{i}_classes"]),
            InstanceMasks.from_coco(json.loads(str(case[f"gt_img{i}_polygons_json"])), size),
            image_id=i,
        )
        for i, size in enumerate(batch.image_sizes)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["A", "B"])
def test_training_step(
    variant: str,
    case: dict[str, np.ndarray],
    model: MaskRCNN,
    batch: ImageBatch,
    targets: list[GroundTruth],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = f"train{variant}"
    monkeypatch.setattr(matching, "hashed_order", lambda index, seed: torch.arange(len(index)))
    if variant == "B":
        monkeypatch.setattr(model.rpn.config, "num_samples", 1_000_000)
        monkeypatch.setattr(model.box_head.config, "num_samples", 100_000)

    # Sampling, from the same proposals that the losses below are computed with.
    with torch.no_grad():
        features = model.backbone(batch.pixels)
        anchors = torch.cat(model.rpn.anchors(features))
        proposals, _ = model.rpn.loss(features, batch.image_sizes, targets)
        rois = model.box_head.sample(proposals, targets)
        foreground = [r.foreground(80) for r in rois]
    for i, target in enumerate(targets):
        matches = matching.match_boxes(anchors, target.boxes, 0.3, 0.7, keep_best=True)
        positive, negative = matching.subsample(matches.labels, model.rpn.config.num_samples, 0.5, 0)
        counts = case[f"{key}/rpn_img{i}_npos_nneg_ntotal"].tolist()
        assert [len(positive), len(negative), len(anchors)] == counts
        if variant == "A":
            assert positive.tolist() == case[f"{key}/rpn_img{i}_pos"].tolist()
            assert negative.tolist() == case[f"{key}/rpn_img{i}_neg"].tolist()
        num_foreground, num_background, _ = case[f"{key}/roi_img{i}_npos_nneg_ntotal"].tolist()
        assert [len(foreground[i].boxes), len(rois[i].boxes)] == [
            num_foreground,
            num_foreground + num_background,
        ]
        expected_boxes = torch.from_numpy(case[f"{key}/mask_target_img{i}_boxes"])
        distance, order = torch.cdist(expected_boxes, foreground[i].boxes).min(dim=1)
        assert distance.max() < 0.01
        # Case B leaves the original's random order, in which nothing but the order is random.
        assert order.tolist() == list(range(num_foreground)) or (
            variant == "B" and len(order.unique()) == len(order)
        )
        rasters = model.mask_head.mask_targets([foreground[i]], [target])[order].numpy().astype(int)
        expected = np.unpackbits(case[f"{key}/mask_target_img{i}_packed"], axis=1).reshape(-1, 28, 28)
        # Rounding of a RoI's edge moves single cells on a mask's border.
        assert np.abs(rasters - expected).sum(axis=(1, 2)).max() <= 2

    losses = model(batch, targets)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(float(case[f"{key}/loss/{name}"]), rel=1e-5), name
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == pytest.approx(float(case[f"{key}/loss_sum"]), rel=1e-5)

    model.zero_grad()
    total.backward()
    norms = {
        to_detectron2(n): p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None
    }
    expected_norms = dict(
        zip(case[f"{key}/grad_names"].tolist(), case[f"{key}/grad_l2"].tolist(), strict=True)
    )
    assert norms.keys() == expected_norms.keys()
    for name, expected_norm in expected_norms.items():
        assert norms[name] == pytest.approx(expected_norm, rel=GRADIENT_TOLERANCE), name
