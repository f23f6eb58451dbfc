"""Prediction tile by tile: memory and time on large pictures, and what it finds beside a look at the whole.

    python benchmarks/large_picture.py DEMO OUT.json [--sides 10000 20000 40000] \\
        [--run runs/nuclei --labels nuclei/annotations/val.json --images nuclei/val]

DEMO is the folder of `maskrcnn demo`: its model, and its pictures, from which larger ones are put together.

- Large pictures: squares of `side` pixels, in which demo pictures with 100,000 objects on 40,000 x 40,000 pixels
  (and as many a pixel on smaller ones) lie on grey ground, as a TIFF of compressed tiles. `maskrcnn predict --tile 512`
  runs in a process of its own, whose largest resident memory is told by the kernel.
- Small ones: 3 x 3 demo pictures each, and a data set's pictures that are larger than a tile. They are looked at as a
  whole, with nine times the proposals and detections that the model has for one, and in tiles of 256 pixels; both have
  their APs. Pairs of detections of one class whose masks agree by half are doubled: some of them one tile found alone,
  the others are of seams.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DENSITY = 100_000 / 40_000**2  # objects a pixel
TILE, OVERLAP = 256, 64  # of the small pictures
# A small process between: on Linux a program's largest memory is at least that of the process that started it.
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


class Looked(NamedTuple):
    """Model, and pictures that are small enough to look at as a whole, with their truth as COCO's dict."""

    model: Any
    canvases: list[np.ndarray]
    truth: dict[str, Any]
    category_ids: tuple[int, ...]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sides", type=int, nargs="*", default=[10_000, 20_000, 40_000])
    parser.add_argument("--mosaics", type=int, default=40)
    for name in ("run", "labels", "images"):
        parser.add_argument(f"--{name}", type=Path, help="model, labels and pictures of a data set")
    args = parser.parse_args()
    from maskrcnn.processor import describe

    rows: dict[str, Any] = {"machine": describe().line(), "large": [], "small": {}}
    rows["small"]["demo"] = small(mosaics(args.demo, args.mosaics))
    if args.run:
        rows["small"]["data set"] = small(of_data(args.run, args.labels, args.images))
    args.out.write_text(json.dumps(rows, indent=1) + "\n")
    for side in args.sides:
        rows["large"].append(large(args.demo, side))
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
        print(rows["large"][-1], flush=True)


def pictures(demo: Path) -> tuple[list[np.ndarray], list[list[tuple[int, np.ndarray]]]]:
    """Validation pictures of the demo that are 160 x 224, with the class and the mask of each object."""
    from maskrcnn.data import find_data, read_data
    from maskrcnn.images.read import read_image

    val = find_data(demo / "data").val
    assert val is not None
    data = read_data(val)
    shown, objects = [], []
    for i in range(data.num_images):
        image = read_image(data.image_path(i))
        if image.shape[:2] != (160, 224) or len(data.annotations(i, crowd=True)):
            continue
        truth = data.ground_truth(i)
        masks = np.asarray(truth.masks.to_bitmaps((160, 224))) > 0 if truth.masks is not None else []
        shown.append(image)
        objects.append(list(zip(truth.labels.tolist(), masks)))
    return shown, objects


