"""Length of fine-tuning: a schedule for a data set that a preset was not made for.

Published schedules are for COCO's 118,000 images; 270,000 iterations of 16 would show each of 60 images 72,000
times. Where a preset means more than `TOO_MANY` passes, the rule is:

- images a step: on the CPU 2 (a preset's own, if that is at most 4); on GPUs what fits at `GIGABYTES` an image, a
  power of two, at most the preset's;
- iterations: `PASSES` over the images or `VIEWS` image views, whichever is more: fewer from a detector's weights
  than from a backbone's or random ones;
- the rate drops at the same shares of the run as in the preset and scales with the batch; warm-up takes at most a
  tenth of the run; an evaluation and a checkpoint at every fifth.

What the user sets is left alone.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from maskrcnn.config import Config
from maskrcnn.training.distributed import Process

TOO_MANY = 200
GIGABYTES = 4
PASSES = {True: 30, False: 150}  # by whether the run starts from a detector's weights
VIEWS = {True: 2000, False: 10_000}
CHOSEN = (
    "data.batch_size",
    "train.iterations",
    "optim.milestones",
    "optim.warmup_iterations",
    "train.evaluate_every",
    "train.checkpoint_every",
)


def choose_schedule(
    config: Config, num_images: int, process: Process, detector: bool, *, given: Collection[str] = ()
) -> str:
    """Fit the fields `CHOSEN` of the config to `num_images`, but for those `given`; a sentence on it, or nothing."""
    preset = config.train.iterations
    passes = preset * config.data.batch_size / num_images
    if passes <= TOO_MANY and not ("train.iterations" in given and _too_short(config)):
        return ""
    before = f"{preset:,} iterations of {config.data.batch_size} images"
    milestones, length = config.optim.milestones, _published_length(config, given)
    if "data.batch_size" not in given:
        config.data.batch_size = _batch_size(config, process)
    batch = config.data.batch_size
    if "train.iterations" not in given:
        views = max(PASSES[detector] * num_images, VIEWS[detector])
        config.train.iterations = min(preset, -(-views // batch))
    n = config.train.iterations
    if "optim.milestones" not in given:
        config.optim.milestones = tuple(max(1, round(m / length * n)) for m in milestones)
    if "optim.warmup_iterations" not in given:
        config.optim.warmup_iterations = min(config.optim.warmup_iterations, n // 10)
    for name in ("evaluate_every", "checkpoint_every"):
        every = getattr(config.train, name)
        if f"train.{name}" not in given and every > n // 5:
            setattr(config.train, name, max(1, n // 5))
    return _sentence(config, num_images, before, passes, given)


def _too_short(config: Config) -> bool:
    """Return True if the run ends before the preset's warm-up or before the last drop of its rate."""
    o, n = config.optim, config.train.iterations
    last = max(o.milestones, default=0) if o.schedule == "step" else 0
    return max(last, o.warmup_iterations) >= n


def _published_length(config: Config, given: Collection[str]) -> int:
    """Number of iterations that the preset's milestones are shares of: its own, or a tenth more than the last of
    them.
    """
    own, last = config.train.iterations, max(config.optim.milestones, default=0)
    return round(1.1 * last) if "train.iterations" in given and last >= own else own


def _batch_size(config: Config, process: Process) -> int:
    preset, shares = config.data.batch_size, process.world_size * config.optim.accumulation_steps
    if process.device.type == "cuda":
        memory = torch.cuda.get_device_properties(process.device).total_memory / 2**30
        fits = max(1, int(memory // GIGABYTES)) * process.world_size
        size = min(preset, 2 ** (fits.bit_length() - 1))
    else:
        size = preset if preset <= 4 else 2
    return max(shares, size // shares * shares)


def _sentence(config: Config, num_images: int, before: str, passes: float, given: Collection[str]) -> str:
    n, batch, o = config.train.iterations, config.data.batch_size, config.optim
    after = f"{n:,} iterations of {batch} ({n * batch / num_images:.0f} passes)"
    drops = f", rate x {o.gamma:g} at {', '.join(f'{m:,}' for m in o.milestones)}"
    extra = (drops if o.schedule == "step" else "") + f", warm-up {o.warmup_iterations}"
    unused = () if o.schedule == "step" else ("optim.milestones",)
    own = [f"--{name}" for name in CHOSEN if name not in (*given, *unused)]
    reason = (
        f"{after} were asked for"
        if "train.iterations" in given
        else f"{before} would be {passes:,.0f} passes over {num_images} images: {after} instead"
    )
    return (
        f"schedule: {reason}{extra}, evaluation every {config.train.evaluate_every}, checkpoint every "
        f"{config.train.checkpoint_every}. Choose otherwise with {', '.join(own)}."
    )
