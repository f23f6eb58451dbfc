"""Numbers for objects that stay the same from frame to frame of a film.

Detections are given to tracks in two rounds, as in ByteTrack (Zhang et al. 2021, arXiv 2110.06864): those that the
model is sure of first, then unsure ones to what is left, so that an object is not lost while it is half hidden. How
alike a track and a detection are is the mean of two overlaps: of their boxes, the track's moved as fast as it was
moving, and of their masks, moved likewise. No tracker's package is used: those that are kept match boxes alone, and
bring an OpenCV that needs a display's libraries.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from maskrcnn.structures import Instances

_SURE = 0.5  # score from which a detection begins a track, and is matched first
_ALIKE = 0.2  # least likeness of a track and a detection
_PATIENCE = 30  # frames that a track may not be seen
_STEADY = 0.5  # share of the last step in a track's speed

Crop = tuple[np.ndarray, tuple[int, int]]  # bitmap (h, w) and the (x, y) of its first pixel


@dataclass(slots=True, eq=False)
class _Track:
    number: int
    label: int
    box: np.ndarray
    mask: Crop | None
    speed: np.ndarray = field(default_factory=lambda: np.zeros(2))  # pixels a frame, x and y
    unseen: int = 0

    @property
    def step(self) -> np.ndarray:
        """Way (x, y) from where it was last seen to where it should be in this frame."""
        return self.speed * (self.unseen + 1)


class Tracker:
    """Tracks of a film: `update` with each frame's detections, in order."""

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._next = 1

    def update(self, found: Instances) -> list[int | None]:
        """Give each detection of the next frame the number of its object, from 1 on; None for what is too unsure to
        begin one.
        """
        boxes = found.boxes.cpu().numpy().astype(float)
        scores, labels = found.scores.cpu().numpy(), found.labels.tolist()
        masks = [None if found.masks is None else found.masks.crop(i) for i in range(len(boxes))]
        numbers: list[int | None] = [None] * len(boxes)
        open_tracks = list(self._tracks)
        for sure in (True, False):
            index = [i for i in range(len(boxes)) if (scores[i] >= _SURE) == sure and numbers[i] is None]
            # What is unsure may go on with a track, but not bring back one that was lost.
            chosen = [t for t in open_tracks if sure or not t.unseen]
            likeness = np.array(
                [[_likeness(t, labels[i], boxes[i], masks[i]) for i in index] for t in chosen]
            ).reshape(len(chosen), len(index))
            for a, b in _best_pairs(likeness):
                track, i = chosen[a], index[b]
                _move(track, boxes[i], masks[i])
                numbers[i] = track.number
                open_tracks.remove(track)
        for track in open_tracks:
            track.unseen += 1
        self._tracks = [t for t in self._tracks if t.unseen <= _PATIENCE]
        for i in np.flatnonzero(scores >= _SURE):
            if numbers[i] is None:
                self._tracks.append(_Track(self._next, labels[i], boxes[i], masks[i]))
                numbers[i] = self._next
                self._next += 1
        return numbers


def _move(track: _Track, box: np.ndarray, mask: Crop | None) -> None:
    step = (_centre(box) - _centre(track.box)) / (track.unseen + 1)
    track.speed = _STEADY * step + (1 - _STEADY) * track.speed
    track.box, track.mask, track.unseen = box, mask, 0


def _centre(box: np.ndarray) -> np.ndarray:
    return (box[:2] + box[2:]) / 2


def _likeness(track: _Track, label: int, box: np.ndarray, mask: Crop | None) -> float:
    if track.label != label:
        return 0.0
    boxes = _overlap_of_boxes(track.box + np.tile(track.step, 2), box)
    if not boxes or track.mask is None or mask is None:
        return boxes
    crop, (x, y) = track.mask
    dx, dy = np.rint(track.step).astype(int).tolist()
    return (boxes + _overlap_of_masks((crop, (x + dx, y + dy)), mask)) / 2


def _overlap_of_boxes(a: np.ndarray, b: np.ndarray) -> float:
    w, h = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = max(w, 0.0) * max(h, 0.0)
    return both / max(float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both), 1e-9)


def _overlap_of_masks(a: Crop, b: Crop) -> float:
    (first, (ax, ay)), (second, (bx, by)) = a, b
    x0, y0 = max(ax, bx), max(ay, by)
    x1 = min(ax + first.shape[1], bx + second.shape[1])
    y1 = min(ay + first.shape[0], by + second.shape[0])
    if x0 >= x1 or y0 >= y1:
        return 0.0
    both = (first[y0 - ay : y1 - ay, x0 - ax : x1 - ax] & second[y0 - by : y1 - by, x0 - bx : x1 - bx]).sum()
    return float(both / max(first.sum() + second.sum() - both, 1))


def _best_pairs(likeness: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column), the most alike first, each row and column once."""
    pairs: list[tuple[int, int]] = []
    left = likeness.copy()
    while left.size and left.max() >= _ALIKE:
        a, b = np.unravel_index(int(left.argmax()), left.shape)
        pairs.append((int(a), int(b)))
        left[a], left[:, b] = 0.0, 0.0
    return pairs
