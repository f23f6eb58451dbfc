"""A run that was interrupted ends with the same bytes, whatever model it trains."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn import presets
from maskrcnn.config import Config
from maskrcnn.data.synthetic import make_synthetic
from maskrcnn.errors import UserError
from maskrcnn.training import checkpoint as disk
from maskrcnn.training import distributed
from maskrcnn.training.runlog import read_log
from maskrcnn.training.train import train
from tests.training.kills import cut_back, differences
from tests.training.ranks import run_ranks
from tests.training.small_run import small_config, small_run

# A preset of each family, with what else is to be the same: stochastic depth is in all from the third on.
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("mask_rcnn_R_50_FPN_1x", {"ema_decay": 0.9}),
    ("mask_rcnn_mobilenet_v2_FPN", {"accumulation_steps": 2}),
    ("mask_rcnn_deit_tiny_fpn_3x_coco", {"num_workers": 2}),
    ("mask_rcnn_deit_adapter_tiny_fpn_1x_coco", {"precise_norm_batches": 1}),
    ("mask_rcnn_internimage_t_fpn_1x_coco", {"ema_decay": 0.9, "accumulation_steps": 2}),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("data"), num_train=6, num_val=1, size=(64, 64), seed=1)


def family_config(preset: str, data: Path, settings: dict[str, Any]) -> Config:
    """Config of the tiny preset on a few pictures; with an evaluation only where that changes norms, since it takes
    longest.
    """
    config = presets.get(preset, tiny=True)
    evaluated = "precise_norm_batches" in settings
    config.data.train = str(data if evaluated else data / "annotations" / "train.json")
    config.data.val_fraction, config.data.batch_size = 0.0, 4
    config.data.num_workers = settings.get("num_workers", 0)
    config.data.augment.min_sizes, config.data.augment.crop_size = (64,), None
    config.model.input.min_size = 64
    config.optim.warmup_iterations, config.optim.clip_grad_norm = 2, 1.0
    config.optim.accumulation_steps = settings.get("accumulation_steps", 1)
    t = config.train
    t.iterations, t.checkpoint_every, t.keep_checkpoints, t.log_every, t.evaluate_every = 2, 1, 9, 2, 1
    t.ema_decay = settings.get("ema_decay")
    t.precise_norm_batches = settings.get("precise_norm_batches", 0)
    return config


def train_quietly(out: Path, config: Config, bad: tuple[int, ...] = ()) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        train(config, out, device="cpu", resume=True)


def train_twice(out: Path, config: Config, bad: tuple[int, ...]) -> None:
    """Train to the end, and again from the first checkpoint on, in the same processes: starting them takes longer."""
    leave, distributed.leave = distributed.leave, lambda: None
    train_quietly(out / "whole", copy.deepcopy(config))
    distributed.on_main(lambda: cut_back(out / "whole", out / "parts", 1))
    train_quietly(out / "parts", config)
    leave()


@pytest.mark.parametrize(("preset", "settings"), FAMILIES)
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, data, preset, settings):
    torch.set_num_threads(1)
    train_quietly(tmp_path / "whole", family_config(preset, data, settings))
    cut_back(tmp_path / "whole", tmp_path / "parts", 1)
    train_quietly(tmp_path / "parts", family_config(preset, data, settings))
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "settings"), FAMILIES)
def test_a_resumed_run_of_two_processes_ends_with_the_same_bytes(tmp_path, data, preset, settings):
    run_ranks(train_twice, tmp_path, family_config(preset, data, settings))
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


def test_two_runs_have_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        small_run(tmp_path / name, small_config(ema_decay=0.9))
    assert differences(tmp_path / "a", tmp_path / "b") == []


def test_norms_that_an_evaluation_renewed_are_in_the_checkpoint_before_it(tmp_path):
    """Killed after the evaluation, the run does not evaluate again, and so would not renew them again."""
    config = small_config(precise_norm_batches=2, checkpoint_every=4, keep_checkpoints=9)
    small_run(tmp_path / "whole", config)
    cut_back(tmp_path / "whole", tmp_path / "parts", 4)
    small_run(tmp_path / "parts", config, resume=True)
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


def test_a_line_of_the_log_after_resuming_averages_all_since_the_line_before(tmp_path):
    config = small_config(log_every=5, checkpoint_every=3, keep_checkpoints=9, evaluate_every=0)
    small_run(tmp_path / "whole", config)
    cut_back(tmp_path / "whole", tmp_path / "parts", 3)
    small_run(tmp_path / "parts", config, resume=True)
    left, right = (
        [e["losses"] for e in read_log(tmp_path / x / "log.jsonl") if e["kind"] == "train"]
        for x in ("whole", "parts")
    )
    assert left == right
    assert len(left) == 2


def test_other_numbers_of_threads_and_processes_are_told(tmp_path):
    torch.set_num_threads(1)
    small_run(tmp_path, small_config(iterations=3))
    try:
        torch.set_num_threads(2)
        small_run(tmp_path, small_config(iterations=4), resume=True)
    finally:
        torch.set_num_threads(1)
    assert "2 threads, 1 before: not the same bits as without the interruption" in events(tmp_path)


# --- damaged and foreign files


def flip_a_bit(path: Path, place: int = -9) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "state.pt", "clock.json"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, name):
    config = small_config(ema_decay=0.9, keep_checkpoints=9)
    small_run(tmp_path / "whole", config)
    run = tmp_path / "parts"
    cut_back(tmp_path / "whole", run, 9)
    damaged = run / "checkpoints" / "iteration_000009"
    flip_a_bit(damaged / name)
    said: list[str] = []
    assert disk.claim(run, resume=True, say=said.append) == run / "checkpoints" / "iteration_000006"
    assert said == [
        f"{damaged / name}: damaged checkpoint file (another checksum than it was written with), its folder is "
        "iteration_000009.damaged now; going on from iteration_000006"
    ]
    assert (run / "last").read_text() == "checkpoints/iteration_000006\n"
    small_run(run, config, resume=True)
    shutil.rmtree(run / "checkpoints" / "iteration_000009.damaged")
    assert differences(tmp_path / "whole", run) == []


def test_what_was_damaged_is_told_in_the_log(tmp_path):
    torch.set_num_threads(1)
    small_run(tmp_path, small_config())
    flip_a_bit(tmp_path / "checkpoints" / "iteration_000012" / "state.pt")
    said: list[str] = []
    disk.claim(tmp_path, resume=True, say=said.append)
    small_run(tmp_path, small_config(), resume=True, notes=said)
    assert said[0] in events(tmp_path)


def test_with_every_checkpoint_damaged_a_run_is_not_silently_begun_anew(tmp_path):
    small_run(tmp_path, small_config())
    for folder in disk.checkpoints(tmp_path):
        flip_a_bit(folder / "state.pt")
    kept = disk.checkpoints(tmp_path)
    with pytest.raises(
        UserError, match=r"iteration_000012/state\.pt: damaged .* no other checkpoint is whole"
    ):
        disk.claim(tmp_path, resume=True)
    assert disk.checkpoints(tmp_path) == kept


def test_a_checkpoint_of_an_older_version_goes_on(tmp_path):
    """Without checksums and without the clock's file; random numbers of the first process alone."""
    config = small_config(keep_checkpoints=9)
    small_run(tmp_path / "whole", config)
    run = tmp_path / "parts"
    cut_back(tmp_path / "whole", run, 6)
    for folder in disk.checkpoints(run):
        (folder / "SHA256SUMS").unlink()
        state = torch.load(folder / "state.pt", weights_only=True)
        clock = json.loads((folder / "clock.json").read_text())
        (folder / "clock.json").unlink()
        old = {name: state[name] for name in ("iteration", "optimizer", "scaler")}  # nor the pictures' names
        rng = state["generators"][0]["cpu"]
        torch.save({**old, "seconds": clock["seconds"], "rng": rng, "cuda_rng": None}, folder / "state.pt")
    small_run(run, config, resume=True)
    found = differences(tmp_path / "whole", run)
    assert all(
        f.startswith(("only one has checkpoints/iteration_00000", "checkpoints/iteration_00000"))
        for f in found
    )
    (run / "checkpoints" / "iteration_000012" / "state.pt").write_bytes(b"half")
    (run / "checkpoints" / "iteration_000012" / "SHA256SUMS").unlink()
    assert disk.claim(run, resume=True, say=str) == run / "checkpoints" / "iteration_000009"


