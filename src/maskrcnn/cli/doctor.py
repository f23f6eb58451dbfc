"""Check a data set before training: what is in it, what is wrong with it, and what training will do about that.

  maskrcnn doctor DATA [--out DIR] [--channels N [--band-files PATTERNS]]

DATA is a folder or a label file of any format (docs/data.md). Defects come with the rule by which training repairs
them or refuses the set; after them, what is worth a look though training takes it as it is: pictures that both parts
share, classes that a part lacks, boxes that do not fit their masks, holes, and more. With --out, DIR/index.html
shows the worst of each, drawn. With --channels the pictures are files of bands: depth, range and stretch of each are
told, and pictures in which one is empty.

Exit status: 0 if training would take the set, with the repairs that are listed; 1 if it would refuse it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskrcnn.cli.model_options import whole_number
from maskrcnn.errors import UserError

if TYPE_CHECKING:
    from maskrcnn.config import InputConfig
    from maskrcnn.data import CocoData, Report, Source
    from maskrcnn.report.defects import Chapter


_WORTH_IT = 0.03  # overlap that anchors have to gain to be spoken of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", nargs="?", metavar="DATA", help="a folder or a label file of any known format")
    add("--data", metavar="DATA", help="the same, as the other commands have it")
    add(
        "--images",
        metavar="DIR",
        default="",
        help="folder of the images, if they are not found by themselves",
    )
    add("--format", metavar="FORMAT", default="", help="found out without it")
    add("--out", type=Path, metavar="DIR", help="write a page with pictures there")
    add("--limit", type=int, metavar="N", default=10, help="findings listed of each kind; 0: all (10)")
    add(
        "--channels",
        type=whole_number,
        metavar="N",
        help="the pictures are files of N bands, in their own depth",
    )
    add(
        "--band-files",
        metavar="PATTERNS",
        default="",
        help="of pictures in several files, as '*_red.tif,*_nir.tif'",
    )
    add("--no-files", action="store_true", help="check the labels only, and open no image")


def main(args: argparse.Namespace) -> int:
    from maskrcnn.data import compare, find_data
    from maskrcnn.files import check_writable_folder

    path = args.path or args.data
    if not path or (args.path and args.data):
        raise UserError("doctor: expected one data set, a folder or a label file. Give its path.")
    if args.out:
        check_writable_folder(args.out)
    chapters, sound, refused = [], {}, False
    classes: tuple[Any, ...] = ()  # names and ids of the training part
    for role, source in find_data(path, args.images, args.format)._asdict().items():
        if source is None:
            continue
        chapter, left = _part(role, source, classes, args)
        data = chapter.reports[0].data
        classes = classes or (data.class_names, data.category_ids)
        chapters.append(chapter)
        refused |= left is None
        if left is not None:
            sound[role] = left
    if len(sound) == 2:
        both = compare(sound["train"], sound["val"], images=not args.no_files)
        if len(both):
            print("train and val:")
            _print(both, args.limit)
        chapters.append(_chapter("train and val", [both]))
    if args.out:
        print(f"page: {_page(Path(path), args, chapters)}")
    return int(refused)


def _part(
    role: str, source: Source, classes: tuple[Any, ...], args: argparse.Namespace
) -> tuple[Chapter, CocoData | None]:
    """Print what is found in a part; give it with what training would learn from, None where it would refuse."""
    from maskrcnn.data import advise, read_data
    from maskrcnn.data.quality.check import check

    input = _input(args)

    data = read_data(source, *classes)
    if data.num_keypoints and not data.num_objects.any():  # boxes and key points alone
        data = data.without_masks()
    report = check(data, images=not args.no_files, input=input)
    print(f"{role}: {source.labels} ({source.format}), images in {source.images}")
    for line in _contents(data):
        print(f"  {line}")
    _print(report, args.limit)
    try:
        left = report.usable()
    except UserError:
        why = "training needs this mended first" if report.refused else "nothing to learn"
        print(f"  refused: {why}")
        return _chapter(role, [report]), None
    objects = f"{left.num_images:,} images and {left.num_objects.sum():,} objects"
    print(f"  usable: {objects if len(report) else 'as it is'}")
    if input.channels and not args.no_files:
        from maskrcnn.data.bands import measure_bands

        for number, band in enumerate(measure_bands(left, input)):
            print(f"  band {number}: {band.line()}")
    advice = advise(left, images=not args.no_files, brightest=report.brightest)
    if role == "val":  # said of both parts together
        advice.groups = [g for g in advice.groups if g.kind != "class_without_objects"]
    if len(advice):
        print("  worth a look:")
        _print(advice, args.limit, indent="    ")
    return _chapter(role, [report, advice]), left


def _input(args: argparse.Namespace) -> InputConfig:
    """Input of a model that takes the pictures: of bands, if that was asked for."""
    from maskrcnn.config import InputConfig
    from maskrcnn.images.bands import check_band_files

    patterns = tuple(p.strip() for p in args.band_files.split(",") if p.strip())
    input = InputConfig(channels=args.channels or 0, band_files=patterns)
    check_band_files(input)
    return input


def _chapter(title: str, reports: list[Report]) -> Chapter:
    from maskrcnn.report.defects import Chapter

    return Chapter(title, reports)


def _print(report: Report, limit: int, indent: str = "  ") -> None:
    for line in report.lines(limit or None):
        print(indent + line)


def _page(path: Path, args: argparse.Namespace, chapters: list[Chapter]) -> Path:
    from maskrcnn.report.defects import write_defects_page

    name = path.resolve().name
    lead = "The mask as labelled is blue, the box as given is red."
    return write_defects_page(args.out / "index.html", f"{name}: findings", lead, chapters, limit=args.limit)


def _contents(data: CocoData) -> list[str]:
    """Lines on the set before any repair: numbers of images, objects and classes, and sizes."""
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
    if not shown:
        return [*lines, "classes: none"]
    rest = f" and {len(order) - 10} more, the rarest {data.class_names[order[-1]]} {counts[order[-1]]:,}"
    lines.append("classes: " + ", ".join(shown) + (rest if len(order) > 10 else ""))
    lines.append(_anchors(data))
    if data.num_keypoints:
        objects = np.count_nonzero((data.points(np.flatnonzero(learnt))[..., 2] > 0).any(1))
        lines.append(f"key points: {data.num_keypoints}; {objects:,} objects have visible ones")
    return lines


def _anchors(data: CocoData) -> str:
    """Line on the objects' sizes as the network sees them, and on anchors for them."""
    import numpy as np

    from maskrcnn.config import InputConfig
    from maskrcnn.data.anchors import fit_anchors, object_sizes

    c = InputConfig()
    sizes = object_sizes(data, c)
    if not len(sizes):
        return "objects as the network sees them: none with a box"
    low, middle, high = np.quantile(np.sqrt(sizes.prod(1)), (0.05, 0.5, 0.95))
    fit = fit_anchors(sizes)
    line = (
        f"objects at {c.min_size} to {c.max_size} pixels: {middle:.0f} a side, 5 to 95 % of them {low:.0f} to "
        f"{high:.0f}; anchors of 32 to 512 overlap them by {fit.usual:.2f} at best"
    )
    if fit.overlap - fit.usual < _WORTH_IT:
        return line
    asked = " ".join(f"{size:g}" for size in fit.sizes)
    return f"{line}, {asked} by {fit.overlap:.2f}: train with --model.rpn.anchor_sizes auto"
