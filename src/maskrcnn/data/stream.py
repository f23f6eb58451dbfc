"""Image files to batches for evaluation and prediction: decoded ahead, in order, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from maskrcnn.config import InputConfig
from maskrcnn.errors import UserError
from maskrcnn.images.bands import read_input
from maskrcnn.images.resize import resize_image, resize_size


@dataclass(frozen=True, slots=True)
class StreamedImage:
    """One picture, resized for the network."""

    index: int  # place among the paths given
    path: str | Path
    pixels: Tensor  # (3, h, w) uint8 RGB or (C, h, w) float32 bands, a view of (h, w, C) memory
    original_size: tuple[int, int]  # (H, W) of the file's picture


@dataclass(frozen=True, slots=True)
class UnreadableImage:
    """A file that was skipped, and why."""

    index: int
    path: str | Path
    error: UserError


class StreamedBatch(NamedTuple):
    """The pictures of `batch_size` consecutive paths, less those that could not be read."""

    images: list[StreamedImage]
    errors: list[UnreadableImage]


def stream_images(
    paths: Iterable[str | Path],
    min_size: int | None,
    max_size: int | None,
    batch_size: int = 1,
    num_threads: int = 2,
    input: InputConfig | None = None,
) -> Iterator[StreamedBatch]:
    """Batches of the pictures in `paths`, in order, while worker threads decode and resize those that follow.

    min_size, max_size: of the sides, see `resize_size`; both None: the pictures stay as they are. input: what the model
    takes, and whose resize; by default colours and Pillow's.

    Decoding and Pillow's resize release the interpreter lock, so threads do as well as processes and
    copy nothing. At most two batches (and two images a thread) are held ahead of the caller; `paths` may
    be a generator and is read no further than that. A file that cannot be read is yielded as an error;
    no picture takes its place in its batch, which may thus be short or empty.
    """
    numbered, input = enumerate(paths), input or InputConfig()
    pool = ThreadPoolExecutor(max(1, num_threads), thread_name_prefix="maskrcnn-decode")
    pending: deque[Future[StreamedImage | UnreadableImage]] = deque()

    def submit(count: int) -> None:
        for index, path in islice(numbered, count):
            pending.append(pool.submit(_load, index, path, min_size, max_size, input))

    try:
        submit(2 * max(batch_size, num_threads))
        while pending:
            batch = StreamedBatch([], [])
            for _ in range(min(batch_size, len(pending))):
                item = pending.popleft().result()
                submit(1)
                if isinstance(item, UnreadableImage):
                    batch.errors.append(item)
                else:
                    batch.images.append(item)
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _load(
    index: int, path: str | Path, min_size: int | None, max_size: int | None, input: InputConfig
) -> StreamedImage | UnreadableImage:
    try:
        image = read_input(path, input)
    except UserError as e:
        return UnreadableImage(index, path, e)
    height, width = image.shape[:2]
    if min_size is not None and max_size is not None:
        size = resize_size(height, width, min_size, max_size, input.resize)
        image = resize_image(image, size, input.resize)
    return StreamedImage(index, path, torch.from_numpy(image).permute(2, 0, 1), (height, width))
