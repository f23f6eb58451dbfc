"""Detections as a service answers them: JSON with masks as RLE, polygons or both, or the picture drawn."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from maskrcnn.config import InputConfig, ModelConfig
from maskrcnn.errors import UserError
from maskrcnn.images.read import PictureTooLargeError, image_size, read_image
from maskrcnn.images.resize import resize_image, resize_size
from maskrcnn.masks.outlines import outlines
from maskrcnn.serve.errors import RequestError
from maskrcnn.structures import Instances
from maskrcnn.visualize import class_name

POLYGON_TOLERANCE = 1.0  # pixels that a polygon's edge may lie beside the mask's
Segmentation = Literal["rle", "polygons", "both"]


class _Named(io.BytesIO):
    """Bytes of an upload under the name that messages give it; the client's own name for it is not looked at."""

    name = "image"


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture at the network's size, and how large it was."""

    pixels: Tensor  # (3, h, w) uint8 RGB
    original_size: tuple[int, int]


def decode(picture: bytes, input_config: InputConfig, max_pixels: int) -> Decoded:
    """Read an uploaded picture and resize it for the network.

    Raises:
        RequestError: it is not an image (400), or has more than `max_pixels` (413), which its head tells.
    """
    try:
        height, width = image_size(_Named(picture))
        if height * width > max_pixels:
            raise _too_large(max_pixels)
        image = read_image(_Named(picture))
    except PictureTooLargeError:
        raise _too_large(max_pixels) from None
    except UserError as e:
        raise RequestError(400, str(e)) from None
    c = input_config
    size = resize_size(image.shape[0], image.shape[1], c.min_size, c.max_size, c.resize)
    resized = np.ascontiguousarray(resize_image(image, size, c.resize))
    return Decoded(torch.from_numpy(resized).permute(2, 0, 1), (image.shape[0], image.shape[1]))


def as_json(
    instances: Instances, config: ModelConfig, name: str, segmentation: Segmentation
) -> dict[str, Any]:
    """Describe the detections of a picture in COCO's conventions: see `docs/howto/serve.md`."""
    entries = instances.to_coco(0, config.category_ids)
    for i, (entry, label) in enumerate(zip(entries, instances.labels.tolist(), strict=True)):
        del entry["image_id"]
        entry["bbox"] = [round(v, 2) for v in entry["bbox"]]
        entry["category"] = class_name(instances.class_names, label)
        if instances.masks is None or segmentation == "rle":
            continue
        polygons = [
            [round(v, 2) for v in part] for part in outlines(*instances.masks.crop(i), POLYGON_TOLERANCE)
        ]
        entry["segmentation" if segmentation == "polygons" else "polygons"] = polygons
    return {"model": name, "image_size": list(instances.image_size), "instances": entries}


def as_png(instances: Instances, picture: bytes, score_threshold: float) -> bytes:
    """Draw the detections on the picture that they were found in, as a PNG file."""
    from PIL import Image

    drawn = dataclasses.replace(instances, image=read_image(_Named(picture)))
    out = io.BytesIO()
    Image.fromarray(drawn.draw(score_threshold=score_threshold)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _too_large(max_pixels: int) -> RequestError:
    return RequestError(413, f"image: expected at most {max_pixels} pixels, got more.")
