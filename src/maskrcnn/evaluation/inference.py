"""Inference over many images, read and resized in threads; over a data set, as COCO results in its ids."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from maskrcnn.data.classes import ids_of_model, unknown
from maskrcnn.data.stream import StreamedImage, stream_images
from maskrcnn.errors import UserError, check_number
from maskrcnn.images.bands import for_people
from maskrcnn.models.tta import detect_in_views
from maskrcnn.processor import DTYPES, let_forks_compute
from maskrcnn.structures import Instances

_WINDOW = 4  # batches whose images are looked at together, to find some of one size

if TYPE_CHECKING:
    from maskrcnn.config import InputConfig, ModelConfig, TTAConfig
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


def predict_stream(
    model: MaskRCNN,
    paths: Iterable[str | Path],
    *,
    batch_size: int = 1,
    num_threads: int = 2,
    min_size: int | None = None,
    max_size: int | None = None,
    tta: TTAConfig | None = None,
) -> Iterator[tuple[str | Path, Instances | UserError]]:
    """Yield each path with its detections, or with the fault of the file, in the order of `paths`.

    The model computes in its own precision (`engines.prepare`). Images are batched with others of the same padded
    size among the next few, so that what is found in an image does not depend on its neighbours. `num_threads` of
    them are read at a time, ahead of the model.

    min_size, max_size: shortest and longest side that the network sees, by default the model's own.
    tta: look at each picture in these sizes instead, one view at a time.
    """
    c = model.config.input
    check_number(batch_size, "predict: batch_size", 1, whole=True)
    check_number(num_threads, "predict: num_threads", 1, whole=True)
    for size, name in ((min_size, "min_size"), (max_size, "max_size")):
        if size is not None:
            check_number(size, f"predict: {name}", 1, whole=True)
    let_forks_compute()
    was_training = model.training
    model.eval()
    window = batch_size * _WINDOW if batch_size > 1 else 1
    sizes = (None, None) if tta else (min_size or c.min_size, max_size or c.max_size)
    try:
        stream = stream_images(paths, *sizes, window, num_threads, c)
        for images, errors in stream:
            results: dict[int, tuple[str | Path, Instances | UserError]] = {
                e.index: (e.path, e.error) for e in errors
            }
            for batch in _batches_of_one_size(images, batch_size, c.size_divisor):
                for image, instances in zip(batch, detect_images(model, batch, tta), strict=True):
                    results[image.index] = (image.path, _on_cpu(instances, image.path, c))
            yield from (results.pop(index) for index in sorted(results))
    finally:
        model.train(was_training)


def _batches_of_one_size(
    images: list[StreamedImage], batch_size: int, divisor: int
) -> Iterator[list[StreamedImage]]:
    groups: dict[tuple[int, int], list[StreamedImage]] = {}
    for image in images:
        _, h, w = image.pixels.shape
        groups.setdefault((-(-h // divisor), -(-w // divisor)), []).append(image)
    for group in groups.values():
        for first in range(0, len(group), batch_size):
            yield group[first : first + batch_size]


def _on_cpu(instances: Instances, path: str | Path, input: InputConfig) -> Instances:
    """Move detections off the GPU. The picture is read again when drawn: a path waits in less memory than pixels."""
    return dataclasses.replace(instances.to("cpu"), image=for_people(path, input))


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
    ids, results = _category_ids(model.config, data), list[dict[str, Any]]()
    found = _found(model, data, indices, batch_size=batch_size, num_threads=num_threads, tta=tta)
    for done, (image_id, instances) in enumerate(found, start=1):
        results += _encoded(instances, image_id, ids)
        if progress:
            progress(done)
    return results


def begin_inference(
    model: MaskRCNN, data: CocoData, pool: Executor, *, indices: Sequence[int] | None = None
) -> Callable[[], list[dict[str, Any]]]:
    """Run the model as `run_inference` does, and leave the encoding of masks to a pool; what is returned waits for it.

    Raises:
        UserError: as `run_inference`.
    """
    ids = _category_ids(model.config, data)
    found = _found(model, data, indices)
    pending = [pool.submit(_encoded, instances, image_id, ids) for image_id, instances in found]
    return lambda: [entry for future in pending for entry in future.result()]


def _found(
    model: MaskRCNN, data: CocoData, indices: Sequence[int] | None, **how: Any
) -> Iterator[tuple[Any, Instances]]:
    """Yield the id of each image with its detections."""
    order = range(data.num_images) if indices is None else indices
    stream = predict_stream(model, (data.image_path(i) for i in order), **how)
    for i, (_, instances) in zip(order, stream):
        if isinstance(instances, UserError):  # numbers over a part of a data set would mislead
            raise instances
        yield data.image_ids[i].item(), instances


def _encoded(instances: Instances, image_id: Any, category_ids: list[Any]) -> list[dict[str, Any]]:
    return [e for e in instances.to_coco(image_id, category_ids) if e["category_id"] is not None]


def _category_ids(config: ModelConfig, data: CocoData) -> list[Any]:
    """The data set's id of each of the model's classes, None for one that it does not have."""
    ids = ids_of_model(config, data.class_names, data.category_ids, data.json_path)
    labels = np.unique(data.arrays["labels"])
    lacking = [data.class_names[k] for k in labels.tolist() if k >= 0 and data.category_ids[k] not in ids]
    if lacking:
        raise UserError(unknown(data.json_path, config.class_names, lacking))
    return ids
