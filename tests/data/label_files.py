"""Small pictures and views of a data set that was read, for the tests of the readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn.data import CocoData, find_data, read_data
from maskrcnn.data.quality.check import check

HEIGHT, WIDTH = 40, 60


def picture(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (90, 120, 60)).save(path)  # pyright: ignore[reportArgumentType]
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def label_map(path: Path, numbers: np.ndarray, *, palette: bool = False) -> Path:
    """Make a label picture of `numbers`: grey of 8 or 16 bits, or indices of a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(numbers)
    if palette:
        image = image.convert("P") if image.mode != "P" else image
        image.putpalette([v for k in range(256) for v in (k, 255 - k, (7 * k) % 256)])
    image.save(path)
    return path


def labelme(folder: Path, *shapes: dict[str, Any]) -> None:
    """A picture a.png with a LabelMe file of these shapes."""
    picture(folder / "a.png")
    content = {"shapes": list(shapes), "imagePath": "a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
    write_json(folder / "a.json", content)


def training_part(folder: Path, **options: Any) -> CocoData:
    return read_data(find_data(folder, **options).train)


def objects(data: CocoData) -> list[tuple[str, str, list[float], int]]:
    """List (image id, class, box, mask area in pixels) of each object, as training sees them."""
    found = []
    for i in range(data.num_images):
        truth = data.ground_truth(i)
        assert truth.masks is not None
        bitmaps = truth.masks.to_bitmaps(tuple(data.sizes[i].tolist()))
        for k, label in enumerate(truth.labels.tolist()):
            area = int(np.asarray(bitmaps[k]).sum())
            found.append((str(truth.image_id), data.class_names[label], truth.boxes[k].tolist(), area))
    return found


def defects(data: CocoData) -> dict[str, int]:
    return check(data).counts
