"""Scores that are computed beside the next steps: the same numbers, logged and kept as if they had been at once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from maskrcnn.config import flat
from maskrcnn.errors import UserError
from maskrcnn.training import train as training
from maskrcnn.training.runlog import read_log
from tests.data.data_sets import write_set
from tests.training.small_run import small_config, small_run
from tests.training.test_broken_pictures import config_for


def later(scores: list[float], seen: list[dict[str, torch.Tensor]], release: threading.Event) -> Any:
    """Evaluation whose scores come when `release` is set."""
    coming = iter(scores)

    def validate(model: Any) -> Any:
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        value = next(coming)

        def score() -> dict[str, Any]:
            assert release.wait(30)
            return {"bbox": {"AP": 0.0}, "segm": {"AP": value}}

        return score

    return validate


def test_late_scores_keep_the_weights_that_they_are_of(tmp_path: Path) -> None:
    release, seen = threading.Event(), list[dict[str, torch.Tensor]]()
    # The first score is late: steps go on until the second evaluation, or the end, has to wait for it.
    threading.Timer(0.3, release.set).start()
    result = small_run(tmp_path, small_config(), validate=later([0.1, 0.5, 0.3], seen, release))
    best = load_file(tmp_path / "best.safetensors")
    assert all(torch.equal(best[k], seen[1][k]) for k in best)
    assert result.best["iteration"] == 8  # pyright: ignore[reportOptionalSubscript]
    log = [e for e in read_log(tmp_path / "log.jsonl") if e["kind"] == "eval"]
    assert [(e["iteration"], e["segm"]["AP"], e["best"]) for e in log] == [
        (4, 0.1, True),
        (8, 0.5, True),
        (12, 0.3, False),
    ]


def test_steps_go_on_meanwhile(tmp_path: Path) -> None:
    release, seen = threading.Event(), list[dict[str, torch.Tensor]]()
    steps_before_scores: list[bool] = []

    def score_when_asked(model: Any) -> Any:
        validate = later([0.1], seen, release)
        return validate(model)

    def batches() -> Any:
        from tests.training.small_run import batches as stream

        source = stream()

        def from_iteration(iteration: int) -> Any:
            for number, batch in enumerate(source(iteration), start=iteration):
                steps_before_scores.append(number >= 4 and not release.is_set())
                if number == 7:
                    release.set()
                yield batch

        return from_iteration

    config = small_config(iterations=8)
    config.train.evaluate_every, config.train.checkpoint_every = 4, 100
    validate = iter([score_when_asked, lambda model: {"segm": {"AP": 0.2}}])
    small_run(tmp_path, config, batches=batches(), validate=lambda model: next(validate)(model))
    assert sum(steps_before_scores) >= 3  # the steps 5 to 7 were taken before the score of step 4 was known
    log = read_log(tmp_path / "log.jsonl")
    assert [e["iteration"] for e in log if e["kind"] == "eval"] == [4, 8]


def test_an_error_beside_ends_the_run_as_one_at_once_does(tmp_path: Path) -> None:
    def validate(model: Any) -> Any:
        def score() -> dict[str, Any]:
            raise UserError("no picture with objects can be read any more.")

        return score

    with pytest.raises(UserError, match="no picture with objects"):
        small_run(tmp_path, small_config(), validate=validate)


def test_the_numbers_are_those_of_an_evaluation_at_once(tmp_path: Path) -> None:
    config = config_for(write_set(tmp_path / "set", "coco"))
    train_data, val = training.open_data(config.data, lambda line: None, config.model)
    assert val is not None
    training.adopt_classes(config, train_data, lambda line: None)
    process = training.distributed.join("cpu")
    torch.manual_seed(0)
    model = training.build_model(config.model).eval()
    said: list[str] = []
    at_once = training.validation(config, val, process, said.append)(model)
    late = training.validation(config, val, process, said.append, beside=True)(model)
    assert callable(late)
    assert isinstance(at_once, dict)
    # Losses of a second pass may round otherwise: kernels depend on where an array lies.
    numbers, expected = flat(late()), flat(at_once)
    assert numbers.keys() == expected.keys()
    for name, value in expected.items():
        near = (
            pytest.approx(value, rel=1e-5)
            if "loss" in name
            else pytest.approx(value, rel=0, abs=0, nan_ok=True)
        )
        assert numbers[name] == near, name
