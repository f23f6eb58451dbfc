"""Write data sets anew, labels and pictures.

  maskrcnn data convert SRC --to yolo --out DIR             another format
  maskrcnn data split SRC --share 0.8 --out DIR             a training and a validation part, every class in both
  maskrcnn data merge SRC SRC ... --out DIR                 one set of several, classes matched by name

SRC is a folder or a label file of any format that is read (docs/data.md). DIR must be new, empty, or written by this
command before; it appears when all is written. Defects are repaired as training does it; `maskrcnn doctor SRC` lists
them. Masks are written exactly unless --tolerance lets outlines have fewer corners.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from maskrcnn.cli.progress import counted
from maskrcnn.errors import UserError, check_number

if TYPE_CHECKING:
    from maskrcnn.data import CocoData

_FORMATS = ("coco", "yolo", "labelme", "voc", "cvat", "label-studio")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("verb", choices=("convert", "split", "merge"), metavar="convert|split|merge")
    add("sources", nargs="+", metavar="SRC", help="data set; several to merge")
    add("--out", required=True, type=Path, metavar="DIR", help="folder of the new data set")
    add("--to", choices=_FORMATS, metavar="FORMAT", help=f"{', '.join(_FORMATS)} (coco)")
    add("--images", metavar="DIR", default="", help="folder of the images, if they are not found")
    add("--format", metavar="FORMAT", default="", help="of SRC; found out without it")
    add("--share", type=float, metavar="S", help="split: of the pictures, for training (0.8)")
    add("--link", action="store_true", help="link to the pictures in place of copies")
    add("--tolerance", type=float, default=0.0, metavar="PIXELS", help="that an outline may move (0: exact)")


def main(args: argparse.Namespace) -> int:
    from maskrcnn.data.rewrite import MARK, divided_anew, rewrite
    from maskrcnn.files import check_replaceable

    check_number(args.tolerance, "--tolerance", 0, 1000)
    if args.verb == "convert" and not args.to:
        raise UserError(f"data convert: expected --to, one of {', '.join(_FORMATS)}, got none. Add it.")
    if args.verb != "split" and args.share is not None:
        raise UserError(f"data {args.verb}: expected no --share. It is for split.")
    share = 0.8 if args.share is None else args.share
    if not 0 < share < 1:
        raise UserError(f"--share: expected more than 0 and less than 1, got {share}.")
    if (len(args.sources) > 1) != (args.verb == "merge"):
        several = "two data sets or more" if args.verb == "merge" else "one data set"
        raise UserError(f"data {args.verb}: expected {several}, got {len(args.sources)}.")
    to = args.to or "coco"
    check_replaceable(args.out, MARK)
    parts: dict[str, list[CocoData]] = {}
    for source in args.sources:
        for part, data in _parts(source, args).items():
            parts.setdefault(part, []).append(data)
    if args.verb == "split":
        parts = divided_anew([data for of_part in parts.values() for data in of_part], share)
    with counted("data", "pictures") as progress:
        done = rewrite(parts, args.out, to, link=args.link, tolerance=args.tolerance, progress=progress)
    for part, count in done.num_images.items():
        print(f"{part}: {count:,} images, {done.num_objects[part]:,} objects")
    if done.renamed:
        old, new = done.renamed[0]
        print(f"{len(done.renamed)} renamed, whose name was taken: {old} is {new}")
    print(f"{to}: {args.out}")
    return 0


def _parts(source: str, args: argparse.Namespace) -> dict[str, CocoData]:
    """Parts of a data set, repaired, with all objects, those without masks too."""
    from maskrcnn.data import find_data, read_data
    from maskrcnn.data.quality.check import check

    parts: dict[str, CocoData] = {}
    for part, where in find_data(source, args.images, args.format)._asdict().items():
        if where is None:
            continue
        data = read_data(where)
        if not data.num_objects.any():  # boxes alone
            data = data.without_masks()
        report = check(data)
        if len(report):
            print(f"{source} {part}: {report.summary()} (see `maskrcnn doctor`)")
        parts[part] = report.repaired()
    return parts