def mosaics(demo: Path, count: int) -> Looked:
    """Put 3 x 3 pictures of the demo together, `count` times."""
    from maskrcnn import zoo
    from maskrcnn.masks import rle_encode

    shown, objects = pictures(demo)
    model = zoo.load(demo / "run", device="cpu")
    rng = np.random.default_rng(0)
    canvases, annotations = [], []
    for number in range(count):
        canvas = np.zeros((480, 672, 3), np.uint8)
        for cell in range(9):
            k = int(rng.integers(len(shown)))
            y, x = 160 * (cell // 3), 224 * (cell % 3)
            canvas[y : y + 160, x : x + 224] = shown[k]
            for label, mask in objects[k]:
                full = np.zeros((480, 672), bool)
                full[y : y + 160, x : x + 224] = mask
                rows, columns = np.flatnonzero(full.any(1)), np.flatnonzero(full.any(0))
                box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "category_id": label, "iscrowd": 0}
                    | {
                        "bbox": [int(v) for v in box],
                        "area": int(full.sum()),
                        "segmentation": rle_encode(full),
                    }
                )
        canvases.append(canvas)
    images = [{"id": k, "file_name": f"{k}.png", "height": 480, "width": 672} for k in range(count)]
    categories = [{"id": k, "name": name} for k, name in enumerate(model.config.class_names)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    return Looked(model, canvases, truth, tuple(range(len(categories))))


def of_data(run: Path, labels: Path, folder: Path) -> Looked:
    """Take the pictures of a data set that are larger than a tile by a quarter at least."""
    from maskrcnn import zoo
    from maskrcnn.data import find_data, read_data
    from maskrcnn.data.export import to_coco
    from maskrcnn.images.read import read_image

    source = find_data(labels, folder).train
    data = read_data(source)
    data = data.subset(data.sizes.min(1) >= TILE * 1.25)
    canvases = [read_image(data.image_path(i)) for i in range(data.num_images)]
    return Looked(zoo.load(run, device="cpu"), canvases, to_coco(data), data.category_ids)


def small(looked: Looked) -> dict[str, Any]:
    """AP of whole pictures and of tiles; objects found and doubled."""
    from maskrcnn.evaluation.scores import evaluate_results
    from maskrcnn.predict import predict_tiled

    model, ids = looked.model, looked.category_ids
    results: dict[str, list[dict[str, Any]]] = {"whole": [], "tiles": []}
    seconds, at_seams = {"whole": 0.0, "tiles": 0.0}, 0
    for image, canvas in zip(looked.truth["images"], looked.canvases, strict=True):
        number = image["id"]
        started = time.perf_counter()
        with nine_times(model.config):
            whole = model.predict(canvas, min_size=min(canvas.shape[:2]), max_size=max(canvas.shape[:2]))
        seconds["whole"] += time.perf_counter() - started
        results["whole"] += whole.to_coco(number, ids)
        started = time.perf_counter()
        with noted_groups() as groups:
            tiled = predict_tiled(Sized(model), canvas, TILE, OVERLAP).to_coco(number, ids)
        seconds["tiles"] += time.perf_counter() - started
        results["tiles"] += tiled
        at_seams += sum(not groups[a] & groups[b] for a, b in doubled(tiled))
    told: dict[str, Any] = {
        "pictures": len(looked.canvases),
        "objects": len(looked.truth["annotations"]),
        "tile": TILE,
        "overlap": OVERLAP,
    }
    for name, found in results.items():
        numbers = evaluate_results(looked.truth, found, max_detections=1000).numbers
        told[name] = {
            "mask AP": numbers["segm"]["AP"],
            "mask AP of medium size": numbers["segm"]["APm"],
            "box AP": numbers["bbox"]["AP"],
            "detections from 0.5": sum(r["score"] >= 0.5 for r in found),
            "doubled": sum(len(doubled(own)) for own in of_picture(found)),
            "seconds": round(seconds[name], 2),
        }
    told["tiles"]["doubled at seams"] = at_seams
    told["whole ones found by tiles"] = shared(results["whole"], results["tiles"])
    return told


class Sized:
    """Model that sees a tile's pixels as they are."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def predict(self, images: Any, /) -> Any:
        side = max(images.shape[:2])
        return self.model.predict(images, min_size=side, max_size=side)


def overlaps(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> np.ndarray:
    from pycocotools import mask

    def rles(found: list[dict[str, Any]]) -> list[Any]:
        return [r["segmentation"] for r in found]

    if not first or not second:
        return np.zeros((len(first), len(second)))
    return np.asarray(mask.iou(rles(first), rles(second), [0] * len(second)))


def of_picture(results: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Detections of each picture that has some, by its id."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for r in results:
        groups.setdefault(r["image_id"], []).append(r)
    return list(groups.values())


def doubled(found: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Pairs of a picture's detections from 0.5 on, of one class, whose masks agree by half."""
    sure = [k for k, r in enumerate(found) if r["score"] >= 0.5]
    chosen = [found[k] for k in sure]
    same = np.equal.outer([r["category_id"] for r in chosen], [r["category_id"] for r in chosen])
    pairs = np.argwhere(np.triu((overlaps(chosen, chosen) >= 0.5) & same, 1)) if chosen else []
    return [(sure[a], sure[b]) for a, b in pairs]


@contextlib.contextmanager
def nine_times(config: Any) -> Iterator[None]:
    """Proposals and detections for nine pictures in one."""
    rpn, head = config.rpn, config.box_head
    before = rpn.pre_nms_topk_test, rpn.post_nms_topk_test, head.detections_per_image
    rpn.pre_nms_topk_test, rpn.post_nms_topk_test = 9 * before[0], 9 * before[1]
    head.detections_per_image = 9 * before[2]
    try:
        yield
    finally:
        rpn.pre_nms_topk_test, rpn.post_nms_topk_test, head.detections_per_image = before


@contextlib.contextmanager
def noted_groups() -> Iterator[list[set[int]]]:
    """Tiles that each of a picture's objects was seen in, once it is predicted."""
    from maskrcnn.tiles import tiled

    seen: list[set[int]] = []
    merge = tiled.merge

    def noted(pieces: Any, *others: Any) -> Any:
        groups = merge(pieces, *others)
        seen[:] = [set(pieces.tiles[group].tolist()) for group in groups]
        return groups

    tiled.merge = noted
    try:
        yield seen
    finally:
        tiled.merge = merge


def shared(whole: list[dict[str, Any]], tiles: list[dict[str, Any]]) -> float:
    """Share of the detections of whole pictures, from 0.5 on, that tiles have too, by mask IoU of a half and class."""
    hits = count = 0
    by_id = {own[0]["image_id"]: own for own in of_picture(tiles)}
    for found in of_picture(whole):
        others = by_id.get(found[0]["image_id"], [])
        found = [r for r in found if r["score"] >= 0.5]
        same = np.equal.outer([r["category_id"] for r in found], [r["category_id"] for r in others])
        hits += int(((overlaps(found, others) >= 0.5) & same).any(1).sum()) if found and others else 0
        count += len(found)
    return round(hits / max(count, 1), 4)


def large(demo: Path, side: int) -> dict[str, Any]:
    """Predict a large picture with the command line; its objects, tiles, seconds and the most memory it took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "slide.tif")
        placed = write_slide(demo, side, path)
        command = [sys.executable, "-m", "maskrcnn", "predict", str(path), "--model", str(demo / "run")]
        command += ["--tile", "512", "--overlap", "64", "--min-size", "512", "--max-size", "512"]
        command += ["--out", f"{folder}/out", "--device", "cpu", "--score-threshold", "0.5"]
        command += ["--max-pixels", str(side * side)]
        started = time.perf_counter()
        told = subprocess.run(
            [sys.executable, "-c", LAUNCHER, *command], check=True, stdout=subprocess.PIPE, text=True
        )
        seconds = time.perf_counter() - started
        peak = int(told.stdout.split()[-1]) / 2**20
        with open(Path(folder, "out", "predictions.json")) as file:
            lines = sum(1 for line in file if line.startswith("{"))
        tiles = len(range(0, side - 512, 512 - 64)) + 1
        return {
            "side": side,
            "objects": placed,
            "detections": lines,
            "tiles": tiles**2,
            "seconds": round(seconds, 1),
            "seconds a tile": round(seconds / tiles**2, 4),
            "largest resident memory, GiB": round(peak, 3),
            "file, MB": round(path.stat().st_size / 1e6),
        }


def write_slide(demo: Path, side: int, path: Path) -> int:
    """Write a TIFF in which demo pictures lie on grey ground, as many as make the objects; returns their number."""
    import tifffile

    shown, objects = pictures(demo)
    rng = np.random.default_rng(side)
    down, across = side // 160, side // 224
    cells = np.full((down, across), -1)
    placed, wanted = 0, round(DENSITY * side**2)
    for place in rng.permutation(down * across):
        if placed >= wanted:
            break
        k = int(rng.integers(len(shown)))
        cells[place // across, place % across] = k
        placed += len(objects[k])
    block = 1024

    def blocks() -> Any:
        for y in range(0, side, block):
            # The rows of cells that a row of blocks meets.
            first, last = y // 160, min(-(-(y + block) // 160), down)
            band = np.full(((last - first + 1) * 160 + block, side + block, 3), 128, np.uint8)
            for row in range(first, last):
                for column in range(across):
                    if (k := cells[row, column]) >= 0:
                        top, left = (row - first) * 160, column * 224
                        band[top : top + 160, left : left + 224] = shown[k]
            offset = y - first * 160
            for x in range(0, side, block):
                yield band[offset : offset + block, x : x + block]

    tifffile.imwrite(
        path,
        blocks(),
        shape=(side, side, 3),
        dtype=np.uint8,
        photometric="rgb",
        tile=(block, block),
        compression="zlib",
        compressionargs={"level": 1},
        bigtiff=True,
    )
    return placed


if __name__ == "__main__":
    main()
