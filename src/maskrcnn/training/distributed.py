"""Processes started by `torchrun`: their ranks, and the few exchanges that training needs.

With one process every function here is the identity, so that callers need no second path.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from maskrcnn import processor
from maskrcnn.errors import UserError

T = TypeVar("T")

_LOST = re.compile(r"gloo/|NCCL|Connection (closed|reset) by peer|Broken pipe", re.IGNORECASE)


@dataclass(frozen=True)
class Process:
    """This process among `world_size`; rank 0 speaks and writes."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def choose_device(name: str | None, local_rank: int = 0) -> torch.device:
    """Device of this process: `name` as PyTorch knows it, else the first GPU; each process takes the next one.

    Raises:
        UserError: no such kind of device, or none on this machine.
    """
    device = processor.find_device(name)
    if device.type == "cuda":
        return processor.find_device(f"cuda:{local_rank if device.index is None else device.index}")
    return device


def join(device: str | None = None) -> Process:
    """Join the processes that `torchrun` started (gloo on the CPU, NCCL on CUDA), or be the only one."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1:
        return Process(chosen)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Process(chosen, dist.get_rank(), dist.get_world_size())


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class LostProcessError(RuntimeError):
    """Another process of the group has died; the message is one line."""


@contextlib.contextmanager
def told_of_lost_processes() -> Iterator[None]:
    """Turn what gloo and NCCL raise when another process has died, which is a trace of C++, into one line.

    Raises:
        LostProcessError: for such an error in the block.
    """
    try:
        yield
    except RuntimeError as e:
        if not dist.is_initialized() or not (isinstance(e, dist.DistError) or _LOST.search(str(e))):
            raise
        raise LostProcessError(
            f"process {dist.get_rank()} of {dist.get_world_size()}: the connection to another one is lost, which was "
            "killed or has failed. Start them again with --resume."
        ) from e


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """The mean over processes, in place. A NaN or infinity of one process reaches all."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


def mean_of_each(_: None, bucket):  # type: ignore[no-untyped-def]  # PyTorch compares annotations, not their text
    """Average gradients over processes, each on its own: a hook of `DistributedDataParallel`.

    Without it buckets of them are summed, in an order that depends on a gradient's place in its bucket; the places
    change after the first step, so that a resumed run of three processes or more would not have the same bits.
    """
    buffer: torch.Tensor = bucket.buffer().div_(dist.get_world_size())
    works = [dist.all_reduce(gradient, async_op=True) for gradient in bucket.gradients()]
    return torch.futures.collect_all([w.get_future() for w in works if w]).then(lambda _: buffer)


def from_main(value: T) -> T:
    """Rank 0's value of anything that pickles, on every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_main(work: Callable[[], T]) -> T:
    """Do `work` on rank 0 only; every process gets its result, or its `UserError`."""
    if not dist.is_initialized():
        return work()
    result: Any = None
    if dist.get_rank() == 0:
        try:
            result = work()
        except UserError as e:
            result = e
    result = from_main(result)
    if isinstance(result, UserError):
        raise result
    return result


def gather(value: T) -> list[T]:
    """Every process's value, in the order of ranks, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
