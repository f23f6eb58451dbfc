"""Checks of a run's settings, alone and against those that it was started with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskrcnn.config import Config, check_bounds, flat, from_file, to_dict
from maskrcnn.errors import UserError
from maskrcnn.training.distributed import Process

# What may differ from the saved config on resume: nothing that changes a step already made, and how long to go on.
# (With a cosine or a time budget, another length moves the rate of the steps to come: it was asked for.)
FREE_ON_RESUME = {
    "data.num_workers",
    *(f"train.{name}" for name in ("iterations", "max_minutes", "early_stopping", "trackers", "log_every")),
    *(f"train.{name}" for name in ("checkpoint_every", "keep_checkpoints", "evaluate_every")),
}


FROM_THE_DATA_SET = {
    "model.class_names": "classes",
    "model.category_ids": "category ids",
    "model.box_head.class_image_counts": "number of images of each class",
    "model.keypoint_head.names": "key points",
    "model.keypoint_head.num_keypoints": "number of key points",
}


def check_settings(config: Config, process: Process) -> None:
    """Refuse settings that cannot work together, before any work.

    Raises:
        UserError: one line that names the setting.
    """
    t, o, batch = config.train, config.optim, config.data.batch_size
    check_bounds(config)
    if t.max_minutes is not None and t.max_minutes <= 0:
        raise UserError(f"--train.max_minutes: expected more than 0, got {t.max_minutes:g}.")
    if t.ema_decay is not None and not 0 < t.ema_decay < 1:
        raise UserError(f"--train.ema_decay: expected a number between 0 and 1, got {t.ema_decay:g}.")
    if t.precise_norm_batches and t.ema_decay is not None:
        raise UserError(
            "--train.precise_norm_batches: measures the weights being trained, not their average; leave out "
            "--train.ema_decay or this."
        )
    window = config.data.augment.window_share
    if window is not None and not 0 < window[0] <= window[1] <= 1:
        raise UserError(
            f"--data.augment.window_share: expected two shares, 0 < low <= high <= 1, got {window[0]:g}, {window[1]:g}."
        )
    if not 0 <= config.data.val_fraction < 1:
        raise UserError(f"--data.val_fraction: expected from 0 to below 1, got {config.data.val_fraction:g}.")
    shares = process.world_size * o.accumulation_steps
    if batch % shares:
        raise UserError(
            f"--data.batch_size: expected a multiple of {shares} ({process.world_size} processes x "
            f"{o.accumulation_steps} accumulation steps), got {batch}."
        )
    if t.cuda_graphs and (process.device.type != "cuda" or process.world_size > 1 or t.compile):
        raise UserError(
            "--train.cuda_graphs: expected one CUDA GPU and no --train.compile, got "
            f"{process.device}, {process.world_size} processes, compile {t.compile}. Leave it out."
        )
    if t.precision == "fp16" and process.device.type != "cuda":
        raise UserError("--train.precision fp16: needs CUDA for its loss scaling. On the CPU use bf16.")


def compare_configs(path: Path, config: Config) -> list[str]:
    """Sentences on the settings that have changed since `path` was written.

    Raises:
        UserError: one of them would change a step that was already made.
    """
    saved = flat(to_dict(from_file(path)))
    now = flat(to_dict(config))
    changed = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    for name, what in FROM_THE_DATA_SET.items():
        if name in changed:
            raise UserError(
                f"--data: expected the {what} of the run in {path.parent}, {_shown(saved.get(name))}, got "
                f"{_shown(now.get(name))}. Give the same data set, or start another run."
            )
    for name in changed:
        if name not in FREE_ON_RESUME:
            raise UserError(
                f"--{name}: the run in {path.parent} has {saved.get(name)!r}, got {now.get(name)!r}. Resume with the "
                "run's own setting, or start another run."
            )
    return [f"{name}: {saved[name]} before, now {now[name]}" for name in changed]


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) < 60 else f"{text[:56]} ..."
