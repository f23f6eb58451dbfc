"""COCO's numbers of a model on a data set, or of results made elsewhere.

  maskrcnn evaluate --data JSON --images DIR --model NAME --weights FILE --json OUT
  maskrcnn evaluate --data FOLDER --model RUN
  maskrcnn evaluate --data JSON --results RESULTS.json --json OUT
  maskrcnn evaluate --data FOLDER --model RUN --report DIR [--against RUN] [--calibrate]

AP is the mean over IoU .50 to .95; s, m, l are objects below 32^2, below 96^2 and of more pixels; ARn counts
the best n detections of a class in an image. -1 stands where the data has nothing to find. Results may name
images by id or by the stem of their file name. They are scored by the kinds that they hold. A JSON in LVIS's form
(`frequency` of classes, `neg_category_ids` and `not_exhaustive_category_ids` of images) goes by LVIS's rules: APr, APc
and APf are of rare, common and frequent classes, and 300 detections count in an image, of all classes together.

--report writes DIR/index.html for a person, and its numbers as DIR/report.json: AP by class and size with intervals,
boundary AP, what errors cost by cause with the worst pictures drawn, confusions, thresholds to use, counting,
calibration.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskrcnn.cli.model_options import add_model_options, given_options, load_model, tta_of, whole_number
from maskrcnn.cli.progress import counted
from maskrcnn.errors import UserError

if TYPE_CHECKING:
    from maskrcnn.config import InputConfig
    from maskrcnn.data.coco import CocoData
    from maskrcnn.evaluation.calibration import Calibration
    from maskrcnn.evaluation.scores import EvaluationResult
    from maskrcnn.evaluation.truth import Truth
    from maskrcnn.images.bands import BandsFile
    from maskrcnn.models.mask_rcnn import MaskRCNN

_TITLES = {"bbox": "boxes", "segm": "masks", "keypoints": "key points"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        required=True,
        type=Path,
        metavar="DATA",
        help="the data set to score against: a COCO JSON, or a folder or label file of any known format",
    )
    add("--format", metavar="FORMAT", default="", help="of the data set (docs/data.md); found out without it")
    add("--split", choices=("train", "val"), help="the part of a folder (val, if it has one)")
    add("--results", type=Path, metavar="FILE", help="COCO results to score, instead of a model's")
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of the images, if they are not found by themselves",
    )
    add("--json", type=Path, metavar="OUT", help="write the numbers to this file")
    add("--per-class-json", type=Path, metavar="OUT", help="write AP, AP50, AP75 and objects of each class")
    add("--curves", type=Path, metavar="OUT", help="write precision over recall as a picture (.svg)")
    add("--report", type=Path, metavar="DIR", help="write a page about what is found, and its numbers, there")
    add(
        "--against",
        metavar="RUN",
        help="compare with another model, or a file of results (.json), in the report",
    )
    add(
        "--calibrate",
        action="store_true",
        help="keep in the run the temperature that makes its scores shares of right detections",
    )
    add("--save-results", type=Path, metavar="OUT", help="write the model's detections as COCO results")
    add("--kinds", nargs="+", metavar="KIND", help="bbox, segm, keypoints (default: what the results hold)")
    add(
        "--keypoint-sigmas",
        nargs="+",
        type=float,
        metavar="SIGMA",
        help="how far each key point may be off, as a part of its object's size (COCO's for 17 points, else 0.0635)",
    )
    add(
        "--max-detections",
        type=whole_number,
        metavar="N",
        help="detections that count in an image; raise it where images have more objects (100; LVIS: 300)",
    )
    add("--batch-size", type=whole_number, default=1, metavar="N", help="images at a time (1)")
    add_model_options(parser, model_required=False)


def main(args: argparse.Namespace) -> int:
    from maskrcnn.files import check_writable, write_atomic

    _check_form(args)
    for path in (args.json, args.per_class_json, args.curves, args.save_results):
        if path:
            check_writable(path)

    from maskrcnn.data.export import to_coco
    from maskrcnn.data.find import is_other_format
    from maskrcnn.evaluation.analysis import analysed_kind
    from maskrcnn.evaluation.scores import check_limits, evaluate_results, scored_kinds, usual_limit
    from maskrcnn.evaluation.truth import load_truth

    check_limits(args.kinds, args.max_detections)
    analysed = args.report is not None or args.calibrate
    other = _other(args)
    model = None
    if is_other_format(args.data, args.format):  # its classes are numbered as the model's are
        model = load_model(args) if args.model else None
        data = _read_part(args, model)
        truth = load_truth(to_coco(data))
    else:
        data, truth = None, load_truth(args.data)
    args.max_detections = args.max_detections or usual_limit(truth)
    results = args.results
    if args.model:
        model = model or load_model(args)
        args.kinds = _kinds(args.kinds, scored_kinds(model.config), truth)
        if analysed:
            analysed_kind(args.kinds)
        results = _run_model(model, data or _read_json(args), args)
    if args.save_results:
        write_atomic(args.save_results, json.dumps(results) + "\n")
    sigmas = args.keypoint_sigmas
    scores = evaluate_results(truth, results, args.kinds, args.max_detections, keypoint_sigmas=sigmas)
    for warning in scores.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    _print_tables(scores)
    if args.json:
        write_atomic(args.json, json.dumps(scores.numbers, indent=2) + "\n")
    if args.per_class_json:
        write_atomic(args.per_class_json, json.dumps(scores.per_class, indent=2, ensure_ascii=False) + "\n")
    if args.curves:
        from maskrcnn.report.pr_curves import pr_curves_svg

        write_atomic(args.curves, pr_curves_svg(scores))
    if analysed:
        _analyse(args, truth, results, scores, data, other, None if model is None else model.config.input)
    return 0


def _check_form(args: argparse.Namespace) -> None:
    if (args.results is None) == (args.model is None):
        got = "none" if args.model is None else "both"
        raise UserError(f"evaluate: expected either --results or --model, got {got}.")
    if args.against and not args.report:
        raise UserError("evaluate: --against goes with --report.")
    if args.calibrate and (args.model is None or args.weights):
        raise UserError("evaluate: --calibrate goes with --model RUN alone, which keeps the temperature.")
    names = ("save-results",) if args.report else ("images", "save-results")  # the report draws pictures
    images = [f"--{name}" for name in names if getattr(args, name.replace("-", "_"))]
    if args.results and (extra := images + given_options(args)):
        raise UserError(f"evaluate: {extra[0]} goes with --model, not with --results.")


def _kinds(asked: Sequence[str] | None, found: Sequence[str], truth: Truth) -> Sequence[str]:
    """Kinds to score for a model that finds `found`. Faults of the data are told before the model runs."""
    for kind in asked or ():
        if kind not in found:
            raise UserError(f"--kinds {kind}: expected some of what the model finds, {', '.join(found)}.")
    for kind in asked or found:
        if kind == "keypoints" and truth.annotations and not truth.holds(kind):
            raise UserError(
                f"{truth.name}: expected key points, which the model finds, got none. Use --kinds bbox."
            )
        truth.for_scoring(kind)
    return asked or found


def _read_json(args: argparse.Namespace) -> CocoData:
    from maskrcnn.data.coco import read_coco
    from maskrcnn.data.find import find_images

    source = find_images(args.data, args.images or "")
    data = read_coco(source.labels, source.images)
    if data.fits:
        print(f"{args.data}: {len(data.fits)} file names stand for files that fit them", file=sys.stderr)
    return data


def _read_part(args: argparse.Namespace, model: MaskRCNN | None) -> CocoData:
    """The part of a folder to score against: the validation part if there is one, with what is broken left out."""
    from maskrcnn.data import find_data, read_data
    from maskrcnn.data.quality.check import check

    keypoints = model is not None and model.config.keypoint_head is not None
    sources = find_data(args.data, args.images or "", args.format, keypoints)
    split = args.split or ("val" if sources.val else "train")
    source = sources.val if split == "val" else sources.train
    if source is None:
        raise UserError(f"--split val: {args.data} has no such part.")
    if model is not None and model.config.class_names:
        like = model.config
    else:
        like = read_data(sources.train)
    data = read_data(source, like.class_names, like.category_ids or range(len(like.class_names)))
    report = check(data, input=None if model is None else model.config.input)
    print(f"{split} part: {source.labels} ({source.format})", file=sys.stderr)
    if len(report):
        print(f"{source.labels}: {report.summary()} (see `maskrcnn doctor`)", file=sys.stderr)
    data = report.usable()
    return data if model is None or model.config.mask_head is not None else data.without_masks()


def _run_model(model: MaskRCNN, data: CocoData, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The detections of the model on the data set, with progress on standard error."""
    from maskrcnn.evaluation.inference import run_inference

    if args.detections_per_image is None:
        head = model.config.box_head
        head.detections_per_image = max(head.detections_per_image, args.max_detections)
    threads = min(4, args.num_threads or 2)
    with counted("evaluate", "images") as progress:
        return run_inference(
            model,
            data,
            batch_size=args.batch_size,
            num_threads=threads,
            tta=tta_of(args),
            progress=lambda done: progress(done, data.num_images),
        )


