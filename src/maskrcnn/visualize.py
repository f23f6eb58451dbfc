"""Pictures of instances: masks, contours, boxes and readable labels, with numpy and Pillow alone.

Masks are painted crop by crop into one map of instance numbers, larger instances first, so that a small
object stays visible on a large one and overlapping colours do not mix to mud; the map is then blended into
the picture once. Nothing of size (N, H, W) exists at any moment.

Pictures below 400 pixels on the longest side are drawn enlarged, so that lines and text have room.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskrcnn.errors import UserError, described
from maskrcnn.images.pictures import checked_pixels, pixels_of

if TYPE_CHECKING:
    from PIL import ImageDraw

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")

# Hues that stay apart under the common colour blindnesses (after Okabe and Ito, 2008), brightest first.
_HUES = np.array(
    [
        (0, 150, 230),
        (240, 150, 0),
        (0, 175, 125),
        (230, 90, 175),
        (240, 225, 50),
        (225, 85, 20),
        (130, 110, 235),
    ],
    dtype=np.float64,
)
_DARK = (25, 25, 25)
_SHADES = (0.0, 0.4, -0.3, 0.2, -0.15, 0.55)  # towards white (positive) or black, for further instances
_FILL = 105  # opacity of a mask, of 256
_JPEG_SIDE = 65_500  # pixels; libjpeg's own limit, below the format's 65,535
_CROWD = 30  # from this many instances on, only large ones are labelled


# Gives instance i's mask as (h, w) bool and the (x, y) of its corner, in the pixels of the image.
MaskOf = Callable[[int], tuple[np.ndarray, tuple[int, int]]]


def picture_of(image: Any, size: tuple[int, int]) -> np.ndarray:
    """Pixels (H, W, 3) of the picture that instances of a picture of `size` are to be drawn on.

    Raises:
        UserError: there is none, it cannot be read, or it has another size.
    """
    if image is None:
        raise UserError(
            "draw: these instances carry no picture. Set `instances.image` to a file or an array."
        )
    pixels = pixels_of(image, "draw: instances.image")
    if pixels.shape[:2] != tuple(size):
        raise UserError(
            f"draw: expected a picture of size {tuple(size)}, got {pixels.shape[:2]}. Give the same picture."
        )
    return pixels


def class_name(class_names: Sequence[str], label: int) -> str:
    """Name of a class in pictures: its own, or its number where it has none."""
    return class_names[label] if label < len(class_names) else f"class {label}"


def shown_points(keypoints: np.ndarray | None, threshold: float) -> np.ndarray | None:
    """Places (N, P, 2) of key points (N, P, 3), NaN for those whose score or visibility is not above `threshold`."""
    if keypoints is None:
        return None
    return np.where(keypoints[..., 2:] > threshold, keypoints[..., :2], np.nan)


def tight(mask: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Crop a bitmap to its foreground: the crop and its (x, y) corner."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return mask[:0, :0], (0, 0)
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], (int(columns[0]), int(rows[0]))


def draw(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    texts: Sequence[str],
    mask_of: MaskOf | None,
    points: np.ndarray | None = None,
    skeleton: Sequence[tuple[int, int]] = (),
    colours: np.ndarray | None = None,
) -> np.ndarray:
    """Draw N objects on `image` (H, W, 3) uint8, in whose pixels they are: masks, boxes, key points and a text each.

    boxes (N, 4); labels choose the colours; mask_of(i): mask i as (h, w) bool and the (x, y) of its corner; points
    (N, P, 2), NaN where not to be drawn, and the pairs of them to join; colours (N, 3) uint8, if not those of the
    labels. The result has the picture's own size, or two to four times that where the longest side is below 400 pixels.
    """
    from PIL import Image, ImageDraw

    zoom = _zoom(image.shape[:2])
    if zoom > 1:
        h, w = image.shape[:2]
        image = np.asarray(Image.fromarray(image).resize((w * zoom, h * zoom), Image.Resampling.BICUBIC))
    boxes, crowded = boxes * zoom, len(labels) >= _CROWD
    colours = _colours(labels) if colours is None else colours
    line = max(1, round(max(image.shape[:2]) / 900))
    order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable").tolist()  # large ones first
    if mask_of is not None and order:
        image = _paint_masks(image, mask_of, order, colours, zoom, line if crowded else 2 * line)
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for i in order if mask_of is None or not crowded else ():
        x0, y0, x1, y1 = boxes[i].tolist()
        if x1 - x0 >= 1 and y1 - y0 >= 1:
            draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=tuple(colours[i].tolist()), width=line)
    if points is not None:
        for i in order:
            extent = math.sqrt((boxes[i, 2:] - boxes[i, :2]).clip(1).prod())
            width = min(max(2 * line, round(extent / 50)), 5 * line)
            _draw_figure(draw, points[i] * zoom, skeleton, tuple(colours[i].tolist()), width)
    _draw_labels(draw, boxes, texts, colours, picture.size, crowded)
    return np.asarray(picture)


def side_by_side(panels: Sequence[np.ndarray], titles: Sequence[str] = ()) -> np.ndarray:
    """Join pictures of one height or several on white, next to each other, with a title above each."""
    from PIL import Image, ImageDraw

    size = max(14, round(max(p.shape[0] for p in panels) / 36))
    gap, head = size // 2, (2 * size if titles else 0)
    height = head + max(p.shape[0] for p in panels)
    width = sum(p.shape[1] for p in panels) + gap * (len(panels) - 1)
    sheet = Image.new("RGB", (width, height), "white")
    draw, x = ImageDraw.Draw(sheet), 0
    for i, panel in enumerate(panels):
        sheet.paste(Image.fromarray(panel), (x, head))
        if i < len(titles):
            draw.text((x + 2, head / 2), titles[i], fill=(40, 40, 40), font=_font(size), anchor="lm")
        x += panel.shape[1] + gap
    return np.asarray(sheet)


def save_picture(picture: np.ndarray, path: str | Path) -> None:
    """Write (H, W, 3) uint8 as JPEG or PNG, by the suffix: whole, or not at all.

    A JPEG file holds 65,500 pixels a side: a larger picture is made smaller for it. PNG holds any.

    Raises:
        UserError: no such array, another suffix, the folder does not exist or cannot be written.
    """
    import io

    from PIL import Image

    from maskrcnn.files import write_atomic

    path = check_picture_path(path)
    image, data = Image.fromarray(checked_pixels(picture, "picture")), io.BytesIO()
    if path.suffix.lower() == ".png":
        image.save(data, "PNG", compress_level=3)
    else:
        if (longest := max(image.size)) > _JPEG_SIDE:
            width, height = (max(1, side * _JPEG_SIDE // longest) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BOX, reducing_gap=2.0)
        image.save(data, "JPEG", quality=90, subsampling=0)
    write_atomic(path, data.getvalue())


def check_picture_path(path: str | Path) -> Path:
    """Path of a picture to be written, if its suffix is known and its folder is there; else a `UserError`."""
    if not isinstance(path, str | Path):
        raise UserError(f"draw: expected a path to write to, got {described(path)}.")
    path = Path(path)
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        known = ", ".join(PICTURE_SUFFIXES)
        raise UserError(f"{path}: expected a picture ending in {known}, got {path.suffix or 'no suffix'!r}.")
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder {path.parent} does not exist. Make it first.")
    return path


def _zoom(size: tuple[int, ...]) -> int:
    """Factor to enlarge a picture by: 1 from 400 pixels on; below, the one that brings the longest side to 600 or
    more, at most 4.
    """
    longest = max(size)
    return 1 if longest >= 400 else min(4, math.ceil(600 / longest))


def _enlarged(mask: np.ndarray, zoom: int) -> np.ndarray:
    """Enlarge a bitmap `zoom` times, with a smooth edge."""
    from PIL import Image

    if zoom == 1 or not mask.size:
        return mask
    h, w = mask.shape
    # A margin of one pixel, so that the edge is smooth on the crop's sides too.
    framed = Image.fromarray(np.pad(mask, 1).astype(np.uint8) * 255)
    large = framed.resize(((w + 2) * zoom, (h + 2) * zoom), Image.Resampling.BICUBIC)
    return (np.asarray(large) >= 128)[zoom:-zoom, zoom:-zoom]


def _colours(labels: Sequence[int]) -> np.ndarray:
    """Choose colours (N, 3) uint8: a hue for each class and a shade for each of its instances; hues alone for one
    class.

    A class asks for the hue of its number, so that it mostly looks the same in every picture, and takes the
    next free one where two classes of this picture would share it.
    """
    n, hue_of, seen = len(_HUES), {}, {}
    for label in sorted(set(labels)):
        free = [h for h in range(n) if h not in hue_of.values()] or list(range(n))
        hue_of[label] = min(free, key=lambda h, label=label: (h - label) % n)
    colours = np.zeros((len(labels), 3))
    for i, label in enumerate(labels):
        count = seen[label] = seen.get(label, -1) + 1
        hue, step = (count % n, count // n) if len(hue_of) == 1 else (hue_of[label], count)
        shade = _SHADES[step % len(_SHADES)]
        colours[i] = _HUES[hue] * (1 + min(shade, 0)) + max(shade, 0) * (255 - _HUES[hue])
    return colours.round().astype(np.uint8)


def _paint_masks(
    image: np.ndarray, mask_of: MaskOf, order: Sequence[int], colours: np.ndarray, zoom: int, line: int
) -> np.ndarray:
    """Blend the masks into a copy of `image`, with opaque contours `line` pixels wide."""
    H, W = image.shape[:2]
    inside = np.zeros((H, W), np.int16 if len(order) < 32767 else np.int32)  # 0: nothing; i + 1: instance i
    contour = np.zeros_like(inside)
    for i in order:
        mask, (x, y) = mask_of(i)
        mask, x, y = _enlarged(mask, zoom), x * zoom, y * zoom
        h, w = mask.shape
        np.copyto(inside[y : y + h, x : x + w], i + 1, where=mask)
        np.copyto(contour[y : y + h, x : x + w], i + 1, where=mask & ~_eroded(mask, line))
    tint = np.zeros((len(colours) + 1, 3), np.uint16)
    tint[1:] = colours
    out = image.copy()
    rows = max(1, 2**17 // W)  # bands that stay in the cache
    for top in range(0, H, rows):
        band = slice(top, top + rows)
        if inside[band].any():
            mixed = (out[band] * np.uint16(256 - _FILL) + tint[inside[band]] * np.uint16(_FILL)) >> 8
            np.copyto(out[band], mixed.astype(np.uint8), where=inside[band, :, None] > 0)
            np.copyto(out[band], tint[contour[band]].astype(np.uint8), where=contour[band, :, None] > 0)
    return out


def _eroded(mask: np.ndarray, width: int) -> np.ndarray:
    """Erode a mask: keep the pixels whose neighbours up to `width` away, along rows and columns, all belong to it."""
    framed = np.pad(mask, width)
    for axis in (0, 1):
        reach, span = 1, 2 * width + 1  # doubling: each pixel stands for the `reach` pixels from it on
        while reach < span:
            step = min(reach, span - reach)
            n = framed.shape[axis]
            framed = framed.take(range(n - step), axis) & framed.take(range(step, n), axis)
            reach += step
    return framed


def _draw_figure(
    draw: ImageDraw.ImageDraw,
    points: np.ndarray,
    skeleton: Sequence[tuple[int, int]],
    colour: tuple[int, ...],
    width: int,
) -> None:
    """Draw key points: limbs in the instance's colour and its points in white, both with dark rims that any ground
    lets see.
    """
    places = [place if np.isfinite(place).all() else None for place in points]
    rim = max(1, width // 3)
    ends = [(places[a], places[b]) for a, b in skeleton]
    limbs = [(*a.tolist(), *b.tolist()) for a, b in ends if a is not None and b is not None]
    for limb in limbs:
        draw.line(limb, fill=_DARK, width=width + 2 * rim)
    for limb in limbs:
        draw.line(limb, fill=colour, width=width)
    for point in (place.tolist() for place in places if place is not None):
        draw.circle(point, 0.75 * width + rim, fill=_DARK)
        draw.circle(point, 0.75 * width, fill=(255, 255, 255))


def _draw_labels(
    draw: ImageDraw.ImageDraw,
    boxes: np.ndarray,
    texts: Sequence[str],
    colours: np.ndarray,
    size: tuple[int, int],
    crowded: bool,
) -> None:
    """Draw name chips at the boxes, in the given order of importance, each where it hides least.

    A chip keeps off the chips before it and off small objects, and is left out where it cannot. In a crowd
    only objects larger than their chip get one.
    """
    W, H = size
    font = _font(min(96, max(13, round(max(size) / 55))))
    ascent, descent = font.getmetrics()
    pad, tall = max(2, ascent // 5), ascent + descent + 2
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    placed, chips = np.zeros((0, 4)), []
    for box, area, text, colour in zip(boxes, areas, texts, colours, strict=True):
        wide = math.ceil(font.getlength(text)) + 2 * pad
        if not text or (crowded and area < 3 * wide * tall):
            continue
        places = _chip_places(box, wide, tall, W, H)
        on_chips = _overlap(places, placed).sum(1) / (wide * tall)
        on_small = _overlap(places, boxes[areas < 3 * wide * tall]).sum(1) / (wide * tall)
        best = int((4 * on_chips + on_small).argmin())
        if on_chips[best] > 0.12 or (on_small[best] > 0.6 and len(boxes) > 1):
            continue
        placed = np.concatenate([placed, places[best : best + 1]])
        chips.append((places[best].tolist(), text, colour))
    for (x0, y0, x1, y1), text, colour in reversed(chips):  # the most important ones on top
        bright = float(colour @ np.array([0.299, 0.587, 0.114])) > 140
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=tuple(colour.tolist()))
        draw.text(
            (x0 + pad, (y0 + y1) / 2),
            text,
            fill=(0, 0, 0) if bright else (255, 255, 255),
            font=font,
            anchor="lm",
        )


def _chip_places(box: np.ndarray, wide: int, tall: int, W: int, H: int) -> np.ndarray:
    """Places (P, 4) for a chip in order of preference, all inside the picture."""
    x0, y0, x1, y1 = np.round(box).tolist()
    above, top, middle, bottom, below = y0 - tall, y0, (y0 + y1 - tall) / 2, y1 - tall, y1
    left, centre, right = x0, (x0 + x1 - wide) / 2, x1 - wide
    corners = [(left, above), (left, top), (right, above), (left, below), (left, bottom), (right, top)]
    corners += [(right, bottom), (right, below), (centre, above), (centre, middle), (centre, below)]
    corners += [(x1, top), (x0 - wide, top), (x1, middle), (x0 - wide, middle)]
    if y0 < tall:  # above is outside the picture: begin inside the box
        corners = [c for c in corners if c[1] != above]
    places = np.array(corners, dtype=np.float64)
    places[:, 0] = places[:, 0].clip(0, max(0, W - wide))
    places[:, 1] = places[:, 1].clip(0, max(0, H - tall))
    places = places.round()
    return np.concatenate([places, places + np.array([wide, tall])], axis=1)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Shared areas of boxes (P, Q)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    return (high - low).clip(0).prod(2)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
