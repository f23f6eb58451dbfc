"""Checkpoints are whole or absent, and damage that comes later is noticed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from maskrcnn.config import ModelConfig
from maskrcnn.errors import UserError
from maskrcnn.training import checkpoint as disk
from maskrcnn.training.runlog import RunLog, read_log
from maskrcnn.weights.load import read_weights
from maskrcnn.weights.write import write_weights

CONFIG = ModelConfig(name="small")


def some_checkpoint(iteration: int = 5, value: float = 1.0) -> disk.Checkpoint:
    weights = {"w": torch.full((3, 4, 2, 2), value).to(memory_format=torch.channels_last)}
    state = {"iteration": iteration, "rng": torch.get_rng_state()}
    return disk.Checkpoint(weights, {"w": weights["w"] * 2}, state, {"seconds": 7.5})


def test_a_checkpoint_comes_back_as_it_went(tmp_path):
    folder = disk.save_checkpoint(tmp_path, some_checkpoint(), CONFIG)
    back = disk.load_checkpoint(folder)
    assert torch.equal(back.model["w"], torch.ones(3, 4, 2, 2))
    assert torch.equal(back.average["w"], torch.full((3, 4, 2, 2), 2.0))  # pyright: ignore[reportOptionalSubscript]
    assert back.state["iteration"] == 5
    assert torch.equal(back.state["rng"], torch.get_rng_state())
    assert back.clock == {"seconds": 7.5}
    assert disk.checkpoints(tmp_path) == [folder]
    assert (tmp_path / "last").read_text() == "checkpoints/iteration_000005\n"


def test_older_checkpoints_go(tmp_path):
    for iteration in (5, 999_999, 1_000_000):
        disk.save_checkpoint(tmp_path, some_checkpoint(iteration), CONFIG)
    disk.remove_old(tmp_path, 2)
    assert [disk.iteration_of(f) for f in disk.checkpoints(tmp_path)] == [999_999, 1_000_000]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "state.pt", "clock.json", "SHA256SUMS"]
)
def test_a_flipped_bit_anywhere_is_noticed(tmp_path, name):
    folder, dice = disk.save_checkpoint(tmp_path, some_checkpoint(), CONFIG), random.Random(0)
    content = (folder / name).read_bytes()
    for place in dice.sample(range(len(content)), min(50, len(content))):
        damaged = bytearray(content)
        damaged[place] ^= 1 << dice.randrange(8)
        (folder / name).write_bytes(damaged)
        with pytest.raises(UserError, match="damaged checkpoint file"):
            disk.load_checkpoint(folder)
    (folder / name).write_bytes(content)
    disk.load_checkpoint(folder)


def test_the_checksums_are_those_of_sha256sum(tmp_path):
    folder = disk.save_checkpoint(tmp_path, some_checkpoint(), CONFIG)
    content = (folder / "model.safetensors").read_bytes()
    assert (
        f"{hashlib.sha256(content).hexdigest()}  model.safetensors\n" in (folder / "SHA256SUMS").read_text()
    )


def test_a_weight_file_of_a_damaged_checkpoint_is_refused(tmp_path):
    folder = disk.save_checkpoint(tmp_path, some_checkpoint(), CONFIG)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    for given in (path, tmp_path):
        with pytest.raises(UserError, match=r"model\.safetensors: expected .* checksum"):
            read_weights(given)


@pytest.mark.parametrize("iteration", range(4))
def test_metadata_is_in_a_fixed_order(tmp_path, iteration):
    path = tmp_path / "file.safetensors"
    write_weights(path, {"w": torch.ones(1)}, CONFIG, é="ü\n\x1f", zebra=1, apple=2, middle=[3])
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["é"]) == "ü\n\x1f"
    header = path.read_bytes()[8:]
    names = json.JSONDecoder().raw_decode(header.decode(errors="replace"))[0]["__metadata__"]
    assert list(names) == sorted(names)
    assert torch.equal(load_file(path)["w"], torch.ones(1))


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


@pytest.mark.parametrize("call", range(10))
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


@pytest.mark.parametrize("call", ["mkdir", "replace"])
def test_a_folder_that_cannot_be_made_is_told_and_leaves_nothing(tmp_path, monkeypatch, call):
    """Every process hears of a `UserError`; of anything else only that the first one is lost."""
    disk.save_checkpoint(tmp_path, some_checkpoint(3), CONFIG)

    def full(*args, **kwargs):
        if Path(args[0]).name == ".iteration_000004.tmp":
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args, **kwargs)

    owner = Path if call == "mkdir" else os
    original = getattr(owner, call)
    monkeypatch.setattr(owner, call, full)
    with pytest.raises(UserError, match="iteration_000004: cannot write: no space left on device"):
        disk.save_checkpoint(tmp_path, some_checkpoint(4), CONFIG)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["iteration_000003"]
