"""Checkpoints are whole or absent, at whatever moment the process dies."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maskrcnn.config import ModelConfig
from maskrcnn.engine import checkpoint as disk
from maskrcnn.engine.runlog import RunLog, read_log
from maskrcnn.errors import UserError
from tests.engine.small_run import PRELOAD, small_config, small_run

CONFIG = ModelConfig(name="small")


def some_checkpoint(iteration: int = 5, value: float = 1.0) -> disk.Checkpoint:
    weights = {"w": torch.full((3, 4, 2, 2), value).to(memory_format=torch.channels_last)}
    return disk.Checkpoint(
        weights, {"w": weights["w"] * 2}, {"iteration": iteration, "rng": torch.get_rng_state()}
    )


def test_a_checkpoint_comes_back_as_it_went(tmp_path):
    folder = disk.save_checkpoint(tmp_path, some_checkpoint(), CONFIG)
    back = disk.load_checkpoint(folder)
    assert torch.equal(back.model["w"], torch.ones(3, 4, 2, 2))
    assert torch.equal(back.average["w"], torch.full((3, 4, 2, 2), 2.0))
    assert back.state["iteration"] == 5
    assert torch.equal(back.state["rng"], torch.get_rng_state())
    assert disk.checkpoints(tmp_path) == [folder]
    assert (tmp_path / "last").read_text() == "checkpoints/iteration_000005\n"


def test_older_checkpoints_go(tmp_path):
    for iteration in (5, 999_999, 1_000_000):
        disk.save_checkpoint(tmp_path, some_checkpoint(iteration), CONFIG)
    disk.remove_old(tmp_path, 2)
    assert [disk.iteration_of(f) for f in disk.checkpoints(tmp_path)] == [999_999, 1_000_000]


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, name, damage):
    folder = disk.save_checkpoint(tmp_path, some_checkpoint(), CONFIG)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(
        {"cut": content[: len(content) // 2], "garbage": b"x" * 500, "empty": b""}[damage]
    )
    with pytest.raises(UserError, match=f"{name}: damaged.*Delete") as caught:
        disk.load_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", range(6))
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, call):
    before = disk.save_checkpoint(tmp_path, some_checkpoint(5), CONFIG)
    calls = iter(range(100))
    flush = os.fsync

    def full(descriptor):
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left"):
        disk.save_checkpoint(tmp_path, some_checkpoint(6), CONFIG)
    monkeypatch.undo()
    assert disk.checkpoints(tmp_path) == [before]
    assert disk.load_checkpoint(before).state["iteration"] == 5
    assert not list(tmp_path.rglob(".*"))


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path):
    log = RunLog(tmp_path, resume_at=None)
    for iteration in range(5):
        log.write("train", iteration, loss=float("nan"))
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "itera')  # a kill in the middle of a line
    log = RunLog(tmp_path, resume_at=2)
    log.write("train", 3, loss=1.0)
    log.close()
    lines = read_log(tmp_path / "log.jsonl")
    assert [e["iteration"] for e in lines] == [0, 1, 2, 3]
    assert lines[0]["loss"] is None


# --- killed with SIGKILL


def child(out: Path, die_at_flush: int | None) -> None:
    """Run or resume; die without warning at the given call of fsync, of which a checkpoint makes many."""
    torch.set_num_threads(1)
    if die_at_flush is not None:
        calls, flush = iter(range(1, 1000)), os.fsync

        def flush_or_die(descriptor):
            if next(calls) == die_at_flush:
                os.kill(os.getpid(), signal.SIGKILL)
            flush(descriptor)

        os.fsync = flush_or_die
    small_run(out, small_config(ema_decay=0.9, iterations=12), resume=True)


def run_child(out: Path, die_at_flush: int | None = None, kill_after: float = 120) -> int | None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=child, args=(out, die_at_flush))
    process.start()
    process.join(kill_after)
    process.kill()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    small_run(out, small_config(ema_decay=0.9, iterations=12))
    return out


def assert_same_end(a: Path, b: Path) -> None:
    last = Path("checkpoints", "iteration_000012")
    for name in (
        "model.safetensors",
        "best.safetensors",
        last / "model.safetensors",
        last / "ema.safetensors",
    ):
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[k], right[k]) for k in left), name
    assert told(a) == told(b)


def told(run: Path) -> list[tuple[str, int]]:
    entries = read_log(run / "log.jsonl")
    return [(e["kind"], e["iteration"]) for e in entries if e["kind"] in ("train", "eval")]


@pytest.mark.slow
def test_killed_at_every_flush_and_resumed_the_run_ends_with_the_same_bits(tmp_path, whole):
    """Each child dies at a later flush to the disk: in every file of a checkpoint, in its renaming, in the log, in
    best.safetensors, in the final weights. The last one needs no more flushes than it is given, and ends."""
    run, deaths = tmp_path / "run", 0
    for flush in range(1, 200):
        started = time.monotonic()
        code = run_child(run, die_at_flush=flush)
        assert time.monotonic() - started < 120, "hung"
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
        for folder in disk.checkpoints(run):
            disk.load_checkpoint(folder)
    assert deaths > 10
    assert_same_end(whole, run)


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_the_run_ends_with_the_same_bits(tmp_path, whole):
    run, dice, killed = tmp_path / "run", random.Random(0), 0
    started = time.monotonic()
    assert run_child(tmp_path / "timed") == 0
    duration = time.monotonic() - started  # so that kills fall into the run on machines of any speed
    for _ in range(40):
        code = run_child(run, kill_after=dice.uniform(0.1, 0.8) * duration)
        killed += code == -signal.SIGKILL
        if code == 0:
            break
    else:
        assert run_child(run) == 0
    assert killed >= 1
    assert_same_end(whole, run)
