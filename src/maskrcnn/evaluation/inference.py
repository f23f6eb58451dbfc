"""Inference over a data set: images read and resized in threads, detections streamed out as COCO results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from maskrcnn.data.classes import ids_of_model, unknown
from maskrcnn.data.stream import StreamedImage, stream_images
from maskrcnn.errors import UserError
from maskrcnn.models.tta import detect_in_views
from maskrcnn.processor import DTYPES, let_forks_compute
from maskrcnn.structures import Instances

if TYPE_CHECKING:
    from maskrcnn.config import ModelConfig, TTAConfig
    from maskrcnn.data.coco import CocoData
    from maskrcnn.models.mask_rcnn import MaskRCNN


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which the network computes in `precision`; parameters stay as they are."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def detect_images(
    model: MaskRCNN, images: Sequence[StreamedImage], tta: TTAConfig | None = None
) -> list[Instances]:
    """The detections of images, resized for the network; with `tta` of whole pictures, one view at a time."""
    if tta is None:
        return model.detect(model.preprocess([i.pixels for i in images], [i.original_size for i in images]))
    return [detect_in_views(model, i.pixels.permute(1, 2, 0).numpy(), tta) for i in images]


def stream_inference(
    model: MaskRCNN,
    data: CocoData,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = 1,
    num_threads: int = 2,
    tta: TTAConfig | None = None,
) -> Iterator[tuple[int, Instances]]:
    """Image number and detections, in the order of `indices` (default: all), as they are made.

    The model computes in its own precision (`MaskRCNN.prepare`). Only a few batches of images are in memory.

    Raises:
        UserError: an image cannot be read: numbers over a part of a data set would mislead.
    """
    order = range(data.num_images) if indices is None else indices
    paths = (data.image_path(i) for i in order)
    c = model.config.input
    sizes = (None, None) if tta else (c.min_size, c.max_size)
    was_training = model.training
    let_forks_compute()
    model.eval()
    try:
        for batch in stream_images(paths, *sizes, batch_size, num_threads, c.resize):
            if batch.errors:
                raise batch.errors[0].error
            found = detect_images(model, batch.images, tta)
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
    tta: TTAConfig | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[dict[str, Any]]:
    """COCO results of the images `indices` (default: all), with `bbox` and `segmentation`, in the data's ids.

    Classes go by their names where model and data have some, else by ids or order. A model may have more classes
    than the data; what it finds of others is left out.
    `progress` is called with the number of images done after each.

    Raises:
        UserError: the data set has objects of classes that the model does not know, or an image cannot be read.
    """
    category_ids = _category_ids(model.config, data)
    results: list[dict[str, Any]] = []
    stream = stream_inference(
        model, data, indices=indices, batch_size=batch_size, num_threads=num_threads, tta=tta
    )
    for done, (i, instances) in enumerate(stream, start=1):
        found = instances.to_coco(data.image_ids[i].item(), category_ids)
        results += (entry for entry in found if entry["category_id"] is not None)
        if progress:
            progress(done)
    return results


def _category_ids(config: ModelConfig, data: CocoData) -> list[Any]:
    """The data set's id of each of the model's classes, None for one that it does not have."""
    ids = ids_of_model(config, data.class_names, data.category_ids, data.json_path)
    labels = np.unique(data.arrays["labels"])
    lacking = [data.class_names[k] for k in labels.tolist() if k >= 0 and data.category_ids[k] not in ids]
    if lacking:
        raise UserError(unknown(data.json_path, config.class_names, lacking))
    return ids
