"""Training batches brought to a GPU ahead of time, while it works on the batch before.

Images travel as uint8 from pinned memory, on a stream of their own, and are resized, flipped and coloured on it.
Elsewhere than on a CUDA device a batch is handed out as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from maskrcnn.data.loader import TrainBatch
from maskrcnn.data.pixel_steps import Noted
from maskrcnn.ops.transfer import pinned
from maskrcnn.structures import GroundTruth

T = TypeVar("T")


def on_device_ahead(batches: Iterator[TrainBatch], device: torch.device) -> Iterator[TrainBatch]:
    """Hand out the batches with their tensors on a CUDA device, each copied while the one before it is worked on."""
    if device.type != "cuda":
        return batches
    stream = torch.cuda.Stream(device)

    def copy(batch: TrainBatch) -> TrainBatch:
        images, targets, ids = batch
        with torch.cuda.stream(stream):
            there = [_arrived(image, device) for image in images]
            return there, [_pinned_target(target).to(device) for target in targets], ids

    def arrive(batch: TrainBatch) -> TrainBatch:
        now = torch.cuda.current_stream(device)
        now.wait_stream(stream)  # on the device; the host goes on
        for tensor in (*batch[0], *(t for target in batch[1] for t in _tensors(target))):
            tensor.record_stream(now)  # its memory is not given away while it is used there
        return batch

    return map(arrive, one_ahead(batches, copy))


def one_ahead(items: Iterator[T], begin: Callable[[T], T]) -> Iterator[T]:
    """Yield `begin` of each item, begun before the item before it is handed out.

    An error of the item that comes next is raised when that one is asked for, as it is without reading ahead.
    """

    def coming() -> T | Exception:
        try:
            return begin(next(items))
        except Exception as e:  # the end of the items too
            return e

    following = coming()
    while not isinstance(following, Exception):
        current, following = following, coming()
        yield current
    if not isinstance(following, StopIteration):
        raise following


def _arrived(image: Any, device: torch.device) -> Tensor:
    """Move an image to a device; steps that were only noted are taken there."""
    if isinstance(image, Noted):
        return image.pin_memory().taken(device)
    return pinned(image).to(device, non_blocking=True)


def _pinned_target(target: GroundTruth) -> GroundTruth:
    points = target.keypoints
    keypoints = None if points is None else pinned(points)
    return replace(target, boxes=pinned(target.boxes), labels=pinned(target.labels), keypoints=keypoints)


def _tensors(target: GroundTruth) -> list[Tensor]:
    points = [] if target.keypoints is None else [target.keypoints]
    return [target.boxes, target.labels, *points]
