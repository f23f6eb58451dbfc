"""Drawings of errors by cause: the errors in orange and, in blue, the objects that they should have been."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.errors import UserError
from maskrcnn.evaluation.analysis import Analysis
from maskrcnn.evaluation.causes import CAUSES, MISSED
from maskrcnn.evaluation.pairs import Picture
from maskrcnn.images.bands import BandsFile
from maskrcnn.images.pictures import pixels_of
from maskrcnn.masks import rle_decode
from maskrcnn.visualize import draw, tight

SIDE = 640  # pixels of the longest side of a drawing
_OBJECT, _ERROR = (0, 150, 230), (240, 130, 0)


def draw_causes(
    analysis: Analysis, paths: Mapping[int, Path | BandsFile], limit: int
) -> dict[str, list[tuple[np.ndarray, str]]]:
    """Draw the worst `limit` pictures of each cause, with captions; `paths`: of the images, by number (see `Truth`), as
    far as known.
    """
    names = analysis.pairs.class_names
    names = names if len(names) > 1 else ("",)  # the one name on every object says nothing
    drawn: dict[str, list[tuple[np.ndarray, str]]] = {cause: [] for cause in CAUSES}
    images: dict[int, np.ndarray | None] = {}
    for cause, found in analysis.worst(limit).items():
        for k, its in found:
            p = analysis.pairs.pictures[k]
            if k not in images:
                images[k] = picture_image(p, paths)
            if (image := images[k]) is not None:
                picture = _errors(
                    p, image, CAUSES.index(cause), analysis.causes.pictures[k].target, its, names
                )
                drawn[cause].append((picture, f"{paths[p.number].name}: {len(its)} {_noun(cause, len(its))}"))
    return drawn


def _noun(cause: str, count: int) -> str:
    return f"object{'s' * (count != 1)} missed" if cause == "missed" else f"error{'s' * (count != 1)}"


def picture_image(p: Picture, paths: Mapping[int, Path | BandsFile]) -> np.ndarray | None:
    """Read the picture; None where it cannot be, or is not of the size that the data set says."""
    try:
        image = pixels_of(paths[p.number], "report") if p.number in paths else None
    except UserError:
        return None
    return image if image is None or p.size in (None, image.shape[:2]) else None


def _errors(
    p: Picture, image: np.ndarray, cause: int, targets: np.ndarray, its: np.ndarray, names: tuple[str, ...]
) -> np.ndarray:
    if cause == MISSED:
        wanted, wrong = its.tolist(), np.zeros(0, int)
    else:
        wanted, wrong = sorted({int(targets[d]) for d in its if targets[d] >= 0}), its
    shapes = [p.objects[i] for i in wanted] + [p.found[d] for d in wrong]
    texts = [names[p.gt_labels[i]] for i in wanted]
    texts += [f"{names[p.labels[d]]} {p.scores[d]:.2f}".strip() for d in wrong]
    colours = [_ERROR if cause == MISSED else _OBJECT] * len(wanted) + [_ERROR] * len(wrong)
    return draw_shapes(image, shapes, texts, colours)


def draw_shapes(
    image: np.ndarray, shapes: Sequence[Any], texts: Sequence[str], colours: Sequence[tuple[int, int, int]]
) -> np.ndarray:
    """Draw masks or boxes x, y, w, h on a picture, at most SIDE long."""
    small, scale = _shrunk(image)
    masks = [_shrunk(rle_decode(s))[0] > 0 for s in shapes if isinstance(s, Mapping)]
    crops = [tight(m) for m in masks]
    if masks:
        boxes = np.array([(x, y, x + c.shape[1], y + c.shape[0]) for c, (x, y) in crops], float)
    else:
        boxes = np.array(shapes, float).reshape(-1, 4) * scale
        boxes[:, 2:] += boxes[:, :2]
    mask_of = crops.__getitem__ if masks else None
    return draw(small, boxes, [0] * len(shapes), texts, mask_of, colours=np.array(colours, np.uint8))


def _shrunk(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture or bitmap, smaller where its longest side is above SIDE, and by what."""
    from PIL import Image

    scale = min(1.0, SIDE / max(pixels.shape[:2]))
    if scale == 1:
        return pixels, scale
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    how = Image.Resampling.BOX if pixels.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, how)), scale
