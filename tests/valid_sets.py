"""A small valid data set of every format, with all kinds of shapes that the format has, as bytes of files."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 60
Files = dict[str, bytes]  # what a folder holds, by relative path
_SQUARE = [[10, 5], [30, 5], [30, 15], [10, 15]]
_FLAT = [float(v) for point in _SQUARE for v in point]


def place(files: Files, folder: Path) -> None:
    """Make the folder hold these files and no others; those that are right already stay, which is quicker."""
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in files:
            path.unlink()
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _picture(form: str = "PNG") -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 60)).save(written, form)
    return written.getvalue()


def _map(*rectangles: tuple[int, int, int, int, int], dtype: type = np.uint8) -> bytes:
    numbers = np.zeros((HEIGHT, WIDTH), dtype)
    for number, x0, y0, x1, y1 in rectangles:
        numbers[y0:y1, x0:x1] = number
    written = io.BytesIO()
    Image.fromarray(numbers).save(written, "PNG")
    return written.getvalue()


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _coco() -> Files:
    images = [{"id": k, "file_name": f"{k}.png", "height": HEIGHT, "width": WIDTH} for k in (1, 2)]
    box, rle = [10, 5, 20, 10], {"size": [HEIGHT, WIDTH], "counts": [205, 10, 2185]}
    annotations = [
        {"id": k, "image_id": i, "category_id": c, "bbox": box, "area": 200, "iscrowd": 0, "segmentation": s}
        for k, (i, c, s) in enumerate(((1, 1, [_FLAT]), (1, 3, [_FLAT, _FLAT]), (2, 3, rle)), start=1)
    ]
    annotations[2]["bbox"] = [5, 5, 1, 10]
    categories = [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog", "supercategory": "animal"}]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    return {"train.json": _json(content), "1.png": _picture(), "2.png": _picture()}


def _via() -> Files:
    xs, ys = ([p[k] for p in _SQUARE] for k in (0, 1))
    shapes = [
        {"name": "polygon", "all_points_x": xs, "all_points_y": ys},
        {"name": "rect", "x": 10, "y": 5, "width": 20, "height": 10},
        {"name": "circle", "cx": 20, "cy": 20, "r": 9},
        {"name": "ellipse", "cx": 20, "cy": 20, "rx": 9, "ry": 5, "theta": 0.5},
    ]
    regions = [{"shape_attributes": s, "region_attributes": {"class": "cat"}} for s in shapes]
    entries = {
        f"{k}.png1": {"filename": f"{k}.png", "size": 1, "regions": regions, "file_attributes": {}}
        for k in "ab"
    }
    return {"via_region_data.json": _json(entries), "a.png": _picture(), "b.png": _picture()}


def _via3() -> Files:
    metadata = {
        str(k): {"vid": "1", "flg": 0, "z": [], "xy": xy, "av": {"1": "0"}}
        for k, xy in enumerate(([7, *_FLAT], [2, 10, 5, 20, 10], [3, 20, 20, 9], [4, 20, 20, 9, 5]))
    }
    project = {
        "project": {"pid": "x", "vid_list": ["1"]},
        "attribute": {"1": {"aname": "class", "options": {"0": "cat"}}},
        "file": {"1": {"fid": "1", "fname": "a.png", "src": "a.png"}},
        "metadata": metadata,
        "view": {"1": {"fid_list": ["1"]}},
    }
    return {"project.json": _json(project), "a.png": _picture()}


def _labelme() -> Files:
    written = io.BytesIO()
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(written, "PNG")
    kinds: list[tuple[str, list[list[int]], Any]] = [
        ("polygon", _SQUARE, None),
        ("rectangle", [[10, 5], [30, 15]], None),
        ("circle", [[20, 20], [20, 29]], 1),
        ("mask", [[7, 8], [12, 11]], None),
        ("polygon", _SQUARE, 1),
    ]
    shapes = [
        {"label": "cat", "points": points, "shape_type": kind, "group_id": group, "flags": {}}
        | ({"mask": base64.b64encode(written.getvalue()).decode()} if kind == "mask" else {})
        for kind, points, group in kinds
    ]
    files: Files = {"labels.txt": b"__ignore__\n_background_\ncat\ndog\n"}
    for name in "ab":
        content = {"version": "5.4", "shapes": shapes, "imagePath": f"{name}.png", "imageData": None}
        files |= {
            f"{name}.json": _json(content | {"imageHeight": HEIGHT, "imageWidth": WIDTH}),
            f"{name}.png": _picture(),
        }
    return files


def _yolo() -> Files:
    line = b"0 0.25 0.25 0.5 0.25 0.5 0.5 0.25 0.5\n"
    files: Files = {
        "data.yaml": b"path: .\ntrain: images/train\nval: val.txt\nnames:\n  0: cat\n  1: 'dog'\n"
    }
    files["val.txt"] = b"images/val/c.png\n"
    for name in ("train/a", "train/b", "val/c"):
        files |= {f"images/{name}.png": _picture(), f"labels/{name}.txt": line + b"1 0 0 1 0 1 1\n"}
    return files


def _voc() -> Files:
    files: Files = {"class_names.txt": b"_background_\nbolt\nnut\n"}
    for name in "ab":
        files[f"JPEGImages/{name}.png"] = _picture()
        files[f"SegmentationObject/{name}.png"] = _map(
            (255, 8, 3, 32, 17), (1, 10, 5, 30, 15), (2, 40, 20, 50, 30)
        )
        files[f"SegmentationClass/{name}.png"] = _map(
            (255, 8, 3, 32, 17), (2, 10, 5, 30, 15), (1, 40, 20, 50, 30)
        )
    return files | {"ImageSets/Segmentation/train.txt": b"a\nb\n"}


def _instances() -> Files:
    files: Files = {}
    for name in "ab":
        files[f"{name}/images/{name}.png"] = _picture()
        files[f"{name}/masks/0.png"] = _map((255, 10, 5, 30, 15))
        files[f"{name}/masks/1.png"] = _map((255, 40, 20, 50, 30))
    return files


def _cityscapes() -> Files:
    files: Files = {}
    for name in "ab":
        files[f"leftImg8bit/train/ulm_{name}_leftImg8bit.png"] = _picture()
        numbers = ((7, 0, 0, 60, 40), (26, 40, 0, 60, 10), (26000, 10, 5, 30, 15), (24001, 40, 20, 50, 30))
        files[f"gtFine/train/ulm_{name}_gtFine_instanceIds.png"] = _map(*numbers, dtype=np.uint16)
    return files


def _cityscapes_polygons() -> Files:
    files: Files = {}
    objects = [{"label": "cell", "polygon": _SQUARE}, {"label": "nut", "polygon": _SQUARE, "deleted": 0}]
    for name in "ab":
        files[f"{name}.png"] = _picture()
        files[f"{name}_polygons.json"] = _json({"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects})
    return files


_VALID: dict[str, Callable[[], Files]] = {
    "coco": _coco,
    "via": _via,
    "via3": _via3,
    "labelme": _labelme,
    "yolo": _yolo,
    "voc": _voc,
    "instances": _instances,
    "cityscapes": _cityscapes,
    "cityscapes_polygons": _cityscapes_polygons,
}
READERS = tuple(_VALID)


@cache
def valid(reader: str) -> Files:
    """Small data set of this format before anything is changed. Not to be written to."""
    return _VALID[reader]()
