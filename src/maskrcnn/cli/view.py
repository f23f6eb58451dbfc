"""Look at a data set: a page and a contact sheet of its pictures with masks, boxes, class names and key points.

  maskrcnn view DATA --out DIR [--split train|val] [--limit N]

DATA is a folder or a label file of any format (docs/data.md). Written are DIR/index.html, with histograms of
classes, objects and sizes, and DIR/contact_sheet.jpg (of both parts: contact_sheet_train.jpg and so on). Objects
are drawn as training would take them, after the repairs that `maskrcnn doctor` lists. --coco writes the data set
as COCO JSON, whatever its format is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskrcnn.errors import UserError

if TYPE_CHECKING:
    from maskrcnn.data import CocoData

PARTS = ("train", "val")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", metavar="DATA", help="a folder or a label file of any known format")
    add("--out", required=True, type=Path, metavar="DIR", help="folder to write in; made if missing")
    add(
        "--images",
        metavar="DIR",
        default="",
        help="folder of the images, if they are not found by themselves",
    )
    add("--format", metavar="FORMAT", default="", help="found out without it")
    add("--split", choices=PARTS, help="this part alone")
    add(
        "--limit", type=int, metavar="N", default=24, help="pictures of each part, evenly spread; 0: all (24)"
    )
    add("--coco", type=Path, metavar="FILE", help="write the part (train, or that of --split) as COCO JSON")


def main(args: argparse.Namespace) -> int:
    from maskrcnn.files import check_writable, check_writable_folder

    if args.limit < 0:
        raise UserError(f"--limit: expected 0 or more, got {args.limit}.")
    check_writable_folder(args.out)
    if args.coco:
        check_writable(args.coco)
    parts = read_parts(args)

    from maskrcnn.report.dataset import contact_sheet, example_pictures, write_dataset_page
    from maskrcnn.visualize import save_picture

    pictures = {part: example_pictures(data, args.limit or data.num_images) for part, data in parts.items()}
    for part, shown in pictures.items():
        suffix = f"_{part}" if len(parts) > 1 else ""
        save_picture(contact_sheet(shown), args.out / f"contact_sheet{suffix}.jpg")
    title = Path(args.data).resolve().name
    page = write_dataset_page(args.out / "index.html", title, parts, pictures)
    for part, data in parts.items():
        print(f"{part}: {data.num_images:,} images, {int(data.num_objects.sum()):,} objects")
    if args.coco:
        _write_coco(args.coco, next(iter(parts.values())))
    print(f"page: {page}")
    return 0


def read_parts(args: argparse.Namespace) -> dict[str, CocoData]:
    """The parts that were asked for, repaired as far as that is possible."""
    from maskrcnn.data import find_data, read_data
    from maskrcnn.data.quality.check import check

    sources = find_data(args.data, args.images, args.format)
    parts: dict[str, CocoData] = {}
    classes: tuple[Any, ...] = ()  # names and ids of the training part
    for part, source in zip(PARTS, sources, strict=True):
        if source is None:
            continue
        data = read_data(source, *classes)
        classes = classes or (data.class_names, data.category_ids)
        if data.num_keypoints and not data.num_objects.any():  # boxes and key points alone
            data = data.without_masks()
        if args.split in (None, part):
            report = check(data)
            if len(report):
                print(f"{part}: {report.summary()} (see `maskrcnn doctor`)")
            parts[part] = report.repaired()
    if not parts:
        raise UserError(f"--split {args.split}: {args.data} has no such part.")
    return parts


def _write_coco(path: Path, data: CocoData) -> None:
    from maskrcnn.data import to_coco
    from maskrcnn.files import write_atomic

    write_atomic(path, json.dumps(to_coco(data)) + "\n")
    print(f"COCO JSON: {path} (images in {data.images_dir})")
