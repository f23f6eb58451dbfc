"""Small COCO data sets and results drawn at random, with pycocotools' numbers for them; and such files with something
wrong.

    python -m tests.coco_cases --cases 1000 [KIND ...]

says how many cases of each kind are equal to pycocotools' numbers to the last bit.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import random
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn.evaluation.scores import evaluate_results
from maskrcnn.masks import rle_encode
from tests.mutate import changed
from tests.outcome import outcome_of

KINDS = ("bbox", "segm", "keypoints")
FILES = ("COCO data", "COCO results")  # that `file_outcome` changes
HEIGHT, WIDTH = 120, 150
IMAGES, CATEGORIES = (3, 5, 70), (1, 4, 9)  # 70 has no objects, 9 neither
NUM_KEYPOINTS = 17
Case = tuple[dict[str, Any], list[dict[str, Any]]]


def random_case(seed: int, keypoints: bool = False) -> Case:
    """Draw a data set and results. Few scores, so that there are ties; crowds, images and classes without objects,
    near misses, objects that nobody finds, no results at all, no objects at all.
    """
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in IMAGES[:2]:
        for _ in range(0 if rng.random() < 0.1 else rng.integers(0, 6)):
            bitmap = _mask(rng)
            entry = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": int(rng.choice(CATEGORIES[:2])),
            }
            entry |= {"bbox": _box(bitmap), "segmentation": rle_encode(bitmap), "area": int(bitmap.sum())}
            entry["iscrowd"] = int(rng.random() < 0.2)
            if keypoints:
                entry |= _keypoints(rng, entry["bbox"])  # pyright: ignore[reportArgumentType]
            annotations.append(entry)
            for _ in range(rng.integers(0, 3)):
                shifted = np.roll(bitmap, rng.integers(-6, 7, 2), axis=(0, 1))
                results.append(_result(rng, image, entry["category_id"], shifted))  # pyright: ignore[reportArgumentType]
                if keypoints:
                    moved = np.reshape(np.array(entry["keypoints"], float), (-1, 3))
                    moved[:, :2] += rng.normal(0, rng.choice([0, 1, 4, 15]), moved[:, :2].shape).round(2)
                    results[-1]["keypoints"] = moved.flatten().tolist()
    for _ in range(rng.integers(0, 4)):
        bitmap = _mask(rng)
        results.append(_result(rng, int(rng.choice(IMAGES)), int(rng.choice(CATEGORIES)), bitmap))
        if keypoints:
            results[-1]["keypoints"] = _keypoints(rng, results[-1]["bbox"])["keypoints"]
    if keypoints:
        for entry in (*annotations, *results):
            del entry["segmentation"]
    images = [{"id": i, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.png"} for i in IMAGES]
    categories = [{"id": i, "name": f"class {i}"} for i in CATEGORIES]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def random_lvis_case(seed: int) -> Case:
    """Draw a data set in LVIS's form, and results, of which some are empty and some reach beyond the image."""
    truth, results = random_case(seed)
    rng = np.random.default_rng([seed, 1])
    held = {(a["image_id"], a["category_id"]) for a in truth["annotations"]}
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    for category in truth["categories"]:
        category["frequency"] = str(rng.choice(["r", "c", "f"]))
    for image in truth["images"]:
        lacking = [k for k in CATEGORIES if (image["id"], k) not in held]
        image["neg_category_ids"] = [k for k in lacking if rng.random() < 0.5]
        image["not_exhaustive_category_ids"] = [k for k in CATEGORIES if rng.random() < 0.3]
    for entry in results:
        if rng.random() < 0.2:
            entry["bbox"][0] -= WIDTH / 2
    for image in IMAGES:
        empty = rle_encode(np.zeros((HEIGHT, WIDTH), np.uint8))
        entry = {"image_id": image, "category_id": int(rng.choice(CATEGORIES)), "score": float(rng.random())}
        results.append(entry | {"bbox": [10.0, 10.0, 0.0, 5.0], "segmentation": empty})
    return truth, results


