"""The one thread that computes: takes waiting pictures from a bounded queue, in small batches.

A batch is what waits when the model becomes free, of the same model and the same padded size as the oldest picture, so
that what is found in a picture does not depend on its neighbours. Nobody waits for a batch to fill.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from maskrcnn.images.resize import resize_size
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.structures import Instances


class RefusedError(Exception):
    """A picture that is not taken now: the queue is full, or the service is about to end."""


@dataclass(slots=True, eq=False)
class Job:
    """One picture for the model, already at the network's size."""

    model: str
    pixels: Tensor  # (3, h, w) uint8 RGB
    original_size: tuple[int, int]
    score_threshold: float | None = None
    found: Future[Instances] = field(default_factory=Future)
    accepted: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True, slots=True)
class BatchTime:
    """Measured times of one batch, for the metrics."""

    model: str
    size: int
    seconds: float  # in the model
    waited: tuple[float, ...]  # of each picture in the queue


class Worker:
    """Thread that runs the models; it begins with the first `start`, which warms the models up."""

    def __init__(
        self,
        models: Mapping[str, MaskRCNN],
        max_batch: int,
        max_queue: int,
        observe: Callable[[BatchTime], None] = lambda batch: None,
    ) -> None:
        self.models, self.max_batch, self.max_queue = dict(models), max_batch, max_queue
        self.ready = threading.Event()
        self.failure: BaseException | None = None  # of the warm-up
        self._observe = observe
        self._changed = threading.Condition()
        self._reserved = 0
        self._waiting: deque[Job] = deque()
        self._stopping = False
        self._thread: threading.Thread | None = None

    @property
    def num_waiting(self) -> int:
        """Pictures that were accepted and that the model has not taken yet."""
        return self._reserved + len(self._waiting)

    @property
    def stopping(self) -> bool:
        return self._stopping

    def start(self) -> None:
        """Start the thread, unless it runs or has been stopped."""
        with self._changed:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="maskrcnn-serve", daemon=True)
                self._thread.start()

    def reserve(self) -> None:
        """Take a place in the queue for a picture that is about to be decoded; `submit` or `release` it.

        Raises:
            RefusedError: there is none.
        """
        with self._changed:
            if self._stopping:
                raise RefusedError("the service is about to end")
            if self.num_waiting >= self.max_queue:
                raise RefusedError(f"{self.max_queue} pictures are waiting already")
            self._reserved += 1

    def release(self) -> None:
        """Give a reserved place back."""
        with self._changed:
            self._reserved -= 1
            self._changed.notify_all()

    def submit(self, job: Job) -> None:
        """Queue a picture at a place that `reserve` has kept for it."""
        with self._changed:
            self._reserved -= 1
            self._waiting.append(job)
            self._changed.notify_all()

    def withdraw(self, job: Job) -> None:
        """Drop a picture that nobody waits for any more; what the model has begun it finishes."""
        with self._changed:
            if job.found.cancel() and job in self._waiting:
                self._waiting.remove(job)

    def stop_accepting(self) -> None:
        """Refuse pictures from now on; those accepted are still computed, and then the thread ends."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> None:
        """Refuse pictures from now on, and wait until those accepted are computed."""
        self.stop_accepting()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        torch.set_num_threads(torch.get_num_threads())  # OpenMP keeps the number for each thread
        try:
            for model in self.models.values():
                warm_up(model)
        except BaseException as e:
            self.failure = e
            self._refuse_all(e)
            return
        self.ready.set()
        while batch := self._next_batch():
            self._compute(batch)

    def _next_batch(self) -> list[Job]:
        """Wait for pictures and take a batch of them; empty once the service ends and none is left."""
        with self._changed:
            while not self._waiting:
                if self._stopping and not self._reserved:
                    return []
                self._changed.wait()
            kind = self._kind(self._waiting[0])
            batch = [job for job in self._waiting if self._kind(job) == kind][: self.max_batch]
            for job in batch:
                self._waiting.remove(job)
        return batch

    def _kind(self, job: Job) -> tuple[str, int, int]:
        divisor = self.models[job.model].config.input.size_divisor
        _, h, w = job.pixels.shape
        return job.model, -(-h // divisor), -(-w // divisor)

    def _compute(self, batch: list[Job]) -> None:
        batch = [job for job in batch if job.found.set_running_or_notify_cancel()]
        if not batch:
            return
        started = time.perf_counter()
        try:
            results = detect(self.models[batch[0].model], batch)
        except Exception as e:
            if len(batch) == 1:
                batch[0].found.set_exception(e)
                return
            for job in batch:  # one picture may be too much for the memory; the others are not to suffer
                self._compute_alone(job)
            return
        seconds = time.perf_counter() - started
        self._observe(
            BatchTime(batch[0].model, len(batch), seconds, tuple(started - j.accepted for j in batch))
        )
        for job, instances in zip(batch, results, strict=True):
            job.found.set_result(instances)

    def _compute_alone(self, job: Job) -> None:
        try:
            job.found.set_result(detect(self.models[job.model], [job])[0])
        except Exception as e:
            job.found.set_exception(e)

    def _refuse_all(self, error: BaseException) -> None:
        with self._changed:
            self._stopping = True
            while self._waiting:
                self._waiting.popleft().found.set_exception(error)


def detect(model: MaskRCNN, batch: list[Job]) -> list[Instances]:
    """Detections of the pictures of one batch, on the CPU, each above the threshold that was asked for it."""
    own = model.config.box_head.score_threshold
    wanted = [own if job.score_threshold is None else job.score_threshold for job in batch]
    images = model.preprocess([job.pixels for job in batch], [job.original_size for job in batch])
    # A better detection is never changed by a worse one, so the lowest threshold serves all.
    found = model.detect(images, min(wanted))
    return [
        instances[instances.scores > threshold].to("cpu")
        for instances, threshold in zip(found, wanted, strict=True)
    ]


def warm_up(model: MaskRCNN) -> None:
    """Predict on a made-up picture, so that the first request does not wait for what is set up at first use."""
    c = model.config.input
    height, width = resize_size(480, 640, c.min_size, c.max_size, c.resize)
    noise = np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)
    detect(model, [Job("", torch.from_numpy(noise), (480, 640))])