def test_an_old_checkpoint_that_a_kill_left_is_removed_at_the_end(tmp_path):
    small_run(tmp_path / "whole", small_config(keep_checkpoints=2))
    small_run(tmp_path / "more", small_config(keep_checkpoints=3))
    small_run(tmp_path / "more", small_config(keep_checkpoints=2), resume=True)
    assert differences(tmp_path / "whole", tmp_path / "more") == []


def test_copies_and_lines_of_others_are_ignored(tmp_path):
    config = small_config(keep_checkpoints=2)
    small_run(tmp_path / "whole", config)
    run = tmp_path / "parts"
    cut_back(tmp_path / "whole", run, 9)
    shutil.copytree(run / "checkpoints" / "iteration_000009", run / "checkpoints" / "iteration_000009 (copy)")
    (run / "checkpoints" / "iteration_best").mkdir()
    log = run / "log.jsonl"
    lines = log.read_text().splitlines()
    foreign = ["not json", "[1]", "3", '{"loss": 1}', '{"kind": "train", "iteration": "4"}', "[" * 100_000]
    log.write_text("\n".join([*foreign, *lines[:4], "\udcff", *lines[4:]]), errors="surrogateescape")
    small_run(run, config, resume=True)
    shutil.rmtree(run / "checkpoints" / "iteration_000009 (copy)")
    (run / "checkpoints" / "iteration_best").rmdir()
    assert [f for f in differences(tmp_path / "whole", run) if "iteration_000009" not in f] == []


