"""Objects put together from what overlapping tiles saw of them.

Two tiles that overlap saw the same pixels there. What they found is one object if it is of one class and the masks
agree on these pixels. A piece that reaches an inner edge of its tile is cut, any other is whole. Then:

- of two whole pieces the better stays;
- a cut piece beside a whole one of the same object goes;
- cut pieces that are left are joined, across any number of tiles, and so are pieces of which one seems whole, if they
  agree so well that they must be parts of an object that another one hides.

What went joins nothing: in a crowd a network has several opinions of a place, and a poor one that agrees with two good
ones would make one object of them. The result does not depend on the order of the tiles: pieces are sorted first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from maskrcnn.masks.rle import bitmap_runs

EDGE = 4  # pixels: what ends this close to the edge of a tile is cut by it, for masks are not exact
AGREE = 0.5  # intersection over union of two masks, on the pixels that both tiles saw
SURE = 0.9  # the same where one piece seems whole and yet is to be joined: it was parted, not cut


@dataclass(slots=True, frozen=True)
class Tile:
    """A window of the picture, in its pixels, ends excluded."""

    x0: int
    y0: int
    x1: int
    y1: int

    def common(self, other: Tile) -> Tile | None:
        """Window of the pixels in both tiles, or None."""
        x0, y0 = max(self.x0, other.x0), max(self.y0, other.y0)
        x1, y1 = min(self.x1, other.x1), min(self.y1, other.y1)
        return Tile(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


@dataclass(slots=True, eq=False)
class Pieces:
    """N masks of objects as tiles saw them, in arrays, for there may be hundreds of thousands.

    boxes: (N, 4) float64 and windows: (N, 4) int64, x0, y0, x1, y1 in the picture: of the detection, and of the crop
    that its mask's pixels fill; scores: (N,) float64; labels, tiles: (N,) int64; bits: (B,) uint8, the crops' packed
    bits; begins: (N,) int64, where each begins in them.
    """

    boxes: np.ndarray
    windows: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    tiles: np.ndarray
    bits: np.ndarray
    begins: np.ndarray

    @classmethod
    def of_tile(
        cls, tile: int, found: Sequence[tuple[Sequence[float], float, int, np.ndarray, tuple[int, int]]]
    ) -> Pieces:
        """Pieces of one tile: box, score, label, mask (h, w) bool, and its place (x, y) in the picture, of each."""
        bits = [np.packbits(mask) for *_, mask, _ in found]
        lengths = np.array([len(b) for b in bits], np.int64)
        windows = [(x, y, x + mask.shape[1], y + mask.shape[0]) for *_, mask, (x, y) in found]
        return cls(
            np.array([box for box, *_ in found], np.float64).reshape(-1, 4),
            np.array(windows, np.int64).reshape(-1, 4),
            np.array([score for _, score, *_ in found], np.float64),
            np.array([label for _, _, label, *_ in found], np.int64),
            np.full(len(found), tile, np.int64),
            np.concatenate(bits) if bits else np.zeros(0, np.uint8),
            np.cumsum(lengths) - lengths,
        )

    @classmethod
    def joined(cls, parts: Sequence[Pieces]) -> Pieces:
        """Join the pieces of all tiles."""
        parts = [*parts, cls.of_tile(0, [])]
        before = np.cumsum([0] + [len(part.bits) for part in parts])
        return cls(
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.windows for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.tiles for part in parts]),
            np.concatenate([part.bits for part in parts]),
            np.concatenate([part.begins + at for part, at in zip(parts, before)]),
        )

    def __len__(self) -> int:
        return len(self.scores)

    def mask(self, i: int) -> np.ndarray:
        """Mask (h, w) bool of a piece's crop."""
        x0, y0, x1, y1 = self.windows[i].tolist()
        h, w = y1 - y0, x1 - x0
        begin = self.begins[i]
        return np.unpackbits(self.bits[begin : begin + -(-h * w // 8)], count=h * w).reshape(h, w).view(bool)

    def within(self, i: int, zone: Tile) -> np.ndarray:
        """Mask (h, w) bool of a piece on the pixels of `zone`."""
        x0, y0, x1, y1 = self.windows[i].tolist()
        result = np.zeros((zone.y1 - zone.y0, zone.x1 - zone.x0), bool)
        a, b, c, d = max(y0, zone.y0), min(y1, zone.y1), max(x0, zone.x0), min(x1, zone.x1)
        if a < b and c < d:
            crop = self.mask(i)[a - y0 : b - y0, c - x0 : d - x0]
            result[a - zone.y0 : b - zone.y0, c - zone.x0 : d - zone.x0] = crop
        return result

    def cut(self, tiles: Sequence[Tile], size: tuple[int, int]) -> np.ndarray:
        """Tell which masks reach an edge of their tile that is not the picture's: (N,) bool."""
        edges = np.array([[t.x0, t.y0, t.x1, t.y1] for t in tiles])[self.tiles]
        height, width = size
        inner = np.concatenate([edges[:, :2] > 0, edges[:, 2:] < np.array([width, height])], axis=1)
        near = np.abs(self.windows - edges) < EDGE
        return np.any(inner & near, axis=1)


def merge(pieces: Pieces, tiles: Sequence[Tile], size: tuple[int, int]) -> list[list[int]]:
    """Group the pieces that are one object, best object first, by their numbers; what another tile saw better is left
    out.
    """
    x0, y0, x1, y1 = pieces.windows.T
    order = np.lexsort((pieces.labels, x1 - x0, y1 - y0, y0, x0, pieces.tiles, -pieces.scores))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    cut = pieces.cut(tiles, size)
    same = [(int(rank[i]), int(rank[j]), explained) for i, j, explained in _same(pieces, cut, tiles)]
    pairs = sorted((min(i, j), max(i, j), explained) for i, j, explained in same)
    cut = cut[order]
    gone = np.zeros(len(order), bool)
    parent = list(range(len(order)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    # The whole ones first: a cut piece goes only for one that stays. What goes joins nothing.
    for with_cut in (False, True):
        for i, j, explained in pairs:  # i is the better, by score
            if explained and (cut[i] or cut[j]) == with_cut:
                stays, goes = (j, i) if cut[i] else (i, j)
                if not gone[stays]:
                    gone[goes] = True
    for i, j, explained in pairs:
        if not explained and not gone[i] and not gone[j]:
            first, second = sorted((root(i), root(j)))
            parent[second] = first
    groups: dict[int, list[int]] = {}
    for i in np.flatnonzero(~gone).tolist():
        groups.setdefault(root(i), []).append(int(order[i]))
    return list(groups.values())


def joined_runs(pieces: Pieces, group: Sequence[int], height: int) -> tuple[np.ndarray, np.ndarray]:
    """Foreground runs (starts, ends) of the union of pieces, in a picture `height` high, without a bitmap of it."""
    runs = [
        bitmap_runs(pieces.mask(i), (int(pieces.windows[i, 0]), int(pieces.windows[i, 1])), height)
        for i in group
    ]
    if len(runs) == 1:
        return runs[0]
    starts, ends = (np.concatenate(part) for part in zip(*runs, strict=True))
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    first = np.concatenate([[True], starts[1:] > ends[:-1]])
    return starts[first], ends[np.concatenate([first[1:], [True]])]


def _same(pieces: Pieces, cut: np.ndarray, tiles: Sequence[Tile]) -> Iterator[tuple[int, int, bool]]:
    """Yield the pairs of pieces that are one object seen from two tiles, and whether one explains the other, which then
    adds nothing.
    """
    by_tile = np.argsort(pieces.tiles, kind="stable")
    used, firsts = np.unique(pieces.tiles[by_tile], return_index=True)
    of_tile = dict(zip(used.tolist(), np.split(by_tile, firsts)[1:], strict=True))
    for a, b in _neighbours(used.tolist(), tiles):
        zone = tiles[a].common(tiles[b])
        assert zone is not None
        ours, theirs = (_touching(of_tile[t], pieces.windows, zone) for t in (a, b))
        wa, wb = pieces.windows[ours][:, None], pieces.windows[theirs][None]
        meet = (np.minimum(wa[..., 2:], wb[..., 2:]) > np.maximum(wa[..., :2], wb[..., :2])).all(-1)
        meet &= pieces.labels[ours][:, None] == pieces.labels[theirs][None]
        for m, n in np.argwhere(meet):
            i, j = int(ours[m]), int(theirs[n])
            explained = _explains(pieces, (i, bool(cut[i])), (j, bool(cut[j])), zone)
            if explained is not None:
                yield i, j, explained


def _explains(pieces: Pieces, a: tuple[int, bool], b: tuple[int, bool], zone: Tile) -> bool | None:
    """Return True if one piece is all there is of the other, False if they are parts, None if they are two objects.

    a, b: number, and whether it is cut.
    """
    (i, a_cut), (j, b_cut) = a, b
    ours, theirs = pieces.within(i, zone), pieces.within(j, zone)
    both = int((ours & theirs).sum())
    if not both:
        return None
    agree = both / int((ours | theirs).sum())
    if a_cut and b_cut:
        return False if agree >= AGREE else None
    if not a_cut and not b_cut:
        explained = both >= AGREE * (int(pieces.mask(i).sum()) + int(pieces.mask(j).sum()) - both)
    else:
        part, seen = (i, ours) if a_cut else (j, theirs)
        size = int(pieces.mask(part).sum())
        # Not one that goes on where the other's tile does not reach.
        explained = both >= AGREE * size and (agree < SURE or int(seen.sum()) >= SURE * size)
    if explained:
        return True
    # What seems whole is a part, too, when something in front of the object parts it. Then what both tiles have seen of
    # it is the same; two opinions of one place, as a crowd gives them, are no parts.
    return False if agree >= SURE else None


def _touching(numbers: np.ndarray, windows: np.ndarray, zone: Tile) -> np.ndarray:
    w = windows[numbers]
    return numbers[(w[:, 0] < zone.x1) & (w[:, 2] > zone.x0) & (w[:, 1] < zone.y1) & (w[:, 3] > zone.y0)]


def _neighbours(used: Sequence[int], tiles: Sequence[Tile]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of tiles in `used` that overlap. Tiles lie in rows: the search ends below the first one."""
    for k, a in enumerate(used):
        for b in used[k + 1 :]:
            if tiles[b].y0 >= tiles[a].y1:
                break
            if tiles[a].common(tiles[b]):
                yield a, b
