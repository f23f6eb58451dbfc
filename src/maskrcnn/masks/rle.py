"""COCO's run-length encoding, many masks at a time, straight to and from the masks' own boxes.

A mask of H x W pixels is read column by column; `counts` are the lengths of its runs, background first.
Compressed, each count (from the fourth on: its difference from the one two before) is written as groups
of five bits, low bits first, a sixth bit saying that more follow, each group plus 48 as one character.
Format: the COCO API's maskApi. Everything here is array arithmetic over all masks at once, so reading
the 375 nuclei of a picture does not touch 375 full-size bitmaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(slots=True)
class Runs:
    """Foreground runs of N masks: flat, sorted, never touching within one mask.

    starts, ends: (T,) first pixel and the one after the last, in the picture's column-major order;
    owner: (T,) which mask, ascending; num_masks: N.
    """

    starts: np.ndarray
    ends: np.ndarray
    owner: np.ndarray
    num_masks: int


def rle_encode(bitmap: np.ndarray) -> dict[str, Any]:
    """Encode a bitmap (H, W), whose nonzero pixels are foreground: {"size": [H, W], "counts": str}."""
    height, width = bitmap.shape
    starts, ends = bitmap_runs(bitmap, (0, 0), height)
    runs = Runs(starts, ends, np.zeros(len(starts), np.int64), 1)
    return {"size": [height, width], "counts": write_counts(runs, height * width)[0]}


def rle_decode(rle: Mapping[str, Any]) -> np.ndarray:
    """Decode a compressed (str or bytes) or uncompressed (list) RLE to (H, W) uint8 of 0 and 1."""
    height, width = rle["size"]
    runs = read_runs([rle])
    steps = np.zeros(height * width + 1, np.int8)
    steps[runs.starts] = 1
    steps[runs.ends] = -1
    return np.cumsum(steps[:-1], dtype=np.int8).view(np.uint8).reshape(width, height).T


def rle_area(rle: Mapping[str, Any]) -> int:
    """Count an RLE's foreground pixels."""
    runs = read_runs([rle])
    return int((runs.ends - runs.starts).sum())


