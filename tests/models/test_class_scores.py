"""Box heads whose classes have scores by themselves: what they find, what they learn, and from which classes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from maskrcnn import presets
from maskrcnn.data import find_data, read_data
from maskrcnn.errors import UserError
from maskrcnn.models.box_head import BoxHead
from maskrcnn.models.build import build_model
from maskrcnn.models.predictor import Predictor
from maskrcnn.training.train import learn_frequencies
from tests.data.data_sets import write_set
from tests.models.tiny import objects, pictures, tiny

NAMES = ("LVIS/mask_rcnn_vitdet_b_100ep", "LVIS/cascade_mask_rcnn_vitdet_b_100ep")


def heads(model: Predictor) -> list[BoxHead]:
    return [head for head in model.modules() if isinstance(head, BoxHead)]


@pytest.mark.parametrize("name", NAMES)
def test_a_place_may_be_of_two_classes(name: str) -> None:
    model = tiny(name)
    for head in heads(model):
        head.class_predictor.weight.data.zero_()
        head.class_predictor.bias.data = torch.tensor([2.0, 1.0, -9.0, 9.0])
        head.box_predictor.weight.data.zero_()
    model.box_head.config.score_threshold = 0.5
    found = model.predict(pictures((64, 96))[0].permute(1, 2, 0).byte().numpy())
    # One proposal has both, with the sigmoid of each; background's logit has no say.
    scores = {k: found.scores[found.labels == k] for k in (0, 1)}
    assert set(found.labels.tolist()) == {0, 1}
    for label, logit in ((0, 2.0), (1, 1.0)):
        assert scores[label].tolist() == pytest.approx(
            [torch.tensor(logit).sigmoid().item()] * len(scores[label])
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_is_not_drawn_learns_nothing(name: str) -> None:
    model = tiny(name).train()
    size = (96, 128)
    of_class_0 = objects([[10.0, 10, 60, 60]], size, seed=4)
    model.box_head.config.federated_classes = 2  # background and class 0
    losses = model(model.preprocess(pictures(size)), [of_class_0])
    torch.stack([loss for loss_name, loss in losses.items() if "loss_cls" in loss_name]).sum().backward()
    for head in heads(model):
        gradient = head.class_predictor.weight.grad
        assert gradient is not None
        assert gradient.abs().amax(1).gt(0).tolist() == [True, False, False, False]


def test_stages_and_images_draw_for_themselves() -> None:
    model = tiny(NAMES[1]).train()
    for head in heads(model):
        head.config.federated_classes = 3  # background, class 0, and 1 or 2
    drawn = set()
    for seed in range(8):
        model.zero_grad()
        losses = model(
            model.preprocess(pictures((96, 128))), [objects([[10.0, 10, 60, 60]], (96, 128), seed)]
        )
        torch.stack([losses[f"loss_cls_stage{k}"] for k in range(3)]).sum().backward()
        gradients = [head.class_predictor.weight.grad for head in heads(model)]
        drawn.add(tuple(bool(g[1].any()) for g in gradients if g is not None))
    assert len(drawn) > 2
    assert any(len(set(stages)) == 2 for stages in drawn)


def test_the_training_set_tells_how_frequent_a_class_is(tmp_path: Path) -> None:
    train = find_data(write_set(tmp_path, "coco")).train
    assert train is not None
    data = read_data(train)
    assert data.class_names == ("ant", "bee")
    config = presets.get(NAMES[1], tiny=True).model
    config.num_classes, config.category_ids = 2, ()
    model = build_model(config)
    learn_frequencies(model, config.box_head, data)
    held = [
        {data.class_names[k] for k in data.ground_truth(i).labels.tolist()} for i in range(data.num_images)
    ]
    expected = [sum(name in own for own in held) for name in data.class_names]
    assert [head.get_buffer("frequency").tolist() for head in heads(model)] == [expected] * 3
    assert "frequency" not in " ".join(model.state_dict())


def test_a_federated_loss_is_of_sigmoid_scores() -> None:
    config = presets.get("mask_rcnn_R_50_FPN_1x", tiny=True).model
    config.box_head.federated_classes = 50
    with pytest.raises(UserError, match=re.escape("Give --model.box_head.class_scores sigmoid")):
        build_model(config)
