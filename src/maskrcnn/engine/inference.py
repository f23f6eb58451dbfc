"""A model over a data set: images read and resized in threads, detections streamed out as COCO results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from maskrcnn.data.stream import stream_images
from maskrcnn.errors import UserError
from maskrcnn.structures import Instances

if TYPE_CHECKING:
    from maskrcnn.data.coco import CocoData
    from maskrcnn.models.mask_rcnn import MaskRCNN

Precision = Literal["fp32", "bf16", "fp16"]


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """The context in which the network computes in `precision`; parameters stay as they are."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def stream_inference(
    model: MaskRCNN,
    data: CocoData,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = 1,
    num_threads: int = 2,
) -> Iterator[tuple[int, Instances]]:
    """Image number and detections, in the order of `indices` (default: all), as they are made.

    The model computes in its own precision (`MaskRCNN.prepare`). Only a few batches of images are in memory.

    Raises:
        UserError: an image cannot be read: numbers over a part of a data set would mislead.
    """
    order = range(data.num_images) if indices is None else indices
    paths = (data.image_path(i) for i in order)
    size = model.config.input
    was_training = model.training
    model.eval()
    try:
        for batch in stream_images(
            paths, size.min_size, size.max_size, batch_size, num_threads, size.resize
        ):
            if batch.errors:
                raise batch.errors[0].error
            sizes = [image.original_size for image in batch.images]
            found = model.detect(model.preprocess([image.pixels for image in batch.images], sizes))
            yield from ((order[image.index], f) for image, f in zip(batch.images, found, strict=True))
    finally:
        model.train(was_training)


def run_inference(
    model: MaskRCNN,
    data: CocoData,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = 1,
    num_threads: int = 2,
    progress: Callable[[int], object] | None = None,
) -> list[dict[str, Any]]:
    """COCO results of the images `indices` (default: all), with `bbox` and `segmentation`, in the data's ids.

    `progress` is called with the number of images done after each.

    Raises:
        UserError: the model has another number of classes than the data set, or an image cannot be read.
    """
    if model.config.num_classes != len(data.category_ids):
        raise UserError(
            f"{data.json_path}: expected the model's {model.config.num_classes} classes, got "
            f"{len(data.category_ids)}. Use a model trained on these classes."
        )
    results: list[dict[str, Any]] = []
    stream = stream_inference(model, data, indices=indices, batch_size=batch_size, num_threads=num_threads)
    for done, (i, instances) in enumerate(stream, start=1):
        results += instances.to_coco(data.image_ids[i].item(), data.category_ids)
        if progress:
            progress(done)
    return results