def test_a_data_set_whose_classes_changed_is_refused_in_one_line(tmp_path, data):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    config = family_config("mask_rcnn_mobilenet_v2_FPN", folder, {})
    config.train.iterations, config.train.evaluate_every = 1, 0
    train_quietly(tmp_path / "run", config)
    path = folder / "annotations" / "train.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 99, "name": "comet"})
    path.write_text(json.dumps(content))
    config = family_config("mask_rcnn_mobilenet_v2_FPN", folder, {})
    with pytest.raises(UserError, match=r"--data: expected the classes .* got .*comet") as caught:
        train_quietly(tmp_path / "run", config)
    assert "\n" not in str(caught.value)


def test_other_pictures_of_the_same_classes_are_told(tmp_path, data):
    folder, told = tmp_path / "data", "--data: other training pictures, or another order of them, than before"
    shutil.copytree(data, folder)
    config = family_config("mask_rcnn_mobilenet_v2_FPN", folder, {})
    config.train.iterations = 1
    train_quietly(tmp_path / "run", config)
    config.train.iterations = 2
    train_quietly(tmp_path / "run", config)
    assert told not in events(tmp_path / "run")
    path = folder / "annotations" / "train.json"
    content = json.loads(path.read_text())
    left_out = content["images"].pop()
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != left_out["id"]]
    path.write_text(json.dumps(content))
    config.train.iterations = 3
    train_quietly(tmp_path / "run", config)
    assert told in events(tmp_path / "run")


def events(run: Path) -> list[str]:
    return [e["message"] for e in read_log(run / "log.jsonl") if e["kind"] == "event"]
