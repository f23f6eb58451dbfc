"""A synthetic instance-segmentation data set in COCO's format: no download, exact masks, any size.

Each picture is a scene: a textured background and textured shapes painted one over the other. A mask is
what is left to see of its shape. Shapes without a hole that nothing covers and no border cuts are written
as polygons, all others as RLE; a crowd is one uncompressed RLE, as in COCO. Some pictures are empty,
a quarter are portraits. Category ids are sparse. The same seed gives the same data set.

Shapes are drawn with `SUPERSAMPLE`² sub-pixels, so that edges are anti-aliased; a pixel belongs to a mask
where at least half of what it shows is the object.
"""

from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from maskrcnn.errors import UserError
from maskrcnn.files import check_writable_folder, write_atomic

CLASSES: dict[str, int] = {
    "disk": 2,
    "box": 3,
    "triangle": 5,
    "star": 8,
    "ring": 13,
}  # name: id
SUPERSAMPLE = 4
MIN_VISIBLE_FRACTION = 0.4  # of a shape, or it would not be fair to ask for it
MIN_VISIBLE_PIXELS = 60
EMPTY_FRACTION = 0.05
CROWD_FRACTION = 0.04
PORTRAIT_FRACTION = 0.25
_MIN_SIZE = 48

Window = tuple[slice, slice]


class Texture(Protocol):
    """Paints (h, w) pixels: float32 (h, w, 3), 0..255."""

    def __call__(self, rng: np.random.Generator, h: int, w: int) -> np.ndarray: ...


@dataclass(slots=True)
class Shape:
    """Shape of one object: its outline and holes in the picture's continuous pixels, (V, 2) x, y each."""

    name: str
    outline: np.ndarray
    holes: list[np.ndarray] = field(default_factory=list)
    crowd: bool = False


@dataclass(slots=True)
class Placed:
    """A shape in a scene, with the share that it has of each pixel of `window`, given what covers it."""

    shape: Shape
    window: Window
    visible: np.ndarray  # (h, w) float32, 0..1
    whole_area: float  # pixels, before the border or other shapes cut it
    cut: bool  # by the border or by another shape

    @property
    def mask(self) -> np.ndarray:
        """Mask of the shape within `window`, (h, w) bool."""
        return self.visible >= 0.5


# --------------------------------------------------------------------------------------------- shapes


def make_shape(name: str, rng: np.random.Generator, center: tuple[float, float], diameter: float) -> Shape:
    """A shape of a class at a random angle; `center` x, y and `diameter` in pixels."""
    radius, angle = diameter / 2, rng.uniform(0, 2 * math.pi)
    holes: list[np.ndarray] = []
    if name == "disk":
        outline = _arc(radius, 0, 2 * math.pi) * [1.0, rng.uniform(0.75, 1.0)]
    elif name == "box":
        outline = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1.0, rng.uniform(0.5, 1.0)] * radius * 0.8
    elif name == "triangle":
        corners = np.array([90, 210, 330]) + rng.uniform(-15, 15, 3)
        outline = radius * np.stack([np.cos(np.radians(corners)), np.sin(np.radians(corners))], 1)
    elif name == "star":
        points = int(rng.integers(5, 7))
        radii = np.where(np.arange(2 * points) % 2 == 0, radius, radius * rng.uniform(0.42, 0.52))
        turn = np.arange(2 * points) * math.pi / points
        outline = radii[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1)
    elif name == "ring":
        outline = _arc(radius, 0, 2 * math.pi)
        holes = [_arc(radius * rng.uniform(0.45, 0.6), 0, 2 * math.pi)]
    else:
        raise UserError(f"shape: expected one of {', '.join(CLASSES)}, got {name!r}.")
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return Shape(name, outline @ rotation + center, [hole @ rotation + center for hole in holes])


def _arc(radius: float, start: float, end: float) -> np.ndarray:
    steps = max(12, min(64, int(radius * abs(end - start) / 2)))
    turn = np.linspace(start, end, steps, endpoint=abs(end - start) < 2 * math.pi)
    return radius * np.stack([np.cos(turn), np.sin(turn)], 1)


