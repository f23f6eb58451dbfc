"""Look at a data set: a page and a contact sheet of its pictures with masks, boxes, class names and key points.

  maskrcnn view DATA --out DIR [--split train|val] [--limit N]
  maskrcnn view DATA --model NAME|RUN|FILE --out DIR         a model beside the ground truth, the worst pictures first

DATA is a folder or a label file of any format (docs/data.md). Written are DIR/index.html, with histograms of
classes, objects and sizes, and DIR/contact_sheet.jpg (of both parts: contact_sheet_train.jpg and so on). Objects
are drawn as training would take them, after the repairs that `maskrcnn doctor` lists. --coco writes the data set
as COCO JSON, whatever its format is.

With --model, pages of pictures follow each other from DIR/index.html on: at the left the objects, those missed in red,
at the right what the model finds, from --score-threshold (0.5), wrong ones in orange with their cause. The part is the
validation part where there is one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskrcnn.cli.model_options import add_model_options, given_options
from maskrcnn.cli.progress import counted
from maskrcnn.errors import UserError

if TYPE_CHECKING:
    from maskrcnn.config import InputConfig
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
        "--limit",
        type=int,
        metavar="N",
        help="pictures of each part, evenly spread, or the N worst ones; 0: all (24, with --model all)",
    )
    add("--coco", type=Path, metavar="FILE", help="write the part (train, or that of --split) as COCO JSON")
    add_model_options(parser, model_required=False)


def main(args: argparse.Namespace) -> int:
    from maskrcnn.files import check_writable, check_writable_folder

    if args.limit is not None and args.limit < 0:
        raise UserError(f"--limit: expected 0 or more, got {args.limit}.")
    if not args.model and (given := given_options(args)):
        raise UserError(f"view: {given[0]} goes with --model.")
    check_writable_folder(args.out)
    if args.coco:
        check_writable(args.coco)
    if args.model:
        return _compare(args)
    parts = read_parts(args)
    limit = 24 if args.limit is None else args.limit

    from maskrcnn.report.dataset import contact_sheet, example_pictures, write_dataset_page
    from maskrcnn.visualize import save_picture

    pictures = {part: example_pictures(data, limit or data.num_images) for part, data in parts.items()}
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


def read_parts(args: argparse.Namespace, input: InputConfig | None = None) -> dict[str, CocoData]:
    """The parts that were asked for, repaired as far as that is possible. input: the model's, if there is one."""
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
            report = check(data, input=input)
            if len(report):
                print(f"{part}: {report.summary()} (see `maskrcnn doctor`)")
            parts[part] = report.repaired()
    if not parts:
        raise UserError(f"--split {args.split}: {args.data} has no such part.")
    return parts


def _compare(args: argparse.Namespace) -> int:
    """Write the pages of a model beside the ground truth."""
    from maskrcnn.cli.model_options import load_model, tta_of
    from maskrcnn.data import to_coco
    from maskrcnn.evaluation.analysis import analysed_kind
    from maskrcnn.evaluation.inference import run_inference
    from maskrcnn.evaluation.pairs import pair
    from maskrcnn.evaluation.scores import scored_kinds
    from maskrcnn.evaluation.truth import load_truth
    from maskrcnn.images.bands import for_people
    from maskrcnn.report.compare import write_comparison

    model = load_model(args)
    parts = read_parts(args, model.config.input)
    part = args.split or ("val" if "val" in parts else "train")
    data = parts[part]
    if args.coco:
        _write_coco(args.coco, data)
    kind = analysed_kind(scored_kinds(model.config))
    if kind == "bbox":
        data = data.without_masks()
    threads = min(4, args.num_threads or 2)
    with counted("view", "pictures") as progress:
        results = run_inference(
            model,
            data,
            num_threads=threads,
            tta=tta_of(args),
            progress=lambda done: progress(done, data.num_images),
        )
    truth = load_truth(to_coco(data))
    numbers = [truth.image_number[i] for i in data.image_ids.tolist()]
    with counted("view", "pages") as progress:
        page = write_comparison(
            args.out,
            f"{Path(args.model).name} on {Path(args.data).resolve().name}",
            pair(truth, results, kind),
            {n: for_people(data.image_path(i), model.config.input) for i, n in enumerate(numbers)},
            0.5 if args.score_threshold is None else args.score_threshold,
            args.limit or 0,
            progress,
        )
    print(f"{part}: {data.num_images:,} images, {len(results):,} detections")
    print(f"page: {page}")
    return 0


def _write_coco(path: Path, data: CocoData) -> None:
    from maskrcnn.data import to_coco
    from maskrcnn.files import write_atomic

    write_atomic(path, json.dumps(to_coco(data)) + "\n")
    print(f"COCO JSON: {path} (images in {data.images_dir})")
