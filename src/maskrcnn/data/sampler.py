"""Choice of the images of training batch n: a function of the seed alone.

Epochs follow each other without a break. Epoch e is a permutation of the images, drawn from (seed, e); its
images are numbered on from those of the epochs before, and an image's number is its *place*. A place is
never used twice, and picks everything random about that view of the image (`view_seed`). Images may be repeated
within an epoch, those with rare classes more often (Gupta et al. 2019, arXiv 1908.03195, section 5).

With aspect grouping, wide (w >= h) and tall images are collected apart and a batch is complete when its
last image comes up, as in detectron2, so that batches need little padding. What is left over waits for
the next epoch. The world's batch is cut in equal parts, one a rank, in order of rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_MASK64 = (1 << 64) - 1


def view_seed(seed: int, place: int) -> int:
    """A 63-bit seed for the view at `place`: splitmix64 of the run's seed, plus the place, mixed again."""
    return _splitmix64(_splitmix64(seed & _MASK64) + place) >> 1


@dataclass(frozen=True, slots=True)
class BatchSampler:
    """Endless batches of (place, image), from batch `start_batch` on; each iteration starts there anew.

    images: the (n,) image numbers to draw from; wide: (n,) which of them are wide, or None for no grouping;
    repeats: (n,) how often an epoch has each on average, from 1, or None for once. batch_size is per process.
    """

    images: np.ndarray
    wide: np.ndarray | None
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    start_batch: int = 0
    repeats: np.ndarray | None = None

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        skip = self.start_batch
        for places, images in self._epochs():  # each (batches, world's batch)
            for b in range(skip, len(places)):
                yield list(zip(places[b, mine].tolist(), images[b, mine].tolist(), strict=True))
            skip = max(0, skip - len(places))

    def _epochs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield for each epoch the places and the images (m, world's batch) of the batches that it completes."""
        whole = self.batch_size * self.world_size
        groups = self._groups(whole)
        left = [np.zeros((0, 2), np.int64) for _ in groups]  # (place, position in images) still waiting
        first_place = 0
        while True:
            rng = np.random.Generator(np.random.PCG64(_splitmix64(self.seed & _MASK64) ^ first_place))
            every = np.arange(len(self.images)) if self.repeats is None else _repeated(self.repeats, rng)
            order = every[np.argsort(rng.random(len(every)), kind="stable")]
            places = np.arange(first_place, first_place + len(order))
            complete = []
            for g, member in enumerate(groups):
                chosen = member[order]
                queue = np.concatenate([left[g], np.stack([places[chosen], order[chosen]], axis=1)])
                used = len(queue) // whole * whole
                complete.append(queue[:used].reshape(-1, whole, 2))
                left[g] = queue[used:]
            batches = np.concatenate(complete)
            batches = batches[np.argsort(batches[:, -1, 0])]  # in the order in which they become complete
            yield batches[..., 0], self.images[batches[..., 1]]
            first_place += len(order)

    def _groups(self, whole: int) -> list[np.ndarray]:
        """Groups of images that may share a batch, as masks over `images`.

        A group too small to fill a batch would fill it with views of the same few images: no groups then.
        """
        if self.wide is not None:
            groups = [self.wide, ~self.wide]
            groups = [g for g in groups if g.any()]
            if all(g.sum() >= whole for g in groups):
                return groups
        return [np.ones(len(self.images), bool)]


def repeat_factors(image: np.ndarray, label: np.ndarray, num_images: int, threshold: float) -> np.ndarray:
    """Count how often an epoch has each image on average: for its rarest class sqrt(threshold / share), at least 1.

    image, label: (p,) pairs of an image and a class that it has, each once; a class's share is that of the images
    that have it. Returns (num_images,) float64.
    """
    share = np.bincount(label) / num_images
    factors = np.ones(num_images)
    np.maximum.at(factors, image, np.sqrt(threshold / share[label]))
    return factors


def _repeated(factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Position of each image as often as an epoch has it: the whole part, and once more with the rest's probability."""
    whole = np.floor(factors).astype(np.int64)
    return np.repeat(np.arange(len(factors)), whole + (rng.random(len(factors)) < factors - whole))


def _splitmix64(x: int) -> int:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014) after one step from state x."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)