def polygon_area(points: np.ndarray) -> float:
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def coverage(shape: Shape, size: tuple[int, int]) -> tuple[Window, np.ndarray]:
    """The part of the picture that a shape touches, and how much of each pixel there it covers, 0..1."""
    low = np.floor(shape.outline.min(0)).astype(int).clip(0)
    high = np.minimum(np.ceil(shape.outline.max(0)).astype(int), (size[1], size[0]))
    w, h = (int(v) for v in np.maximum(high - low, 0))
    window = (slice(int(low[1]), int(low[1]) + h), slice(int(low[0]), int(low[0]) + w))
    if h == 0 or w == 0:
        return window, np.zeros((h, w), np.float32)
    toggles = np.zeros((h * SUPERSAMPLE, w * SUPERSAMPLE + 1), np.int8)
    for points in (shape.outline, *shape.holes):
        _toggle_crossings(toggles, (points - low) * SUPERSAMPLE)
    fine = np.cumsum(toggles[:, :-1], axis=1, dtype=np.int8) & 1
    return window, fine.reshape(h, SUPERSAMPLE, w, SUPERSAMPLE).mean((1, 3), dtype=np.float32)


def _toggle_crossings(toggles: np.ndarray, points: np.ndarray) -> None:
    """Add 1 to each row at the first pixel centre to the right of each crossing of the polygon's edges."""
    rows = np.arange(len(toggles)) + 0.5
    (x0, y0), (x1, y1) = points.T[..., None], np.roll(points, -1, 0).T[..., None]  # each (V, 1)
    edge, row = np.nonzero((y0 <= rows) != (y1 <= rows))
    x0, y0, x1, y1 = (v[edge, 0] for v in (x0, y0, x1, y1))
    x = x0 + (rows[row] - y0) * (x1 - x0) / (y1 - y0)
    np.add.at(toggles, (row, np.ceil(x - 0.5).clip(0, toggles.shape[1] - 1).astype(int)), 1)


# ------------------------------------------------------------------------------------------- textures


def flat(color: Iterable[float]) -> Texture:
    """Texture of one colour, which tests paint with."""
    value = np.asarray(list(color), np.float32)
    return lambda rng, h, w: np.broadcast_to(value, (h, w, 3))


def textured(first: np.ndarray, second: np.ndarray) -> Texture:
    """Texture of a random pattern of two colours: clouds, gradient, stripes, checks or speckle."""

    def paint(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
        pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))](rng, h, w)[..., None]
        grain = rng.normal(0, rng.uniform(2, 8), (h, w, 1)).astype(np.float32)
        return first + (second - first) * pattern + grain

    return paint


