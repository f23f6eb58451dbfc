"""Check a data set before training: what is in it, what is wrong with it, and what training will do about that.

  maskrcnn doctor --data DIR_OR_JSON [--images DIR]

Exit status: 0 if training would take the set, with the repairs that are listed; 1 if it would refuse it.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from maskrcnn.errors import UserError

if TYPE_CHECKING:
    from maskrcnn.data import CocoData


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", required=True, metavar="DIR_OR_JSON", help="a COCO JSON, or a folder that holds some")
    add(
        "--images",
        metavar="DIR",
        default="",
        help="folder of the images (by default looked for near the JSON)",
    )
    add("--limit", type=int, metavar="N", default=10, help="findings listed of each kind; 0: all (10)")
    add("--no-files", action="store_true", help="check the JSON only, and open no image")


def main(args: argparse.Namespace) -> int:
    from maskrcnn.data import check, find_data, read_data

    refused = False
    for role, source in find_data(args.data, args.images)._asdict().items():
        if source is None:
            continue
        data = read_data(source)
        report = check(data, images=not args.no_files)
        print(f"{role}: {source.labels}, images in {source.images}")
        for line in _contents(data):
            print(f"  {line}")
        for line in report.lines(args.limit or None):
            print(f"  {line}")
        try:
            left = report.usable()
        except UserError:
            refused = True
            print(
                "  refused: training needs this mended first"
                if report.refused
                else "  refused: nothing to learn"
            )
        else:
            what = (
                "as it is"
                if not len(report)
                else f"{left.num_images:,} images and {left.num_objects.sum():,} objects"
            )
            print(f"  usable: {what}")
    return int(refused)


def _contents(data: CocoData) -> list[str]:
    """What the set holds, before any repair."""
    import numpy as np

    a = data.arrays
    learnt = data.learnt
    lines = [
        f"{data.num_images:,} images ({np.count_nonzero(data.num_objects == 0):,} without objects), "
        f"{len(a['ids']):,} annotations ({np.count_nonzero(a['crowd']):,} crowd regions), "
        f"{len(data.class_names):,} class{'es' * (len(data.class_names) != 1)}"
    ]
    if data.num_images:
        (low_h, low_w), (high_h, high_w) = data.sizes.min(0), data.sizes.max(0)
        lines.append(f"sizes (H x W) from {low_h} x {low_w} to {high_h} x {high_w} (each side by itself)")
        most = int(data.num_objects.max())
        hint = f" (evaluate with --max-detections {most} or more)" if most > 100 else ""
        lines.append(f"objects in an image: {data.num_objects.mean():.1f} on average, {most} at most{hint}")
    counts = np.bincount(a["labels"][learnt], minlength=len(data.class_names))
    order = np.argsort(-counts, kind="stable")
    shown = [f"{data.class_names[k]} {counts[k]:,}" for k in order[:10]]
    rest = f" and {len(order) - 10} more, the rarest {data.class_names[order[-1]]} {counts[order[-1]]:,}"
    lines.append("classes: " + ", ".join(shown) + (rest if len(order) > 10 else ""))
    return lines
