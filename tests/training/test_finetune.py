"""Schedule that is chosen for a small data set."""

from __future__ import annotations

import pytest
import torch

from maskrcnn.config import Config, override
from maskrcnn.presets import get
from maskrcnn.training.distributed import Process
from maskrcnn.training.finetune import CHOSEN, choose_schedule

CPU = Process(torch.device("cpu"))


def chosen(
    num_images: int, *, detector: bool = True, process: Process = CPU, **given: str
) -> tuple[Config, str]:
    config = get("mask_rcnn_R_50_FPN_3x")
    names = {name.replace("__", "."): value for name, value in given.items()}
    for name, value in names.items():
        override(config, name, value)
    return config, choose_schedule(config, num_images, process, detector=detector, given=set(names))


@pytest.mark.parametrize(
    ("num_images", "detector", "iterations"),
    [(62, True, 1000), (300, True, 4500), (62, False, 5000), (1, True, 1000)],
)
def test_a_small_set_gets_a_short_schedule(num_images: int, detector: bool, iterations: int) -> None:
    config, said = chosen(num_images, detector=detector)
    assert (config.data.batch_size, config.train.iterations) == (2, iterations)
    first, second = config.optim.milestones
    assert first / iterations == pytest.approx(210 / 270, abs=1e-3)
    assert second / iterations == pytest.approx(250 / 270, abs=1e-3)
    assert config.optim.warmup_iterations == iterations // 10
    assert config.train.evaluate_every == config.train.checkpoint_every == iterations // 5
    assert f"{iterations:,} iterations of 2" in said
    assert "270,000 iterations of 16 images" in said
    assert "\n" not in said


def test_the_set_that_a_preset_is_made_for_keeps_it() -> None:
    config, said = chosen(118_000)
    assert said == ""
    assert config == get("mask_rcnn_R_50_FPN_3x")


def test_what_is_given_stays() -> None:
    config, said = chosen(62, data__batch_size="4", optim__milestones="[7]", train__evaluate_every="3")
    assert config.data.batch_size == 4
    assert config.train.iterations == 500
    assert config.optim.milestones == (7,)
    assert config.train.evaluate_every == 3
    assert "--data.batch_size" not in said
    config, said = chosen(62, train__iterations="20")
    assert config.train.iterations == 20
    assert config.optim.milestones == (15, 18)
    assert config.optim.warmup_iterations == 2
    assert "were asked for" in said


def test_a_length_that_is_asked_for_keeps_the_preset_where_its_rate_decays() -> None:
    config, said = chosen(118_000, train__iterations="260000")
    assert said == ""
    assert config.optim.milestones == (210_000, 250_000)


def test_the_batch_is_shared_by_the_processes() -> None:
    config, _ = chosen(62, process=Process(torch.device("cpu"), rank=1, world_size=3))
    assert config.data.batch_size == 3


def test_the_fields_it_may_change_are_the_ones_it_says() -> None:
    config, _ = chosen(62)
    plain = get("mask_rcnn_R_50_FPN_3x")
    for name in CHOSEN:
        part, field = name.split(".")
        setattr(getattr(plain, part), field, getattr(getattr(config, part), field))
    assert config == plain
