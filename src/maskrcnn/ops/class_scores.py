"""Scores of classes from their logits, and the losses that these are learnt by: of one class a box, by a softmax, or of
each class by itself, by a sigmoid.

A data set of many rare classes searches each image for some of them only, and of most boxes says nothing of most
classes. A federated loss asks for a few classes at a time: those of the batch, and others that are drawn, frequent
ones more often (Zhou et al. 2021, arXiv 2103.07461; detectron2's `FastRCNNOutputLayers.get_fed_loss_classes`).

Shape letters: R RoIs, K classes; column and label K are background.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.ops.matching import hashed

FREQUENCY_POWER = 0.5  # a class is drawn in proportion to this power of the number of images that have it
_BITS = 24  # of a random share: a float32 holds them exactly
_FIRST = 1 << 40  # numbers of classes in the draw, beyond those of boxes


def class_scores(logits: Tensor, kind: str) -> Tensor:
    """Turn class_logits (R, K + 1) to scores by `softmax` or `sigmoid`. Background's column means nothing in these."""
    return logits.softmax(-1) if kind == "softmax" else logits.sigmoid()


def class_loss(logits: Tensor, labels: Tensor, kind: str, kept: Tensor | None = None) -> Tensor:
    """Sum the loss of class_logits (R, K + 1) over RoIs with labels (R,), those with -1 left out: their cross entropy,
    or, with `sigmoid`, the binary cross entropies of all classes, or of those `kept` (K,).
    """
    if kind == "softmax":
        return F.cross_entropy(logits, labels, reduction="sum", ignore_index=-1)
    K = logits.shape[1] - 1
    wanted = (labels[:, None] == torch.arange(K, device=labels.device)).to(logits.dtype)
    counts = (labels >= 0)[:, None].expand(-1, K)
    if kept is not None:
        counts = counts & kept
    return F.binary_cross_entropy_with_logits(logits[:, :K], wanted, counts.to(logits.dtype), reduction="sum")


def federated_classes(labels: Tensor, frequency: Tensor, count: int, seed: int) -> Tensor | None:
    """Choose the classes that take part in a loss, (K,) bool: all that RoIs with labels (R,) have, and of the others as
    many as make `count`, background being one where RoIs have it. None, for all, if `count` is 0.

    frequency: (K,) how many images have each class; those of none are not drawn. The draw is without replacement, and a
    function of the seed alone: the classes with the largest logarithms of their weight plus Gumbel noise.
    """
    if not count:
        return None
    K = len(frequency)
    # Each label's place is its number after one for -1.
    there = torch.zeros(K + 2, dtype=torch.bool, device=labels.device)
    present = there.index_fill(0, labels + 1, True)[1:]
    number = torch.arange(_FIRST, _FIRST + K, device=labels.device)
    share = (hashed(number, seed) & ((1 << _BITS) - 1)).to(torch.float32)
    noise = -torch.log(-torch.log((share + 0.5) / (1 << _BITS)))
    key = FREQUENCY_POWER * frequency.to(torch.float32).log() + noise
    key = torch.where(present, torch.inf, F.pad(key, (0, 1), value=-torch.inf))
    best = key.topk(min(count, K + 1))
    drawn = torch.zeros_like(present).scatter(0, best.indices, best.values > -torch.inf)
    return (present | drawn)[:K]