def _other(args: argparse.Namespace) -> list[Any] | MaskRCNN | None:
    """Check the places of the outputs before the work, and read what to compare with: results, or a model to run."""
    if args.calibrate:
        from maskrcnn.weights.calibrated import file_to_calibrate

        file_to_calibrate(args.model)
    if args.report:
        from maskrcnn.files import check_replaceable
        from maskrcnn.report.evaluation import NUMBERS

        check_replaceable(args.report, NUMBERS)
    if not args.against:
        return None
    if Path(args.against).suffix == ".json":
        return _read_results(args.against)
    return load_model(argparse.Namespace(**{**vars(args), "model": args.against, "weights": None}))


def _read_results(path: str | Path) -> list[Any]:
    from maskrcnn.evaluation.truth import read_json

    results = read_json(path, "COCO results")
    if not isinstance(results, list):
        raise UserError(f"{path}: expected COCO results, a list of detections, got {type(results).__name__}.")
    return results


def _analyse(
    args: argparse.Namespace,
    truth: Truth,
    results: Any,
    scores: EvaluationResult,
    data: CocoData | None,
    other: list[Any] | MaskRCNN | None,
    input: InputConfig | None,
) -> None:
    """Write the report, and keep the temperature."""
    from maskrcnn.evaluation.analysis import analyse

    results = results if isinstance(results, list) else _read_results(results)
    if other is not None and not isinstance(other, list):
        other = _run_model(other, data or _read_json(args), args)
    analysis = analyse(truth, results, scores, args.max_detections, other, args.against or "")
    if args.report:
        from maskrcnn.report.evaluation import write_evaluation

        page = write_evaluation(
            args.report,
            analysis,
            title=f"{Path(args.model or args.results).name} on {args.data.name}",
            lead=f"{args.model or args.results}, scored on {truth.name if data is None else data.json_path}.",
            paths=_image_paths(args, truth, data, input),
            against=args.against or "",
        )
        print(f"report: {page}")
    if args.calibrate:
        _calibrate(args, analysis.calibration)