def bitmap_runs(crop: np.ndarray, origin: tuple[int, int], height: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs (starts, ends) of the bitmap `crop` (h, w) placed at `origin` (x, y) in a picture `height` high."""
    h, w = crop.shape
    columns = np.zeros((w, h + 1), bool)  # one background row more, so that no run crosses columns here
    columns[:, :h] = crop.T
    flat = columns.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat.size and flat[0]:
        edges = np.concatenate([[0], edges])
    column, row = np.divmod(edges.reshape(-1, 2), h + 1)
    place = (column + origin[0]) * height + row + origin[1]
    return merge_touching(place[:, 0], place[:, 1])


def merge_touching(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join each run that begins where the last one ends (a full-height column and the next)."""
    if not len(starts):
        return starts, ends
    apart = starts[1:] != ends[:-1]
    return starts[np.concatenate([[True], apart])], ends[np.concatenate([apart, [True]])]


def read_runs(rles: Sequence[Mapping[str, Any]]) -> Runs:
    """The runs of many RLEs. ValueError("mask i: ...") for one that is malformed."""
    counts, lengths = _read_counts(rles)
    owner = np.repeat(np.arange(len(rles)), lengths)
    totals = np.array([int(r["size"][0]) * int(r["size"][1]) for r in rles], np.int64)
    firsts = np.cumsum(lengths) - lengths
    ends = np.cumsum(counts)
    ends -= np.concatenate([[0], ends])[firsts][owner]
    for i in owner[(counts < 0) | (counts > totals[owner])][:1]:
        raise ValueError(f"mask {i}: RLE with a count that is negative or more than its size has pixels")
    sums = np.bincount(owner, counts, minlength=len(rles)).astype(np.int64)
    for i in np.flatnonzero(sums != totals)[:1]:
        raise ValueError(f"mask {i}: RLE counts sum to {sums[i]}, but its size has {totals[i]} pixels")
    foreground = ((np.arange(len(counts)) - firsts[owner]) % 2 == 1) & (counts > 0)
    ends, counts, owner = ends[foreground], counts[foreground], owner[foreground]
    return Runs(ends - counts, ends, owner, len(rles))


def _read_counts(rles: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Decode all counts, mask after mask, and how many each mask has."""
    given = [r["counts"] for r in rles]
    texts = [c.encode("utf-8", "surrogatepass") if isinstance(c, str) else c for c in given]
    packed = [i for i, c in enumerate(texts) if isinstance(c, bytes)]
    values, lengths = _unpack([texts[i] for i in packed], packed)
    if len(packed) == len(rles):
        return values, lengths
    parts: list[Any] = list(texts)
    for i, part in zip(packed, np.split(values, np.cumsum(lengths)[:-1]) if packed else []):
        parts[i] = part
    arrays = [np.asarray(p, np.int64).reshape(-1) for p in parts]
    return np.concatenate(arrays), np.array([len(a) for a in arrays], np.int64)


def _unpack(texts: list[bytes], names: list[int]) -> tuple[np.ndarray, np.ndarray]:
    data = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - 48
    sizes = np.array([len(t) for t in texts], np.int64)
    last = (data & 0x20) == 0  # the last group of its number
    owner = np.repeat(np.arange(len(texts)), sizes)
    broken = np.bincount(owner, (data < 0) | (data > 63), minlength=len(texts)) > 0
    broken |= sizes == 0
    broken[sizes > 0] |= ~last[np.cumsum(sizes)[sizes > 0] - 1]
    for i in np.flatnonzero(broken)[:1]:
        raise ValueError(f"mask {names[i]}: RLE counts that are cut off or hold characters that cannot be")
    if not len(data):
        return data, np.zeros(0, np.int64)
    ends = np.flatnonzero(last)
    firsts = np.concatenate([[0], ends[:-1] + 1])
    place = 5 * (np.arange(len(data)) - np.repeat(firsts, ends - firsts + 1))
    for i in owner[place > 55][:1]:
        raise ValueError(f"mask {names[i]}: RLE count that is too large")
    values = np.add.reduceat((data & 0x1F) << place, firsts)
    values -= np.where(data[ends] & 0x10, np.int64(1) << (place[ends] + 5), 0)
    lengths = np.bincount(owner[ends], minlength=len(texts))
    return _undo_differences(values, lengths), lengths


def _undo_differences(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Undo the coding by differences: each number from a mask's fourth on is the difference from the one two before."""
    position = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    chain = np.where(position == 0, 0, 1 + (position + 1) % 2)  # the first; 1, 3, 5...; 2, 4, 6...
    key = 3 * np.repeat(np.arange(len(lengths)), lengths) + chain
    order = np.argsort(key, kind="stable")
    sums, key = np.cumsum(values[order]), key[order]
    begins = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    before = np.concatenate([[0], sums])[begins]
    counts = np.empty_like(values)
    counts[order] = sums - np.repeat(before, np.diff(np.append(begins, len(values))))
    return counts


def write_counts(runs: Runs, num_pixels: int) -> list[str]:
    """Encode the compressed counts of each of the N masks, all with `num_pixels` pixels."""
    n = runs.num_masks
    num_runs = np.bincount(runs.owner, minlength=n)
    run_ends = np.cumsum(num_runs)
    tail = np.full(n, num_pixels)  # background after the last run
    some = num_runs > 0
    tail[some] -= runs.ends[run_ends[some] - 1]
    has_tail = tail > 0
    lengths = 2 * num_runs + has_tail
    total = np.cumsum(lengths)
    counts = np.empty(int(total[-1]) if n else 0, np.int64)
    before = np.concatenate([[0], runs.ends])[:-1] if len(runs.ends) else runs.ends
    begins = (run_ends - num_runs)[some]
    before[begins] = 0
    place = 2 * np.arange(len(runs.starts)) + (np.cumsum(has_tail) - has_tail)[runs.owner]
    counts[place] = runs.starts - before
    counts[place + 1] = runs.ends - runs.starts
    counts[total[has_tail] - 1] = tail[has_tail]
    return _pack(counts, lengths)


def _pack(counts: np.ndarray, lengths: np.ndarray) -> list[str]:
    position = np.arange(len(counts)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    values = counts.copy()
    later = position > 2
    values[later] -= counts[np.flatnonzero(later) - 2]
    num_groups = np.ones(len(values), np.int64)  # the least whose sign bit is right
    while (wide := (values >> (5 * num_groups - 1)) != np.where(values < 0, -1, 0)).any():
        num_groups += wide
    ends = np.cumsum(num_groups)
    group = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - num_groups, num_groups)
    data = (np.repeat(values, num_groups) >> (5 * group)) & 0x1F
    data |= np.where(group + 1 < np.repeat(num_groups, num_groups), 0x20, 0)
    text = (data + 48).astype(np.uint8).tobytes().decode("ascii")
    stops = np.concatenate([[0], ends])[np.cumsum(lengths)].tolist()
    return [text[a:b] for a, b in zip([0, *stops], stops)]
