"""Random number generators of training: where they begin, and their states in a checkpoint, one entry a process."""

from __future__ import annotations

from typing import Any

import torch

from maskrcnn.training.distributed import Process

State = dict[str, Any]  # cpu: the generator's state; cuda: that of the process's device, or None


def seed_generators(seed: int, process: Process) -> None:
    """Seed the random number generators, each process with numbers of its own."""
    torch.manual_seed(seed + process.rank)


def generator_state(process: Process) -> State:
    """State of this process's generators, for a checkpoint."""
    cuda = process.device.type == "cuda"
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(process.device) if cuda else None}


def restore_generators(state: dict[str, Any], process: Process) -> bool:
    """Set this process's generators to those of a checkpoint's `state`; False where it has none for it.

    That is so after a change of the number of processes, and for all but the first in older checkpoints.
    """
    kept: list[State] = state.get("generators") or [{"cpu": state["rng"], "cuda": state["cuda_rng"]}]
    if process.rank >= len(kept):
        return False
    torch.set_rng_state(kept[process.rank]["cpu"])
    cuda = kept[process.rank]["cuda"]
    if cuda is not None and process.device.type == "cuda":
        torch.cuda.set_rng_state(cuda, process.device)
    return True
