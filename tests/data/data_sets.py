"""One small data set in every format, with a training and a validation part.

Pictures have an 'ant' on the left and a 'bee' on the right. Validation pictures have a bee alone, so that classes
which a part counts by itself are other classes; in COCO's format it has other ids too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.label_files import HEIGHT, WIDTH, label_map, picture, write_json, write_text

PARTS = {"train": ("a", "b", "c"), "val": ("d", "e")}  # names of the pictures
CLASSES = ("ant", "bee")
BOXES = {"ant": (5, 10, 25, 30), "bee": (32, 8, 56, 36)}  # x0, y0, x1, y1
LABELS = {"ant": 3, "bee": 5}  # of Cityscapes-like pictures


def classes_in(part: str) -> tuple[str, ...]:
    return CLASSES if part == "train" else ("bee",)


def ring(name: str) -> list[list[int]]:
    x0, y0, x1, y1 = BOXES[name]
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def painted(part: str, numbers: dict[str, int], dtype: Any = np.uint8) -> np.ndarray:
    canvas = np.zeros((HEIGHT, WIDTH), dtype)
    for name in classes_in(part):
        x0, y0, x1, y1 = BOXES[name]
        canvas[y0:y1, x0:x1] = numbers[name]
    return canvas


def coco(root: Path, part: str) -> None:
    ids = {"train": {"ant": 1, "bee": 2}, "val": {"ant": 7, "bee": 1}}[part]
    images, annotations = [], []
    for k, stem in enumerate(PARTS[part], start=1):
        picture(root / part / f"{stem}.png")
        images.append({"id": k, "file_name": f"{stem}.png", "height": HEIGHT, "width": WIDTH})
        for name in classes_in(part):
            x0, y0, x1, y1 = BOXES[name]
            polygon = [v for point in ring(name) for v in point]
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            entry = {"id": len(annotations) + 1, "image_id": k, "category_id": ids[name], **box}
            annotations.append({**entry, "segmentation": [polygon]})
    categories = [{"id": i, "name": n} for n, i in ids.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(root / "annotations" / f"{part}.json", content)


def via(root: Path, part: str) -> None:
    content = {}
    for stem in PARTS[part]:
        picture(root / part / f"{stem}.png")
        regions = []
        for name in classes_in(part):
            xs, ys = zip(*ring(name))
            shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
            regions.append({"shape_attributes": shape, "region_attributes": {"name": name}})
        content[stem] = {"filename": f"{stem}.png", "size": 7, "regions": regions}
    write_json(root / part / "via_region_data.json", content)


def labelme(root: Path, part: str) -> None:
    for stem in PARTS[part]:
        picture(root / part / f"{stem}.png")
        shapes = [{"label": n, "points": ring(n), "shape_type": "polygon"} for n in classes_in(part)]
        write_json(root / part / f"{stem}.json", {"shapes": shapes, "imagePath": f"{stem}.png"})


def yolo(root: Path, part: str) -> None:
    yolo_folders(root, part)
    parts = [f"{p}: images/{p}\n" for p in PARTS if (root / "images" / p).is_dir()]
    write_text(root / "data.yaml", "".join(parts) + "names: [ant, bee]\n")


def yolo_folders(root: Path, part: str) -> None:
    write_text(root / "classes.txt", "ant\nbee\n")
    for stem in PARTS[part]:
        picture(root / "images" / part / f"{stem}.png")
        lines = []
        for name in classes_in(part):
            points = [f"{x / WIDTH} {y / HEIGHT}" for x, y in ring(name)]
            lines.append(" ".join([str(CLASSES.index(name)), *points]))
        write_text(root / "labels" / part / f"{stem}.txt", "\n".join(lines))


def voc(root: Path, part: str) -> None:
    write_text(root / "class_names.txt", "_background_\nant\nbee\n")
    write_text(root / "ImageSets" / "Segmentation" / f"{part}.txt", "\n".join(PARTS[part]))
    for stem in PARTS[part]:
        picture(root / "JPEGImages" / f"{stem}.jpg")
        numbers = painted(part, {"ant": 1, "bee": 2})
        label_map(root / "SegmentationObject" / f"{stem}.png", numbers, palette=True)
        label_map(root / "SegmentationClass" / f"{stem}.png", numbers, palette=True)


def instances(root: Path, part: str) -> None:
    for stem in PARTS[part]:
        picture(root / part / stem / "images" / f"{stem}.png")
        for name in classes_in(part):
            numbers = {n: 255 * (n == name) for n in CLASSES}
            label_map(root / part / stem / "masks" / f"{name}.png", painted(part, numbers))


def cityscapes(root: Path, part: str) -> None:
    cityscapes_polygons(root, part)
    for stem in PARTS[part]:
        numbers = painted(part, {n: 1000 * k for n, k in LABELS.items()}, np.uint16)
        label_map(root / "gtFine" / part / f"{stem}_gtFine_instanceIds.png", numbers)


def cityscapes_polygons(root: Path, part: str) -> None:
    for stem in PARTS[part]:
        picture(root / "leftImg8bit" / part / f"{stem}_leftImg8bit.png")
        found = [{"label": n, "polygon": ring(n)} for n in classes_in(part)]
        content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": found}
        write_json(root / "gtFine" / part / f"{stem}_gtFine_polygons.json", content)


WRITERS: dict[str, Callable[[Path, str], None]] = {
    f.__name__: f
    for f in (
        coco, via, labelme, yolo, yolo_folders, voc, instances, cityscapes, cityscapes_polygons
    )
}  # fmt: skip


def write_set(root: Path, kind: str, *parts: str) -> Path:
    """Write the data set by one of `WRITERS`, both parts or those given."""
    for part in parts or PARTS:
        WRITERS[kind](root, part)
    return root
