"""Losses of training steps, read when they have come from the device, so that the host need not wait for it.

On a CUDA device the losses of a step are read two steps later: the host hands out work ahead, and the device has some
to do at all times. Two is enough for that, bounds the memory of what is on its way, and is the same on every process,
so that all of them find out the same in the same step. Elsewhere they are read at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CUDA_LAG = 2  # steps


@dataclass(slots=True)
class StepLosses:
    """Losses of one optimiser step of P micro-batches with T terms, on the device or on their way from it.

    means (P, T + 1): over processes, and the share of processes that were asked to stop; finite (P,) bool: this
    process's own are. ids: the images of each micro-batch.
    """

    names: tuple[str, ...]
    means: Tensor
    finite: Tensor
    ids: list[list[Any]]
    lr: float
    iteration: int = 0  # steps done with this one
    seconds: float = 0.0
    arrived: torch.cuda.Event | None = None

    def any_not_finite(self) -> Tensor:
        """Scalar 1.0 on the device if any process has a loss that is NaN or infinite, else 0.0."""
        return 1.0 - self.means[:, :-1].isfinite().all().float()

    def to_host(self) -> None:
        """Start the copy to the host's memory."""
        if self.means.device.type == "cuda":  # into pinned memory, as these copies do not wait
            self.means = self.means.to("cpu", non_blocking=True)
            self.finite = self.finite.to("cpu", non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def read(self) -> list[list[float]]:
        """Numbers of each micro-batch, of `means`; waits for the copy."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.means.tolist()


class LateLosses:
    """Queue of the steps whose losses nobody has read yet."""

    def __init__(self, device: torch.device) -> None:
        self.lag = CUDA_LAG if device.type == "cuda" else 0
        self._steps: deque[StepLosses] = deque()

    def add(self, step: StepLosses) -> None:
        step.to_host()
        self._steps.append(step)

    def due(self, lag: int | None = None) -> Iterator[StepLosses]:
        """Take out the steps, oldest first, up to the last `lag` of them, by default this queue's own."""
        while len(self._steps) > (self.lag if lag is None else lag):
            yield self._steps.popleft()
