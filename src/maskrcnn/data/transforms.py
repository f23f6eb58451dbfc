"""Augmentation of a training image together with its boxes, masks and key points.

Every function here takes and returns an image (3, h, w) uint8 RGB, or bands (C, h, w) float32 of 0..255, and its
`GroundTruth`. Images are views of (h, w, C) memory, for which torchvision's uint8 kernels are twice as fast, or
`pixel_steps.Noted`, whose pixels follow on a GPU. Masks only have their affine map changed (`InstanceMasks`);
nothing is rasterised.

`augment` follows detectron2 where it has the transform: shortest-edge resize, large-scale jitter as
ResizeScale and FixedSizeCrop, boxes recomputed from the masks where a crop cuts them. Differences: an
image smaller than the crop is not padded here but with its batch, with zeros after normalising; the crop's
two offsets are drawn separately; boxes that no crop cuts stay as annotated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from maskrcnn.config import AugmentConfig
from maskrcnn.data.pixel_steps import Image, coloured, compact, cropped, mirrored, resized, turned
from maskrcnn.images.resize import resize_size
from maskrcnn.structures import GroundTruth

Sample = tuple[Tensor, GroundTruth]
Pairs = Sequence[tuple[int, int]]  # key points that change places in a mirrored image: left and right

MIN_BOX_SIDE = 1.0  # pixels of the network; what is smaller cannot be seen and is not taught


def augment(
    image: Image, truth: GroundTruth, config: AugmentConfig, seed: int, flip_pairs: Pairs = ()
) -> tuple[Image, GroundTruth]:
    """A random view of a sample: window, zoom, resize or jitter, crop, flips, quarter turn, colour, in this order.

    All chance comes from `seed`: the same seed gives the same view. Objects of which the crop leaves
    nothing, or that end up under a pixel wide or high, are left out; key points outside become invisible.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    if config.window_share is not None:
        image, truth = _random_crop(
            image, truth, _draw_window(image.shape[1:], config.window_share, rng), rng
        )
    if config.zoom_sizes and rng.random() < 0.5:
        image, truth = _zoom(image, truth, config, rng)
    sample = resize(image, truth, _draw_size(image.shape[1:], config, rng), config.antialias)
    if config.crop_size is not None:
        sample = _random_crop(*sample, config.crop_size, rng)
    if rng.random() < config.horizontal_flip:
        sample = flip_horizontal(*sample, flip_pairs)
    if rng.random() < config.vertical_flip:
        sample = flip_vertical(*sample, flip_pairs)
    if rng.random() < config.rotate90:
        sample = rotate90(*sample, turns=1 if rng.random() < 0.5 else 3)
    image, truth = sample
    jitter = _jitter_bands if image.dtype.is_floating_point else _jitter_colour
    return compact(jitter(image, config, rng)), _without_specks(truth)


def resize(
    image: Image, truth: GroundTruth, size: tuple[int, int], antialias: bool = True
) -> tuple[Image, GroundTruth]:
    """Resize to `size` (H, W), bilinear: with antialiasing within one level of Pillow's, without of OpenCV's; at an
    eighth of Pillow's time.
    """
    height, width = image.shape[1:]
    if (height, width) == size:
        return image, truth
    sx, sy = size[1] / width, size[0] / height
    image = resized(image, size, antialias)
    masks = None if truth.masks is None else truth.masks.resized(sx, sy)
    points = None if truth.keypoints is None else truth.keypoints * torch.tensor([sx, sy, 1.0])
    return image, dataclasses.replace(
        truth, boxes=truth.boxes * torch.tensor([sx, sy, sx, sy]), masks=masks, keypoints=points
    )


