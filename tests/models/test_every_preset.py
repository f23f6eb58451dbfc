"""Every preset's tiny variant, forward, backward and in inference, on the cases that break detectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskrcnn import presets
from maskrcnn.config import Config
from maskrcnn.models.predictor import Predictor
from tests.models.tiny import distinct_structures, objects, pictures, random_boxes, tiny

STRUCTURES = distinct_structures()
CASES = {
    "ordinary": [[10.0, 10.0, 40.0, 50.0], [20.0, 5.0, 60.0, 30.0]],
    "no objects": [],
    "one pixel": [[10.0, 10.0, 11.0, 11.0]],
    "the whole picture": [[0.0, 0.0, 90.0, 61.0]],
    "500 boxes": random_boxes(500, (61, 90)),
}


def losses(model: Predictor, boxes: list[list[float]]) -> dict[str, torch.Tensor]:
    sizes = [(61, 90), (33, 47)]  # odd, and different: the second is padded
    batch = model.preprocess(pictures(*sizes))
    return model(batch, [objects(boxes, sizes[0]), objects([], sizes[1])])


def loss_names(model: Predictor) -> set[str]:
    stages = [""]
    if (cascade := model.config.box_head.cascade) is not None:
        stages = [f"_stage{k}" for k in range(len(cascade.iou_positive))]
    names = {"loss_rpn_cls", "loss_rpn_loc"} | {f"loss_{n}{s}" for n in ("cls", "box_reg") for s in stages}
    cascade = model.config.box_head.cascade
    own = stages if cascade is not None and cascade.rules == "mmdetection" else ("",)  # a mask head each
    names |= {f"loss_mask{s}" for s in own} if model.config.mask_head else set()
    if model.config.mask_head is not None and model.config.mask_head.point_rend is not None:
        names.add("loss_mask_point")
    return names | ({"loss_keypoint"} if model.config.keypoint_head else set())


@pytest.mark.parametrize("preset", list(presets.PRESETS))
def test_a_preset_is_fresh_and_named(preset: str) -> None:
    config = presets.get(preset)
    assert isinstance(config, Config)
    assert config.model.name == preset
    config.model.rpn.num_samples = -1
    assert presets.get(preset).model.rpn.num_samples != -1
    assert max(config.optim.milestones) < config.train.iterations or config.optim.schedule != "step"


@pytest.mark.parametrize("preset", STRUCTURES)
@pytest.mark.parametrize("case", list(CASES))
def test_a_step_of_training(preset: str, case: str) -> None:
    model = tiny(preset).train()
    found = losses(model, CASES[case])
    assert set(found) == loss_names(model)
    total = torch.stack(list(found.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name  # every process must have them all to average
            assert torch.isfinite(parameter.grad).all(), name
    for name, buffer in model.named_buffers():
        assert torch.isfinite(buffer).all(), name  # running statistics of no RoI at all


@pytest.mark.parametrize("preset", STRUCTURES)
def test_a_few_steps_reduce_the_loss(preset: str) -> None:
    model = tiny(preset).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    totals = []
    for _ in range(6):
        total = torch.stack(list(losses(model, CASES["ordinary"]).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert min(totals[1:]) < totals[0]


@pytest.mark.parametrize("preset", STRUCTURES)
@pytest.mark.parametrize("shape", [(61, 90), (1, 1), (17, 400), (128, 128)])
def test_prediction_is_in_the_pictures_own_pixels(preset: str, shape: tuple[int, int]) -> None:
    model = tiny(preset)
    model.box_head.config.score_threshold = 0.0
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    result = model.predict(image)
    assert result.image_size == shape
    assert 0 < len(result) <= (300 if "LVIS" in preset else 100)
    assert (result.boxes >= 0).all()
    assert (result.boxes[:, 2] <= shape[1]).all()
    assert (result.boxes[:, 3] <= shape[0]).all()
    assert (result.scores.diff() <= 0).all()
    assert (result.masks is None) == (model.mask_head is None)
    if result.masks is not None:
        assert np.asarray(result.masks).shape == (len(result), *shape)
    assert (result.keypoints is None) == (model.keypoint_head is None)
    if result.keypoints is not None:
        assert result.keypoints.shape == (len(result), 17, 3)
    assert result.class_names == ("a", "b", "c")
