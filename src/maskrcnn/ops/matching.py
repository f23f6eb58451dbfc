"""Matching of anchors and proposals to objects, and sampling of those that the losses are computed on.

Ren et al. 2015, section 3.1.2. The draw is a function of a seed alone (see `hashed`), so a batch gives
the same losses whatever process, device or resumed run computes it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maskrcnn.ops.boxes import box_iou

# Overlaps are computed for this many pairs at a time: 500 objects against 270,000 anchors would need 0.5 GB at once.
MAX_PAIRS = 1 << 22
LAST = torch.iinfo(torch.int64).max


class Matches(NamedTuple):
    """Match of each of P boxes: gt_index (P,), the object that it overlaps most; labels (P,): 1 object, 0 background,
    -1 ignored.
    """

    gt_index: Tensor
    labels: Tensor


def match_boxes(
    boxes: Tensor,
    gt_boxes: Tensor,
    negative: float,
    positive: float,
    *,
    keep_best: bool = False,
    min_best: float = 0.0,
    best_reassigns: bool = False,
) -> Matches:
    """Match (P, 4) boxes to (G, 4) objects by IoU.

    IoU >= positive: object; < negative: background; between: ignored. With `keep_best` the boxes that overlap
    an object more than any other box does are objects too, so that none is left without, unless even they overlap
    it less than `min_best`. Their index stays that of the object that they overlap most, or with `best_reassigns`
    becomes that of the object that they are the best of (the last one, of several). No objects: everything is
    background.
    """
    if len(gt_boxes) == 0 or len(boxes) == 0:
        zeros = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return Matches(zeros, zeros.clone())
    chunks = boxes.split(max(1, MAX_PAIRS // len(gt_boxes)))
    first = box_iou(gt_boxes, chunks[0])  # mostly the only one: not computed again below

    def overlaps(i: int) -> Tensor:
        return first if i == 0 else box_iou(gt_boxes, chunks[i])

    best, index, best_of_gt = [], [], torch.zeros_like(gt_boxes[:, 0])
    for i in range(len(chunks)):
        pairs = overlaps(i)
        value, which = pairs.max(dim=0)
        best.append(value)
        index.append(which)
        if keep_best:
            best_of_gt = torch.maximum(best_of_gt, pairs.amax(dim=1))
    iou = torch.cat(best)
    labels = torch.where(iou >= positive, 1, torch.where(iou < negative, 0, -1))
    if keep_best:
        # An object outside every box has no best one; without this, all boxes would tie at 0.
        enough = (best_of_gt > 0) & (best_of_gt >= min_best)
        best_of_gt = torch.where(enough, best_of_gt, 2.0)[:, None]
        number = torch.arange(1, len(gt_boxes) + 1, device=boxes.device, dtype=torch.int32)[:, None]
        for i in range(len(chunks)):
            is_best = overlaps(i) == best_of_gt
            taken = is_best.any(dim=0)
            part = labels.split(len(chunks[0]))[i]
            part.copy_(torch.where(taken, 1, part))
            if best_reassigns:
                last = (is_best * number).amax(dim=0).long() - 1
                index[i] = torch.where(taken, last, index[i])
    return Matches(torch.cat(index), labels)


def subsample(
    labels: Tensor, num_samples: int, positive_fraction: float, seed: int, number: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw at most `num_samples` boxes, at most `positive_fraction` of them objects, the rest background.

    labels: (P,) as in `Matches`; number: (P,) of each box, by which it is drawn, by default its index. Returns S
    indices, S being num_samples or P if that is less: objects, background, each in random order, then fillers; and
    what they are, (S,): 1, 0, and -1 for a filler.
    """
    S = min(num_samples, len(labels))
    key = hashed(torch.arange(len(labels), device=labels.device) if number is None else number, seed)
    drawn = [torch.where(labels == k, key, LAST).topk(S, largest=False).indices for k in (1, 0)]
    num_positive = (labels == 1).sum().clamp(max=int(num_samples * positive_fraction))
    num_negative = torch.minimum((labels == 0).sum(), num_samples - num_positive)
    place = torch.arange(S, device=labels.device)
    after = (place - num_positive).clamp(min=0)
    is_positive = place < num_positive
    index = torch.where(is_positive, drawn[0], drawn[1][after])
    return index, torch.where(is_positive, 1, torch.where(after < num_negative, 0, -1))


def hashed(number: Tensor, seed: int) -> Tensor:
    """Hash (N,) numbers of boxes to int64 that differ for numbers that do; their order is the random one.

    The finaliser of SplitMix64 (Steele et al. 2014): unlike a generator's stream this is the same on every device and
    does not depend on what was drawn before.
    """
    x = number.to(torch.int64) + _signed64((seed + 1) * 0x9E3779B97F4A7C15)
    x = (x ^ _shift_right(x, 30)) * _signed64(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed64(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _signed64(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift right logically, without sign: torch's >> repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