def crop(
    image: Image, truth: GroundTruth, corner: tuple[int, int], size: tuple[int, int]
) -> tuple[Image, GroundTruth]:
    """Crop to the window of `size` (H, W) whose upper left pixel is `corner` (y, x); it must lie in the image.

    Objects with nothing inside are left out. The box of an object that the window cuts becomes the
    tight box of the part of its mask inside; without masks, the part of its box inside. Key points outside
    become invisible.
    """
    (top, left), (height, width) = corner, size
    window = torch.tensor([left, top, left + width, top + height], dtype=torch.float32)
    boxes = torch.cat(
        [torch.maximum(truth.boxes[:, :2], window[:2]), torch.minimum(truth.boxes[:, 2:], window[2:])], dim=1
    )
    inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    if truth.masks is not None:
        cut = inside & (boxes != truth.boxes).any(dim=1)
        bounds = (float(left), float(top), float(left + width), float(top + height))
        boxes[cut] = truth.masks.select(cut.numpy()).tight_boxes(bounds)
        inside &= (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    masks = None if truth.masks is None else truth.masks.shifted(-left, -top)
    boxes = boxes - torch.tensor([left, top, left, top], dtype=torch.float32)
    points = None if truth.keypoints is None else _window(truth.keypoints, window)
    truth = dataclasses.replace(truth, boxes=boxes, masks=masks, keypoints=points)
    return cropped(image, top, left, height, width), _select(truth, inside)


def flip_horizontal(image: Image, truth: GroundTruth, flip_pairs: Pairs = ()) -> tuple[Image, GroundTruth]:
    """Mirror left and right; a left hand becomes a right one."""
    width = image.shape[2]
    x0, y0, x1, y1 = truth.boxes.unbind(1)
    masks = None if truth.masks is None else truth.masks.flipped_horizontal(width)
    boxes = torch.stack([width - x1, y0, width - x0, y1], dim=1)
    points = truth.keypoints
    if points is not None:
        points = _swapped(points, flip_pairs) * torch.tensor([-1.0, 1.0, 1.0]) + torch.tensor(
            [width, 0.0, 0.0]
        )
    return mirrored(image, 2), dataclasses.replace(truth, boxes=boxes, masks=masks, keypoints=points)


def flip_vertical(image: Image, truth: GroundTruth, flip_pairs: Pairs = ()) -> tuple[Image, GroundTruth]:
    """Mirror top and bottom; a left hand becomes a right one here too."""
    height = image.shape[1]
    x0, y0, x1, y1 = truth.boxes.unbind(1)
    masks = None if truth.masks is None else truth.masks.flipped_vertical(height)
    boxes = torch.stack([x0, height - y1, x1, height - y0], dim=1)
    points = truth.keypoints
    if points is not None:
        points = _swapped(points, flip_pairs) * torch.tensor([1.0, -1.0, 1.0]) + torch.tensor(
            [0.0, height, 0.0]
        )
    return mirrored(image, 1), dataclasses.replace(truth, boxes=boxes, masks=masks, keypoints=points)


def rotate90(image: Image, truth: GroundTruth, turns: int = 1) -> tuple[Image, GroundTruth]:
    """Rotate by `turns` quarter turns counterclockwise, as `torch.rot90` over the image's (H, W)."""
    height, width = image.shape[1:]
    masks = None if truth.masks is None else truth.masks.rotated90(height, width, turns)
    boxes, points, w, h = truth.boxes, truth.keypoints, width, height
    for _ in range(turns % 4):
        x0, y0, x1, y1 = boxes.unbind(1)
        boxes = torch.stack([y0, w - x1, y1, w - x0], dim=1)
        if points is not None:
            points = torch.stack([points[..., 1], w - points[..., 0], points[..., 2]], dim=-1)
        w, h = h, w
    truth = dataclasses.replace(truth, boxes=boxes, masks=masks, keypoints=points)
    return turned(image, turns), truth


def _draw_size(size: torch.Size, config: AugmentConfig, rng: np.random.Generator) -> tuple[int, int]:
    """The (H, W) to resize an image of `size` to.

    Without jitter, a shortest side of `min_sizes`. Large-scale jitter is a factor drawn from
    `jitter_scale`, of that size, or, with `crop_size`, of the size at which the image just fits the crop.
    """
    height, width = size
    min_size = config.min_sizes[int(rng.random() * len(config.min_sizes))]
    new_height, new_width = resize_size(height, width, min_size, config.max_size)
    if config.jitter_scale is None:
        return new_height, new_width
    low, high = config.jitter_scale
    factor = low + (high - low) * rng.random()
    if config.crop_size is not None:
        fit = min(config.crop_size[0] / height, config.crop_size[1] / width)
        new_height, new_width = fit * height, fit * width
    return max(1, round(new_height * factor)), max(1, round(new_width * factor))


def _zoom(
    image: Image, truth: GroundTruth, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Image, GroundTruth]:
    """Resize the shortest side to one of `zoom_sizes`, then crop a window of a height and a width drawn from
    `zoom_crop`, so that the later resize enlarges it (DETR's augmentation, Carion et al. 2020).
    """
    min_size = config.zoom_sizes[int(rng.random() * len(config.zoom_sizes))]
    size = resize_size(image.shape[1], image.shape[2], min_size, config.max_size)
    image, truth = resize(image, truth, size, config.antialias)
    height, width = (_draw_side(side, config.zoom_crop, rng) for side in size)
    return _random_crop(image, truth, (height, width), rng)


def _draw_window(size: torch.Size, share: tuple[float, float], rng: np.random.Generator) -> tuple[int, int]:
    """Draw the (H, W) of a window in an image of `size`, each side a share drawn from the range (detectron2's
    `relative_range` crop).
    """
    low, high = share
    height, width = (int(side * (low + (high - low) * rng.random()) + 0.5) for side in size)
    return max(1, height), max(1, width)


def _draw_side(side: int, limits: tuple[int, int], rng: np.random.Generator) -> int:
    """Draw a whole number within `limits`, both of them included, and within `side`."""
    low, high = min(side, limits[0]), min(side, limits[1])
    return low + int(rng.random() * (high - low + 1))


def _random_crop(
    image: Image, truth: GroundTruth, crop_size: tuple[int, int], rng: np.random.Generator
) -> tuple[Image, GroundTruth]:
    """Crop a window of `crop_size` at a random place; along a side on which the image is smaller, all of it."""
    height, width = image.shape[1:]
    size = min(height, crop_size[0]), min(width, crop_size[1])
    top = int(rng.random() * (height - size[0] + 1))
    left = int(rng.random() * (width - size[1] + 1))
    if size == (height, width):
        return image, truth
    return crop(image, truth, (top, left), size)


def _jitter_colour(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """Change brightness, contrast, saturation, hue, grey: always in this order, unlike torchvision's ColorJitter."""
    for strength, adjust in (
        (config.brightness, F.adjust_brightness),
        (config.contrast, F.adjust_contrast),
        (config.saturation, F.adjust_saturation),
    ):
        if strength > 0:
            factor = max(0.0, 1 + strength * (2 * rng.random() - 1))
            image = coloured(image, partial(_changed, adjust=adjust, by=factor))
    if config.hue > 0:
        shift = config.hue * (2 * rng.random() - 1)  # in turns of the colour circle
        image = coloured(image, partial(_changed, adjust=F.adjust_hue, by=(shift + 0.5) % 1 - 0.5))
    if rng.random() < config.grayscale:
        image = coloured(image, partial(F.rgb_to_grayscale, num_output_channels=3))
    return image


def _jitter_bands(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """Change brightness and contrast of each band by a factor of its own: bands are exposed and stained one by one.

    Saturation, hue and grey are a colour picture's, and left out.
    """
    count = image.shape[0]
    for strength, adjust in ((config.brightness, _scaled), (config.contrast, _spread)):
        if strength > 0:
            factors = np.maximum(0.0, 1 + strength * (2 * rng.random(count) - 1)).tolist()
            image = coloured(image, partial(adjust, by=factors))
    return image


def _scaled(image: Tensor, by: list[float]) -> Tensor:
    """Multiply each band of an image (C, h, w) by its factor, within 0..255."""
    return (image * image.new_tensor(by)[:, None, None]).clamp_(0, 255)


def _spread(image: Tensor, by: list[float]) -> Tensor:
    """Multiply each band's distance from its mean by its factor, within 0..255."""
    mean = image.mean((1, 2), keepdim=True)
    return torch.lerp(mean, image, image.new_tensor(by)[:, None, None]).clamp_(0, 255)


def _changed(image: Tensor, adjust: Callable[[Tensor, float], Tensor], by: float) -> Tensor:
    return adjust(image, by)


def _without_specks(truth: GroundTruth) -> GroundTruth:
    keep = (truth.boxes[:, 2:] - truth.boxes[:, :2] >= MIN_BOX_SIDE).all(dim=1)
    return _select(truth, keep)


def _window(points: Tensor, window: Tensor) -> Tensor:
    """Shift key points (N, P, 3) into a window (x0, y0, x1, y1); those outside become invisible."""
    xy, visible = points[..., :2], points[..., 2:]
    inside = ((xy >= window[:2]) & (xy <= window[2:])).all(dim=-1, keepdim=True)
    return torch.cat([xy - window[:2], visible * inside], dim=-1)


def _swapped(points: Tensor, pairs: Pairs) -> Tensor:
    order = list(range(points.shape[1]))
    for a, b in pairs:
        order[a], order[b] = order[b], order[a]
    return points[:, order]


def _select(truth: GroundTruth, keep: Tensor) -> GroundTruth:
    if keep.all():
        return truth
    masks = None if truth.masks is None else truth.masks.select(keep.numpy())
    points = None if truth.keypoints is None else truth.keypoints[keep]
    return dataclasses.replace(
        truth, boxes=truth.boxes[keep], labels=truth.labels[keep], masks=masks, keypoints=points
    )
