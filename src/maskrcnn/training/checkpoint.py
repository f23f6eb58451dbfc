"""Files of a run, written so that no moment of interruption leaves half a file behind.

    RUN/config.json                       the resolved config
    RUN/log.jsonl                         see `training.runlog`
    RUN/checkpoints/iteration_000500/     model.safetensors, ema.safetensors (with ema_decay), state.pt, clock.json,
                                          SHA256SUMS: the others' checksums, compared when they are read
    RUN/last                              text: the newest checkpoint's folder, relative to RUN
    RUN/best.safetensors                  the weights with the best validation mask AP
    RUN/model.safetensors                 the weights at the end

Weight files are safetensors whose metadata holds the `ModelConfig` as JSON under "config". `state.pt` holds
plain tensors, numbers and dicts, so that `torch.load(weights_only=True)` reads it. What a clock says is in
`clock.json` and the log alone: every other file of two runs with the same settings is the same, byte for byte (on a
CPU, with as many threads and processes). A file or checkpoint folder is written under a hidden name beside its place,
flushed to the disk, and renamed: what has its name is whole. A checkpoint that is damaged later becomes
`iteration_000500.damaged`, and resuming goes on from the one before.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn.config import ModelConfig
from maskrcnn.errors import UserError
from maskrcnn.files import as_user_error, atomic_path, check_writable_folder, sync, write_atomic
from maskrcnn.weights.checksums import NAME as CHECKSUMS
from maskrcnn.weights.checksums import DamagedError, check_folder, write_checksums
from maskrcnn.weights.write import as_os_error, write_weights


@dataclass(slots=True)
class Checkpoint:
    """One point of a run from which training goes on exactly as if it had not stopped.

    model: all parameters and buffers; average: the averaged weights, if any;
    state: iteration, optimizer, scaler, generators, window: whatever else the loop needs;
    clock: seconds of training.
    """

    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    state: dict[str, Any]
    clock: dict[str, float]


# --- whole or not at all


def save_checkpoint(run: Path, checkpoint: Checkpoint, config: ModelConfig) -> Path:
    """Write a checkpoint folder whole or not at all, point `RUN/last` at it, and return it.

    Raises:
        UserError: it cannot be written, the disk being full, say; what was there before is still there.
    """
    folder = run / "checkpoints" / f"iteration_{checkpoint.state['iteration']:06d}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        with as_user_error(folder):
            temporary.mkdir(parents=True)
            write_weights(temporary / "model.safetensors", checkpoint.model, config)
            if checkpoint.average is not None:
                write_weights(temporary / "ema.safetensors", checkpoint.average, config)
            # Into an open file: given a path, torch.save writes its (random) name into the file.
            with atomic_path(temporary / "state.pt") as path, path.open("wb") as file, as_os_error():
                torch.save(checkpoint.state, file)
            write_atomic(temporary / "clock.json", json.dumps(checkpoint.clock) + "\n")
            write_checksums(temporary)
            os.replace(temporary, folder)
            sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    write_atomic(run / "last", f"{folder.relative_to(run)}\n")
    return folder


# --- reading back


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoint folders of a run, oldest first. Copies and others' folders beside them do not count."""
    found = [
        p for p in (run / "checkpoints").glob("iteration_*") if re.fullmatch(r"iteration_\d{6,}", p.name)
    ]
    return sorted(found, key=iteration_of)


def iteration_of(folder: Path) -> int:
    return int(folder.name.removeprefix("iteration_"))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, as it was written.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        return _read(folder)
    except DamagedError as e:
        raise UserError(
            f"{e.path}: damaged checkpoint file ({e.reason}). Delete its folder to go on from the one before."
        ) from None


def _read(folder: Path) -> Checkpoint:
    from safetensors.torch import load_file

    check_folder(folder)
    path = folder / "model.safetensors"
    try:
        model = load_file(path)
        path = folder / "ema.safetensors"
        average = load_file(path) if path.exists() else None
        path = folder / "state.pt"
        state = torch.load(path, map_location="cpu", weights_only=True)
        path = folder / "clock.json"
        # Older checkpoints have it in the state.
        clock = json.loads(path.read_text()) if path.exists() else {"seconds": state["seconds"]}
    except Exception as e:  # safetensors, pickle and zip each have their own errors
        raise DamagedError(path, str(e).splitlines()[0] if str(e) else type(e).__name__) from None
    return Checkpoint(model, average, state, clock)


def newest_whole(run: Path, say: Callable[[str], object]) -> Path | None:
    """Find the newest checkpoint whose files have the checksums they were written with; None where there is none yet.

    Damaged ones after it are told and renamed, so that the run can write its own in their places.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    damaged: list[DamagedError] = []
    for folder in reversed(checkpoints(run)):
        try:
            check_folder(folder)
            if not (folder / CHECKSUMS).exists():  # an older version's: all that can be tried is to read it
                _read(folder)
        except DamagedError as e:
            damaged.append(e)
            continue
        for e in damaged:
            told = _put_aside(e.path.parent)
            say(f"{e.path}: damaged checkpoint file ({e.reason}), {told}; going on from {folder.name}")
        write_atomic(run / "last", f"{folder.relative_to(run)}\n")
        return folder
    if damaged:
        raise UserError(
            f"{damaged[0].path}: damaged checkpoint file ({damaged[0].reason}), and no other checkpoint is whole. "
            "Start another run, or delete the folder checkpoints to start this one again."
        )
    return None


def _put_aside(folder: Path) -> str:
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    return f"its folder is {aside.name} now"


def remove_old(run: Path, keep: int) -> None:
    """Leave the newest `keep` checkpoints."""
    for folder in checkpoints(run)[: -max(keep, 1)]:
        doomed = folder.with_name(f".{folder.name}.tmp")  # so that half a removal is no checkpoint
        with as_user_error(folder):
            os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


# --- before the work


def claim(run: Path, *, resume: bool, say: Callable[[str], object] = print) -> Path | None:
    """Make sure that the run's folder can be written; the checkpoint to go on from, if there is one.

    Whoever calls it holds the folder (`training.lock`): what looks like left by a kill is removed.

    Raises:
        UserError: the folder holds something and `resume` is False, or is no run; it cannot be written; every
            checkpoint is damaged.
    """
    check_writable_folder(run)
    content = [p.name for p in run.iterdir() if not p.name.startswith(".")]
    if content and not resume:
        raise UserError(f"--out {run}: the folder is not empty. Choose another, or go on with --resume.")
    if content and not (run / "config.json").exists():
        raise UserError(f"--out {run}: the folder holds no run to resume (no config.json). Choose another.")
    for path in [*run.glob(".*.tmp*"), *(run / "checkpoints").glob(".*.tmp")]:  # left by a kill
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return newest_whole(run, say)


def bytes_to_keep(model: nn.Module, moments: int, average: bool, checkpoints_kept: int) -> int:
    """Disk space a run takes at most: checkpoints (one more while it is written), best and final weights."""
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    one = weights * (1 + average) + trained * moments
    return one * (checkpoints_kept + 1) + 2 * weights