def pycocotools_numbers(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> list[float]:
    """Numbers of pycocotools' own summary; for key points with the boxes of the results left out, as for COCO."""
    drop = {"bbox": "segmentation", "segm": "bbox", "keypoints": ""}[kind]
    results = [{k: v for k, v in r.items() if k != drop} for r in copy.deepcopy(results)]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)  # pyright: ignore[reportAttributeAccessIssue]
        coco.createIndex()
        if results:
            found = coco.loadRes(results)  # pyright: ignore[reportArgumentType]
        else:
            found = COCO()
            found.dataset = {**coco.dataset, "annotations": []}
            found.createIndex()
        scorer = COCOeval(coco, found, kind)  # pyright: ignore[reportArgumentType]
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return [float(v) for v in scorer.stats]


def outcome(kind: str, seed: int, folder: Path | None = None) -> str:
    """Compare with pycocotools' numbers, of which not one bit may differ: "equal", or the differences."""
    truth, results = random_case(seed, keypoints=kind == "keypoints")
    expected = pycocotools_numbers(truth, results, kind)
    got = list(evaluate_results(truth, results, kinds=[kind]).numbers[kind].values())
    return "equal" if got == expected else f"{kind} {seed}: expected {expected}, got {got}"


def file_outcome(kind: str, seed: int, folder: Path) -> str:
    """Read one changed file: "read", "refused" (one line of at most 300 characters) or what went wrong."""
    rng = random.Random(f"{kind} {seed}")
    contents = dict(_files())
    contents[kind] = changed("a.json", contents[kind], rng)
    paths = [folder / f"{name}.json" for name in FILES]
    for path, name in zip(paths, FILES, strict=True):
        path.write_bytes(contents[name])
    kinds = rng.choice((None, ["bbox"], ["segm"], ["keypoints"], KINDS))

    def score() -> None:
        for numbers in evaluate_results(*paths, kinds=kinds).numbers.values():
            assert all(-1 <= value <= 1 + 1e-9 for value in numbers.values()), numbers

    return outcome_of(score)


@cache
def _files() -> dict[str, bytes]:
    """Make a data set with boxes, masks (RLE, polygons) and key points, and results with all of them."""
    rng = np.random.default_rng(0)
    truth, results = random_case(6)  # 7 objects, two of them crowds, and 10 results
    for a in truth["annotations"][:3]:
        x, y, w, h = a["bbox"]
        a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    for a in truth["annotations"]:
        a |= _keypoints(rng, a["bbox"])
    for r in results:
        r["keypoints"] = _keypoints(rng, r["bbox"])["keypoints"]
    return {name: json.dumps(content).encode() for name, content in zip(FILES, (truth, results), strict=True)}


def _mask(rng: np.random.Generator) -> np.ndarray:
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8)
    y, x = rng.integers(0, [90, 110])
    h, w = rng.integers(4, 120, 2)
    bitmap[y : y + h, x : x + w] = 1
    bitmap[y : y + h // 3, x : x + w // 4] = 0
    return bitmap


def _box(bitmap: np.ndarray) -> list[float]:
    rows, columns = np.nonzero(bitmap)
    x, y = columns.min().item(), rows.min().item()
    return [x, y, columns.max().item() + 1 - x, rows.max().item() + 1 - y]


def _result(rng: np.random.Generator, image: int, category: int, bitmap: np.ndarray) -> dict[str, Any]:
    entry = {"image_id": image, "category_id": category, "score": float(rng.choice([0.25, 0.5, 0.75]))}
    return entry | {"bbox": _box(bitmap), "segmentation": rle_encode(bitmap)}


def _keypoints(rng: np.random.Generator, box: list[float]) -> dict[str, Any]:
    """Draw points in the box, some of them hidden, or not there; for some objects none is."""
    x, y, w, h = box
    points = rng.integers(0, 101, (NUM_KEYPOINTS, 2)) / 100 * [w, h] + [x, y]
    visible = rng.integers(0, 3, NUM_KEYPOINTS) * (rng.random() > 0.2)
    values = np.where(visible[:, None] > 0, points.round(1), 0)
    flat = np.concatenate([values, visible[:, None]], axis=1).flatten().tolist()
    return {"keypoints": flat, "num_keypoints": int((visible > 0).sum())}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)} (all)")
    parser.add_argument("--cases", type=int, default=1000, help="of each kind (1000)")
    args = parser.parse_args()
    failed = 0
    for kind in args.kinds or KINDS:
        said = [outcome(kind, seed) for seed in range(args.cases)]
        different = [line for line in said if line != "equal"]
        failed += len(different)
        print(
            f"{kind}: {len(said) - len(different)} of {len(said)} equal",
            *different[:5],
            sep="\n  ",
            flush=True,
        )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