def _clouds(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    cells = int(rng.integers(3, 9))
    coarse = rng.random((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC)).clip(0, 1)


def _along(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Distance of each pixel along a random direction, in pixels."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.ogrid[:h, :w]
    return (x * math.cos(angle) + y * math.sin(angle)).astype(np.float32)


def _gradient(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    t = _along(rng, h, w)
    return (t - t.min()) / max(float(np.ptp(t)), 1.0)


def _stripes(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(_along(rng, h, w) * (2 * math.pi / rng.uniform(5, 18)))


def _checks(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    side = float(rng.uniform(4, 12))
    t, s = np.floor(_along(rng, h, w) / side), np.floor(_along(rng, h, w) / side)
    return ((t + s) % 2).astype(np.float32)


def _speckle(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    return (rng.random((h, w), dtype=np.float32) < 0.25).astype(np.float32)


_PATTERNS: tuple[Callable[[np.random.Generator, int, int], np.ndarray], ...] = (
    _clouds,
    _gradient,
    _stripes,
    _checks,
    _speckle,
)


def _around(rng: np.random.Generator, middle: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw two colours, `spread` apart, with `middle` between them."""
    step = rng.normal(0, 1, 3)
    step *= spread / 2 / np.linalg.norm(step)
    return (middle - step).astype(np.float32), (middle + step).astype(np.float32)


# --------------------------------------------------------------------------------------------- scenes


class Scene:
    """Picture being painted, and the part of each object in it that can still be seen."""

    def __init__(self, size: tuple[int, int], background: Texture, rng: np.random.Generator):
        self.size, self.rng = size, rng
        self.pixels = np.array(background(rng, *size), np.float32)  # (H, W, 3)
        self.placed: list[Placed] = []

    def add(self, shape: Shape, texture: Texture) -> bool:
        """Paint a shape over all others, unless too little of it or of one below could then be seen."""
        window, alpha = coverage(shape, self.size)
        whole = polygon_area(shape.outline) - sum(polygon_area(hole) for hole in shape.holes)
        if not _enough(alpha, whole):
            return False
        changes = []
        for below in self.placed:
            left = below.visible.copy()
            ours, theirs = _common(window, below.window)
            left[theirs] *= 1 - alpha[ours]
            lost = float(below.visible.sum() - left.sum())
            if lost > 0:
                if below.shape.crowd or shape.crowd or not _enough(left, below.whole_area):
                    return False
                changes.append((below, left))
        for below, left in changes:
            below.visible, below.cut = left, True
        color = texture(self.rng, *alpha.shape)
        self.pixels[window] += alpha[..., None] * (color - self.pixels[window])
        h, w = self.size
        inside = shape.outline.min() >= 0 and (shape.outline.max(0) <= (w, h)).all()
        self.placed.append(Placed(shape, window, alpha, whole, cut=not inside))
        return True

    def image(self) -> np.ndarray:
        """Picture as painted so far, (H, W, 3) uint8 RGB."""
        return self.pixels.round().clip(0, 255).astype(np.uint8)

    def full_mask(self, placed: Placed) -> np.ndarray:
        """Mask of an object in the whole picture, (H, W) bool."""
        mask = np.zeros(self.size, bool)
        mask[placed.window] = placed.mask
        return mask

    def annotations(self) -> list[dict[str, Any]]:
        """COCO annotations without ids, one an object; what belongs to a crowd becomes one annotation."""
        singles = [self._annotation(p) for p in self.placed if not p.shape.crowd]
        crowd = [p for p in self.placed if p.shape.crowd]
        if not crowd:
            return singles
        mask = np.logical_or.reduce([self.full_mask(p) for p in crowd])
        # COCO's own files hold crowds as uncompressed counts.
        segmentation = {"size": list(self.size), "counts": uncompressed_counts(mask)}
        return [*singles, _entry(crowd[0].shape.name, segmentation, mask, iscrowd=1)]

    def _annotation(self, placed: Placed) -> dict[str, Any]:
        from maskrcnn.masks.rle import rle_encode  # brings torch, which painting does not need

        shape, mask = placed.shape, self.full_mask(placed)
        if placed.cut or shape.holes:
            return _entry(shape.name, rle_encode(mask), mask)
        (x0, y0), (x1, y1) = shape.outline.min(0), shape.outline.max(0)
        entry = _entry(shape.name, [shape.outline.round(2).ravel().tolist()], mask)
        return entry | {"bbox": [round(float(v), 2) for v in (x0, y0, x1 - x0, y1 - y0)]}


def _enough(visible: np.ndarray, whole_area: float) -> bool:
    pixels = int((visible >= 0.5).sum())
    return pixels >= MIN_VISIBLE_PIXELS and pixels >= MIN_VISIBLE_FRACTION * whole_area


def _common(a: Window, b: Window) -> tuple[Window, Window]:
    """The overlap of two windows, in each one's own pixels (empty slices where there is none)."""
    spans = [(max(s.start, t.start), min(s.stop, t.stop)) for s, t in zip(a, b, strict=True)]
    spans = [(low, max(low, high)) for low, high in spans]
    ours, theirs = (
        tuple(slice(low - s.start, high - s.start) for (low, high), s in zip(spans, window, strict=True))
        for window in (a, b)
    )
    return ours, theirs  # type: ignore[return-value]


def _entry(name: str, segmentation: Any, mask: np.ndarray, iscrowd: int = 0) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x0, y0 = int(columns[0]), int(rows[0])
    return {
        "category_id": CLASSES[name],
        "bbox": [x0, y0, int(columns[-1]) + 1 - x0, int(rows[-1]) + 1 - y0],
        "area": int(mask.sum()),
        "iscrowd": iscrowd,
        "segmentation": segmentation,
    }


def uncompressed_counts(mask: np.ndarray) -> list[int]:
    """COCO's run lengths down the columns, beginning with zeros."""
    flat_mask = mask.ravel(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat_mask)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat_mask.size]])).tolist()
    return [0, *runs] if flat_mask[0] else runs


def random_scene(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """A random picture of (H, W) pixels."""
    h, w = size
    scene = Scene(size, _ground_texture(rng), rng)
    if rng.random() < EMPTY_FRACTION:
        return scene
    names = list(CLASSES)
    smallest, largest = max(12.0, 0.13 * min(h, w)), 0.6 * min(h, w)
    for _ in range(int(rng.integers(1, 9))):
        name = names[int(rng.integers(len(names)))]
        texture = _object_texture(rng, name)
        for _ in range(5):
            diameter = math.exp(rng.uniform(math.log(smallest), math.log(largest)))
            if scene.add(make_shape(name, rng, _center(rng, scene, diameter), diameter), texture):
                break
    if rng.random() < CROWD_FRACTION:
        _add_crowd(scene, rng, names[int(rng.integers(len(names)))], 0.7 * smallest)
    return scene


def _object_texture(rng: np.random.Generator, name: str) -> Texture:
    """Texture of an object: each class leans to a hue of its own, as things do, in any shade and pattern."""
    hue = list(CLASSES).index(name) / len(CLASSES) + rng.normal(0, 0.03)
    rgb = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.55, 1.0), rng.uniform(0.4, 1.0))
    return textured(*_around(rng, 255 * np.asarray(rgb), spread=rng.uniform(10, 90)))


def _ground_texture(rng: np.random.Generator) -> Texture:
    """Texture of the background: paler than the objects, in any hue, shade and pattern."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.3), rng.uniform(0.15, 0.95))
    return textured(*_around(rng, 255 * np.asarray(rgb), spread=rng.uniform(10, 70)))


def _center(rng: np.random.Generator, scene: Scene, diameter: float) -> tuple[float, float]:
    """Draw an object's centre: anywhere, or often close enough to another object to overlap it."""
    h, w = scene.size
    if scene.placed and rng.random() < 0.35:
        near = scene.placed[int(rng.integers(len(scene.placed)))].shape.outline
        reach = (np.ptp(near, axis=0).max() + diameter) / 2
        angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1.0) * reach
        x, y = near.mean(0) + distance * np.array([math.cos(angle), math.sin(angle)])
        return float(x), float(y)
    return rng.uniform(0, w), rng.uniform(0, h)


def _add_crowd(scene: Scene, rng: np.random.Generator, name: str, diameter: float) -> None:
    h, w = scene.size
    texture = _object_texture(rng, name)
    reach = 3 * diameter
    x, y = rng.uniform(reach, max(w - reach, reach + 1)), rng.uniform(reach, max(h - reach, reach + 1))
    for _ in range(12):
        center = (x + rng.uniform(-reach, reach), y + rng.uniform(-reach, reach))
        shape = make_shape(name, rng, center, diameter * rng.uniform(0.9, 1.2))
        shape.crowd = True
        scene.add(shape, texture)


# ------------------------------------------------------------------------------------------ data sets


def make_synthetic(
    out_dir: str | Path, num_train: int, num_val: int, size: tuple[int, int] = (160, 224), seed: int = 0
) -> Path:
    """Write a COCO data set: annotations/train.json, annotations/val.json, and the JPEGs in train/ and val/.

    A picture depends on the seed, its split and its number alone, so a larger set begins with the smaller.
    The annotation files come last and whole, so a folder that has both is complete.

    Args:
        size: (height, width) of the landscape pictures; portraits have it turned.

    Returns:
        The folder.

    Raises:
        UserError: a size that is too small, or a folder that cannot be written.
    """
    if min(size) < _MIN_SIZE:
        got = f"{size[0]}x{size[1]}"
        raise UserError(
            f"size: expected at least {_MIN_SIZE} pixels a side, got {got}. Choose a larger size."
        )
    out = check_writable_folder(out_dir)
    sets = {}
    for split, (name, count) in enumerate([("train", num_train), ("val", num_val)]):
        folder = check_writable_folder(out / name)
        sets[name] = _make_split(folder, split, count, size, seed)
    for name, content in sets.items():
        write_atomic(out / "annotations" / f"{name}.json", json.dumps(content))
    return out


def _make_split(folder: Path, split: int, count: int, size: tuple[int, int], seed: int) -> dict[str, Any]:
    images, annotations = [], []
    for number in range(count):
        rng = np.random.default_rng([seed, split, number])
        h, w = size[::-1] if rng.random() < PORTRAIT_FRACTION else size
        scene = random_scene(rng, (h, w))
        image_id, file_name = split * 1_000_000 + number + 1, f"{number:06d}.jpg"
        Image.fromarray(scene.image()).save(folder / file_name, quality=95, subsampling=0)
        images.append({"id": image_id, "file_name": file_name, "height": h, "width": w})
        for entry in scene.annotations():
            annotations.append({"id": len(annotations) + 1, "image_id": image_id} | entry)
    categories = [{"id": i, "name": name, "supercategory": "shape"} for name, i in CLASSES.items()]
    info = {"description": f"Synthetic shapes, seed {seed}"}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}