def _image_paths(
    args: argparse.Namespace, truth: Truth, data: CocoData | None, input: InputConfig | None
) -> dict[int, Path | BandsFile]:
    """Paths of the images by their numbers; none where results are scored without the images at hand."""
    from maskrcnn.images.bands import for_people

    if data is None:
        try:
            data = _read_json(args)
        except UserError as e:
            if args.images or args.model:
                raise
            print(f"warning: no pictures in the report: {e}", file=sys.stderr)
            return {}
    numbers = (truth.image_number.get(i) for i in data.image_ids.tolist())
    paths = {n: data.image_path(i) for i, n in enumerate(numbers) if n is not None}
    return {n: path if input is None else for_people(path, input) for n, path in paths.items()}


def _calibrate(args: argparse.Namespace, found: Calibration) -> None:
    from maskrcnn.weights.calibrated import file_to_calibrate, keep_temperature

    path = file_to_calibrate(args.model)
    if found.temperature == 1:
        print(f"{path}: too few detections, or all right or all wrong: not calibrated", file=sys.stderr)
        return
    kept = keep_temperature(path, found.temperature)
    print(
        f"calibrated: {path} keeps the temperature {kept:.3f}; expected calibration error "
        f"{found.error:.3f} before, {found.error_after:.3f} after (each half of the pictures by the other)"
    )


def _print_tables(scores: EvaluationResult) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    numbers = Table("", *(_TITLES[kind] for kind in scores.kinds))
    for name in dict.fromkeys(name for values in scores.numbers.values() for name in values):
        found = (values.get(name) for values in scores.numbers.values())
        numbers.add_row(name, *("" if v is None else f"{v:.3f}" for v in found))
    console.print(numbers)
    for kind, result in scores.kinds.items():
        table = Table(title=f"{_TITLES[kind]} by class", title_justify="left")
        table.add_column("class", overflow="fold")
        for name in ("AP", "AP50", "AP75", "objects"):
            table.add_column(name, justify="right")
        for name, values in result.per_class.items():
            if values["objects"]:
                ap, ap50, ap75 = (f"{values[k]:.3f}" for k in ("AP", "AP50", "AP75"))
                table.add_row(name, ap, ap50, ap75, str(values["objects"]))
        console.print(table)
