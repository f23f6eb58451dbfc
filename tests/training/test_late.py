"""Losses read late, as on a GPU, by a queue with a lag that is forced upon the CPU: the same log, the same weights, and
a loss that is not finite ends the run before anything is kept.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskrcnn.training import trainer as loop
from maskrcnn.training.checkpoint import checkpoints, load_checkpoint
from maskrcnn.training.late import CUDA_LAG, LateLosses, StepLosses
from maskrcnn.training.runlog import read_log
from maskrcnn.training.trainer import NonFiniteLossError, Trainer
from tests.training.small_run import SmallModel, batches, small_config, small_run


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    def queue(device: torch.device) -> LateLosses:
        found = LateLosses(device)
        found.lag = CUDA_LAG
        return found

    monkeypatch.setattr(loop, "LateLosses", queue)


def lines(out: Path) -> list[dict[str, Any]]:
    """Log without what the clock says."""
    clock = ("seconds", "images_per_second", "took", "config", "message")
    return [{k: v for k, v in line.items() if k not in clock} for line in read_log(out / "log.jsonl")]


def a_step(iteration: int, value: float = 1.0) -> StepLosses:
    return StepLosses(
        ("loss",), torch.tensor([[value, 0.0]]), torch.tensor([True]), [[iteration]], 0.1, iteration
    )


def test_the_queue_keeps_its_lag() -> None:
    queue = LateLosses(torch.device("cpu"))
    assert queue.lag == 0
    queue.lag, read = 2, []
    for iteration in range(1, 6):
        queue.add(a_step(iteration))
        read.append([step.iteration for step in queue.due()])
    assert read == [[], [], [1], [2], [3]]
    assert [step.iteration for step in queue.due(lag=0)] == [4, 5]


def test_log_and_weights_are_those_of_losses_read_at_once(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    small_run(tmp_path / "at_once", small_config(log_every=1, checkpoint_every=5))
    request.getfixturevalue("late")
    small_run(tmp_path / "late", small_config(log_every=1, checkpoint_every=5))
    expected, found = lines(tmp_path / "at_once"), lines(tmp_path / "late")
    assert sorted(found, key=str) == sorted(expected, key=str)
    trained = [line["iteration"] for line in found if line["kind"] == "train"]
    assert trained == list(range(1, 13))
    before, after = (load_checkpoint(checkpoints(tmp_path / n)[-1]).model for n in ("at_once", "late"))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("bad", [4, 5, 7, 11])  # just before checkpoints and the end, and in between
def test_a_loss_that_is_not_finite_is_found_before_anything_is_kept(tmp_path: Path, bad: int) -> None:
    with pytest.raises(
        NonFiniteLossError, match=f"iteration {bad + 1}: loss_area is nan on the images {bad}00"
    ):
        small_run(tmp_path, small_config(evaluate_every=0), batches=batches(bad=(bad,)))
    details = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (details["iteration"], details["image_ids"][0]) == (bad + 1, bad * 100)
    kept = load_checkpoint(checkpoints(tmp_path)[-1])
    assert kept.state["iteration"] == bad // 3 * 3
    assert all(v.isfinite().all() for v in kept.model.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_with_such_a_loss_changes_no_weight(
    precision: str, optimizer: str, accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "check_settings", lambda *_: None)  # which refuses fp16 on a CPU
    config = small_config(precision=precision, loss_scale=8.0)
    config.optim.optimizer, config.optim.accumulation_steps = optimizer, accumulation  # pyright: ignore
    config.optim.clip_grad_norm = 1.0
    trainer = Trainer(SmallModel(), config, Path(), batches=batches())
    good, bad = next(batches()(0)), next(batches(bad=(1,))(1))
    trainer._step(*good, lr=0.01)
    weights = copy.deepcopy(trainer.model.state_dict())
    moments = copy.deepcopy(trainer.optimizer.state_dict()["state"])
    step = trainer._step(*bad, lr=0.01)
    assert step.any_not_finite().item() == 1.0
    assert_equal(trainer.model.state_dict(), weights)
    assert_equal(trainer.optimizer.state_dict()["state"], moments)
    assert trainer._step(*good, lr=0.01).any_not_finite().item() == 0.0
    assert any(not torch.equal(v, weights[k]) for k, v in trainer.model.state_dict().items())


def assert_equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_an_infinite_loss_with_finite_gradients_changes_no_weight_in_fp16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "check_settings", lambda *_: None)

    class Infinite(SmallModel):
        def forward(self, batch: Any, targets: Any) -> dict[str, Tensor]:
            losses = super().forward(batch, targets)
            return {**losses, "loss_far": self.head.bias.sum() + torch.inf}

    trainer = Trainer(Infinite(), small_config(precision="fp16"), Path(), batches=batches())
    weights = copy.deepcopy(trainer.model.state_dict())
    trainer._step(*next(batches()(0)), lr=0.01)
    assert_equal(trainer.model.state_dict(), weights)


@pytest.mark.usefixtures("late")
def test_a_signal_ends_the_run_with_all_losses_in_the_log(tmp_path: Path) -> None:
    import os
    import signal

    from maskrcnn.errors import Interrupted

    stream = batches()

    def interrupted(iteration: int) -> Iterator[Any]:
        for n, batch in enumerate(stream(iteration)):
            if n == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.raises(Interrupted):
        small_run(tmp_path, small_config(log_every=1, checkpoint_every=100), batches=interrupted)
    trained = [line["iteration"] for line in read_log(tmp_path / "log.jsonl") if line["kind"] == "train"]
    assert trained == list(range(1, 8))
    assert load_checkpoint(checkpoints(tmp_path)[-1]).state["iteration"] == 7
