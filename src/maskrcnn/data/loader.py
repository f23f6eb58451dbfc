"""Training batches: decoded and augmented in worker processes, in an order that can be resumed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maskrcnn.config import AugmentConfig, DataConfig, InputConfig
from maskrcnn.data.pixel_steps import Noted
from maskrcnn.data.sampler import BatchSampler, repeat_factors, view_seed
from maskrcnn.data.transforms import Pairs, augment
from maskrcnn.errors import UserError
from maskrcnn.images.bands import read_input
from maskrcnn.structures import GroundTruth

TrainBatch = tuple[list[Tensor], list[GroundTruth], list[Any]]


class ImageSource(Protocol):
    """Annotated images, with the members of `CocoData` that training needs. Worker processes get a copy: it must be
    cheap to pickle.
    """

    @property
    def num_images(self) -> int: ...
    @property
    def sizes(self) -> np.ndarray:
        """Sizes of the upright images, (n, 2) of (H, W)."""
        ...

    @property
    def num_objects(self) -> np.ndarray:
        """Number of objects that `ground_truth` returns for each image, (n,)."""
        ...

    def classes_of_images(self) -> np.ndarray:
        """Pairs (image, class) of these objects, each once, (p, 2); asked for if rare classes are repeated."""
        ...

    def image_path(self, i: int, /) -> str | Path: ...
    def ground_truth(self, i: int, /) -> GroundTruth: ...


class TrainLoader:
    """An endless stream of training batches: (images, targets, image ids).

    images: `batch_size` uint8 RGB tensors (3, h, w), views of (h, w, 3) memory; targets: their ground
    truth in the same pixels, with a seed each; image ids: the data set's.

    flip_pairs: the key points that change places when an image is mirrored.
    input: what the model takes; of one with bands images are float32 (C, h, w), stretched to 0..255.
    noted: images come as they were read, with the steps to take noted (`pixel_steps.Noted`), for a GPU to take.

    Batch n is a function of the data, `config.augment`, the seed and batch_size * world_size: the number of
    workers does not matter, and the ranks' batches together are the one batch of a single process.
    `state` counts the batches that were handed out; a loader made with `start_batch=state` goes on there.

    Raises:
        UserError: on construction, nothing to train on; while iterating, an image that cannot be read or
            whose size is not the annotations' (raised in the calling process, naming the file).
    """

    def __init__(
        self,
        data: ImageSource,
        config: DataConfig,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
        flip_pairs: Pairs = (),
        noted: bool = False,
        input: InputConfig | None = None,
    ) -> None:
        images = np.flatnonzero(data.num_objects) if config.skip_empty else np.arange(data.num_images)
        if len(images) == 0:
            found = f"{data.num_images} images, none of them with objects" if data.num_images else "no images"
            raise UserError(
                f"{config.train or 'the training set'}: expected images to train on, got {found}."
            )
        sizes = np.asarray(data.sizes)[images]
        wide = sizes[:, 1] >= sizes[:, 0] if config.aspect_grouping else None
        self.num_images = len(images)  # an epoch
        self.state = start_batch
        self._num_workers = config.num_workers
        self._views = _Views(data, config.augment, seed, flip_pairs, noted, input or InputConfig())
        self._order = (images, wide, batch_size, seed, rank, world_size)
        self._repeats = None
        if config.repeat_threshold:
            image, label = data.classes_of_images().T
            place = np.searchsorted(images, image)
            self._repeats = repeat_factors(place, label, len(images), config.repeat_threshold)

    def __iter__(self) -> Iterator[TrainBatch]:
        loader = DataLoader(
            self._views,
            batch_sampler=BatchSampler(*self._order, start_batch=self.state, repeats=self._repeats),
            num_workers=self._num_workers,
            collate_fn=_as_is,
            worker_init_fn=_leave_signals_to_the_main_process,
            pin_memory=torch.cuda.is_available(),
            # Making the iterator draws a number, which must not come from the training's generator.
            generator=torch.Generator(),
        )
        if self._num_workers:
            _allow_open_files()
            _preload_fork_server()
        return self._batches(iter(loader))

    def _batches(self, loader: Iterator[list[Any]]) -> Iterator[TrainBatch]:
        for views in loader:
            for view in views:
                if isinstance(view, UserError):
                    raise view
            self.state += 1
            yield [v[0] for v in views], [v[1] for v in views], [v[1].image_id for v in views]


@dataclass(frozen=True, slots=True)
class _Views(Dataset):
    """The view of an image at a place of the order; a user's mistake is returned, not raised, because
    DataLoader would hand on an exception as the text of a traceback."""

    data: ImageSource
    augment: AugmentConfig
    seed: int
    flip_pairs: Pairs
    noted: bool
    input: InputConfig

    def __getitem__(self, place_and_image: tuple[int, int]) -> tuple[Any, GroundTruth] | UserError:
        place, i = place_and_image
        path = self.data.image_path(i)
        try:
            image = read_input(path, self.input)
        except UserError as e:
            return e
        height, width = np.asarray(self.data.sizes[i]).tolist()
        if image.shape[:2] != (height, width):
            return UserError(
                f"{path}: expected {width} x {height} pixels as annotated, got {image.shape[1]} x "
                f"{image.shape[0]}. Correct the annotations or the file."
            )
        truth = self.data.ground_truth(i)
        truth.seed = view_seed(self.seed, place)
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        image: Any = Noted(pixels) if self.noted else pixels
        return augment(image, truth, self.augment, truth.seed, self.flip_pairs)


def _as_is(views: list[Any]) -> list[Any]:
    return views


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Go on when a terminal or a cluster sends its signals to every process: the main one decides what they mean."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_main_process, daemon=True).start()


def _end_with_the_main_process() -> None:
    """End when it asks, or is gone: below a fork server DataLoader's own watch never sees that."""
    main = multiprocessing.parent_process()
    while main and main.is_alive():
        asked = signal.sigtimedwait({signal.SIGTERM}, 2)
        if asked and asked.si_pid == main.pid:
            break
    os._exit(0)


def _preload_fork_server() -> None:
    """Have the server that forks workers, Python 3.14's default on Linux, import this module: else each worker
    imports PyTorch anew, which takes seconds and memory that forked processes share."""
    if multiprocessing.get_start_method() == "forkserver":
        multiprocessing.set_forkserver_preload(["__main__", __name__])


def _allow_open_files() -> None:
    """Raise this process's limit of open files as far as it may go: each tensor that waits here from a
    worker holds one, and large batches from many workers would exceed the usual 1024."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS reports more than it grants
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
