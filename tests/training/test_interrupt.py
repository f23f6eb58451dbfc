"""A signal ends a training with a checkpoint, a line and a status; a process that dies ends the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn.cli.main import main
from maskrcnn.config import Config, to_json
from maskrcnn.data.synthetic import make_synthetic
from maskrcnn.errors import Interrupted
from maskrcnn.training import checkpoint as disk
from maskrcnn.training import distributed, trainer
from maskrcnn.training.interrupt import StopRequest
from maskrcnn.training.trainer import Trainer
from tests.training.kills import differences
from tests.training.ranks import run_ranks, start_ranks
from tests.training.small_run import SmallModel, batches, small_config, small_run, validate
from tests.training.test_resume import family_config


def signalling(*numbers: signal.Signals, at: int = 6) -> Any:
    """Batches, before the one of iteration `at` of which the process gets signals."""

    def stream(iteration):
        for batch in batches()(iteration):
            if batch[2][0] == at * 100:
                for number in numbers:
                    signal.raise_signal(number)
            yield batch

    return stream


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_at_the_end_of_the_iteration(tmp_path, number, status):
    config = small_config(keep_checkpoints=9)
    small_run(tmp_path / "whole", config)
    run = tmp_path / "parts"
    with pytest.raises(Interrupted) as caught:
        small_run(run, config, batches=signalling(number))
    newest = disk.checkpoints(run)[-1]
    assert newest.name == "iteration_000007"
    assert str(caught.value) == (
        f"{number.name}: stopped after 7 of 12 iterations. The checkpoint is {newest}: go on with --resume."
    )
    assert caught.value.status == status
    assert not (run / "model.safetensors").exists()
    small_run(run, config, resume=True)
    found = differences(tmp_path / "whole", run)
    assert all(f.startswith("only one has checkpoints/iteration_000007/") for f in found)


def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(tmp_path):
    """The evaluation is made when the run is resumed."""
    config = small_config(keep_checkpoints=9, checkpoint_every=12)
    small_run(tmp_path / "whole", config)
    ends = []

    def interrupted(model):
        signal.raise_signal(signal.SIGTERM)
        ends.append("the evaluation went on")

    run = tmp_path / "parts"
    with pytest.raises(Interrupted, match="stopped after 4 of 12"):
        small_run(run, config, validate=interrupted)
    assert ends == []
    small_run(run, config, resume=True)
    found = differences(tmp_path / "whole", run)
    assert all(f.startswith("only one has checkpoints/iteration_000004/") for f in found)


def test_a_second_interrupt_ends_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        small_run(tmp_path, small_config(), batches=signalling(signal.SIGINT, signal.SIGINT))
    assert not isinstance(caught.value, Interrupted)
    assert disk.checkpoints(tmp_path)[-1].name == "iteration_000006"


def test_a_signal_that_a_launcher_passes_on_does_not_end_the_writing(tmp_path, monkeypatch):
    """In several processes; in one, a second signal ends it wherever it is."""
    original = disk.save_checkpoint

    def echoing(run, checkpoint, config):
        if checkpoint.state["iteration"] == 7:
            signal.raise_signal(signal.SIGINT)
        return original(run, checkpoint, config)

    monkeypatch.setattr(disk, "save_checkpoint", echoing)
    monkeypatch.setattr(trainer, "StopRequest", lambda *, echoes: StopRequest(echoes=True))
    with pytest.raises(Interrupted, match="stopped after 7 of 12"):
        small_run(tmp_path, small_config(), batches=signalling(signal.SIGINT))
    assert disk.checkpoints(tmp_path)[-1].name == "iteration_000007"
    monkeypatch.undo()
    monkeypatch.setattr(disk, "save_checkpoint", echoing)
    with pytest.raises(KeyboardInterrupt) as caught:
        small_run(tmp_path / "one", small_config(), batches=signalling(signal.SIGINT))
    assert not isinstance(caught.value, Interrupted)


def test_signals_are_as_before_after_a_run(tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    small_run(tmp_path, small_config())
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


# --- several processes, and the command


def signalled_rank(out: Path, config: Config, bad: tuple[int, ...]) -> None:
    """Train as one process of several, of which the last alone gets the signal."""
    try:
        process = distributed.join("cpu")
        start = distributed.on_main(lambda: disk.claim(out, resume=True))
        stream = signalling(signal.SIGTERM) if process.rank else batches()
        torch.manual_seed(7)
        model = SmallModel()
        Trainer(
            model, config, out, batches=stream, validate=validate, process=process, resume_from=start
        ).run()
    finally:
        distributed.leave()


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_after_the_same_iteration(tmp_path):
    run_ranks(signalled_rank, tmp_path, small_config(), expected_exit=143)
    assert disk.checkpoints(tmp_path)[-1].name == "iteration_000007"


def command(out: Path, config: Config, event: tuple[Any, ...]) -> None:
    """Run `maskrcnn train` in this process, which at the end of an iteration gets a signal."""
    number, rank, iteration = event
    original = Trainer._record

    def record(self: Trainer, *args: Any) -> None:
        original(self, *args)
        if self.process.rank == rank and self.iteration == iteration:
            workers = [str(worker.pid) for worker in multiprocessing.active_children()]
            if number != signal.SIGKILL:  # sent to all, as by a terminal or a cluster
                subprocess.run(["kill", f"-{number:d}", *workers], check=True)
            os.kill(os.getpid(), number)

    Trainer._record = record  # pyright: ignore[reportAttributeAccessIssue]
    (out / "config.json").write_text(to_json(config))
    name = os.environ["RANK"]
    for descriptor, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(out / f"{kind}{name}", os.O_WRONLY | os.O_CREAT, 0o666), descriptor)
    words = ["train", "--config", str(out / "config.json"), "--out", str(out / "run"), "--device", "cpu"]
    raise SystemExit(main([*words, "--resume"]))


@pytest.fixture
def config(tmp_path) -> Config:
    data = make_synthetic(tmp_path / "data", num_train=4, num_val=1, size=(64, 64), seed=1)
    config = family_config("mask_rcnn_mobilenet_v2_FPN", data, {"num_workers": 1})
    config.train.iterations, config.train.checkpoint_every, config.train.evaluate_every = 3, 10, 0
    return config


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_ends_with_one_line_and_a_status(tmp_path, config, number, status):
    run_ranks(command, tmp_path, config, (number, 0, 2), expected_exit=status, count=1)
    newest = tmp_path / "run" / "checkpoints" / "iteration_000002"
    assert (tmp_path / "err0").read_text() == (
        f"maskrcnn: {number.name}: stopped after 2 of 3 iterations. The checkpoint is {newest}: go on with --resume.\n"
    )
    assert [p.name for p in disk.checkpoints(tmp_path / "run")] == ["iteration_000002"]
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_with_one_line(tmp_path, config):
    ranks = start_ranks(command, tmp_path, config, (signal.SIGKILL, 1, 2), 2)
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [1, -signal.SIGKILL]
    assert (tmp_path / "err0").read_text() == (
        "maskrcnn: process 0 of 2: the connection to another one is lost, which was killed or has failed. Start them "
        "again with --resume.\n"
    )
