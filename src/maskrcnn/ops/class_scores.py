"""Scores of RoIs' classes from their logits, and the loss that these learn from.

softmax: one distribution over the classes and background. sigmoid: a probability of each class by itself; background
is where all are low, and the column that it has in the logits is neither read nor learnt. Its loss may be federated
(Zhou et al. 2021, arXiv 2103.07461, appendix; detectron2's `FastRCNNOutputLayers`): where data are searched for some of
many classes only, an image teaches its own classes and a few others.

Shape letters: B images, R RoIs over the batch, K classes (label K is background).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.ops.boxes import numbers
from maskrcnn.ops.matching import hashed

Scores = Literal["softmax", "sigmoid"]
_BITS = 23  # of a random number that float32 holds without rounding it to 0 or 1


def class_scores(logits: Tensor, scores: Scores) -> Tensor:
    """Turn class_logits (..., K + 1) into probabilities of the same shape."""
    return logits.sigmoid() if scores == "sigmoid" else logits.softmax(-1)


def class_loss(
    logits: Tensor,
    labels: Tensor,
    scores: Scores,
    image: Tensor,
    num_kept: int,
    image_counts: Sequence[int],
    seeds: Sequence[int],
) -> Tensor:
    """Sum the cross-entropies of class_logits (R, K + 1) with labels (R,), -1 in places that do not count.

    num_kept: classes that a federated loss keeps of each image (`federated_classes`), 0 for all; only with sigmoid.
    image: (R,) number of each RoI's image; image_counts: of each class, the training images that have it, empty where
    that is unknown and all are alike; seeds: of each image's draw.
    """
    if scores == "softmax":
        return F.cross_entropy(logits, labels, reduction="sum", ignore_index=-1)
    K = logits.shape[1] - 1
    own = (labels[:, None] == torch.arange(K, device=labels.device)).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits[:, :K], own, reduction="none")
    counts = labels[:, None] >= 0
    if num_kept:
        known = labels % (K + 2)  # what does not count goes to a column of its own, the last
        present = torch.zeros(len(seeds) * (K + 2), dtype=torch.bool, device=labels.device)
        present = present.scatter(0, image * (K + 2) + known, True).unflatten(0, (-1, K + 2))[:, :-1]
        weights = numbers(image_counts or [1] * K, torch.zeros((), device=labels.device)).sqrt()
        counts = counts & federated_classes(present, weights, num_kept, seeds)[image]
    return torch.where(counts, losses, 0).sum()


def federated_classes(present: Tensor, weights: Tensor, num_kept: int, seeds: Sequence[int]) -> Tensor:
    """Choose the classes (B, K) that each image's loss keeps: those present, and others drawn up to `num_kept`.

    present: (B, K + 1) which labels an image's RoIs have, background among them, which counts as one of the kept, as in
    detectron2 (whose images share a draw where a GPU has several; in its published runs each had one). weights: (K,) of
    the others in a draw without replacement; a class of weight 0 is never drawn.
    """
    number = torch.arange(len(weights), device=weights.device)
    random = torch.stack([hashed(number, seed) for seed in seeds]) >> (64 - _BITS)
    random = (random + (2 ** (_BITS - 1) + 0.5)) / 2**_BITS
    # The least of exponential times is class k's with probability weights[k] / their sum, and so on for the next.
    time = torch.where(present[:, :-1], torch.inf, -random.log() / weights)
    place = time.argsort(dim=1, stable=True).argsort(dim=1)
    drawn = (place < num_kept - present.sum(1, keepdim=True)) & time.isfinite()
    return present[:, :-1] | drawn
