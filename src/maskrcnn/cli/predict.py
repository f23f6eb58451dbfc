"""Find objects in images: boxes and masks as COCO JSON, and a picture of each image with them drawn in.

IMAGES are files, folders (the images in them, not in their subfolders) or quoted patterns such as
'photos/**/*.jpg'. DIR/predictions.json gets one entry for each detection in COCO's results format:
image_id is the file's name without its ending; category_id is the class index from 0, or the data set's
id where one is given with --data or known from training. DIR/NAME.jpg is the picture of each image.

With --format what was found is written for other programs, several at a time: coco (the above), labelme, cvat,
label-studio and yolo as pre-annotations that labelling tools open, geojson with polygons where they lie on the earth,
and parquet, a row a picture, which a run that is started again goes on with. --shard I/N takes the I-th of N shares of
the pictures, the same on every machine.

A film (.mp4, .mov, ...), the number of a camera or a stream's address is looked at frame by frame, or every N-th with
--every: DIR/NAME.mp4 shows what is found, rows have the image_id NAME/FRAME, and with --track each object keeps one
number. Ctrl-C ends a camera's film, which is written whole.

A file that cannot be read is reported and skipped, a picture that cannot be drawn costs no result; the exit status
is then 1. It is 2 for a mistake in the command; nothing is written then.

With --tile SIZE pictures of any size are looked at tile by tile, and objects that a seam cuts are put together; no
picture is drawn. Each tile is resized as a picture would be: --min-size SIZE keeps its pixels as they are. Of TIFF,
of rasters that GDAL reads (extra geo), and of slides and Zarr (extra micro) only windows are read. With --resume the
tiles that an interrupted run finished are not looked at again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskrcnn.cli.model_options import add_model_options, load_model, tta_of, whole_number
from maskrcnn.cli.progress import counted
from maskrcnn.cores import usable_cores
from maskrcnn.errors import UserError, check_number, did_you_mean

if TYPE_CHECKING:
    from maskrcnn.config import ModelConfig
    from maskrcnn.models.predictor import Predictor

_DRAW_THRESHOLD = 0.5
_TILES = ".tiles"  # in DIR, what --resume goes on from
_IN_THE_PICTURE = ("labelme", "cvat", "label-studio")  # formats with pixels of the file itself
_FILM_FORMATS = ("coco", "parquet")
_FORMATS = ("coco", "labelme", "cvat", "label-studio", "yolo", "geojson", "parquet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders or quoted patterns")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder to write in; made if missing"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DATA",
        help="data set with the category ids and names to use in the results: COCO JSON, or any known format",
    )
    parser.add_argument(
        "--no-draw",
        action="store_true",
        help=f"write no pictures (they show what scores {_DRAW_THRESHOLD}, or --score-threshold)",
    )
    parser.add_argument(
        "--batch-size", type=whole_number, metavar="N", help="images at a time (1 on a CPU, 8 on a GPU)"
    )
    parser.add_argument(
        "--tile", type=whole_number, metavar="SIZE", help="look at pictures in tiles of SIZE pixels"
    )
    parser.add_argument(
        "--overlap",
        type=whole_number,
        metavar="PIXELS",
        help="what neighbouring tiles share: the size of a usual object (an eighth of the tile)",
    )
    parser.add_argument(
        "--level",
        type=int,
        metavar="K",
        help="with --tile: level of a pyramid to look at, whose pixels the results are in; 0 is the largest (0)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="with --tile: keep what an interrupted run found"
    )
    parser.add_argument(
        "--format",
        dest="formats",
        action="append",
        metavar="FORMAT",
        help=f"{', '.join(_FORMATS)}; several with commas (coco)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="PIXELS",
        help="that a polygon's edge may lie beside the mask's; 0: exact (0.5)",
    )
    parser.add_argument(
        "--crs",
        choices=("raster", "wgs84"),
        help="of GeoJSON: the raster's own or WGS 84 (WGS 84 where the picture has a place on the earth, else pixels)",
    )
    parser.add_argument(
        "--sort", choices=("uncertainty",), help="write the pictures first that would teach most if corrected"
    )
    parser.add_argument(
        "--every", type=whole_number, metavar="N", help="look at each N-th frame of a film (1)"
    )
    parser.add_argument("--track", action="store_true", help="number a film's objects from frame to frame")
    parser.add_argument("--shard", metavar="I/N", help="the I-th of N shares of the pictures, I from 1")
    add_model_options(parser)


def main(args: argparse.Namespace) -> int:
    from maskrcnn.files import check_writable, check_writable_folder
    from maskrcnn.predict import PREDICTIONS, check_outputs, find_images, not_read, read_shard, sharded

    formats = _check_formats(args)
    overlap = _check_tiles(args)
    shard = read_shard(args.shard) if args.shard else None
    if _are_films(args, formats):
        return _films(args, formats)
    images = find_images(args.images)
    for line in not_read(args.images):
        print(line, file=sys.stderr)
    if shard:
        images = sharded(images, shard)
    _check_pictures(args, images, formats)
    check_writable_folder(args.out)
    if "coco" in formats:
        check_writable(args.out / PREDICTIONS)
    check_outputs(images, args.out, formats=formats, draw=not args.no_draw and not args.tile)
    model = _load_model(args)
    if args.tile:
        from maskrcnn.images.bands import refuse_bands

        refuse_bands(model.config.input, "--tile")
    settings = _settings(args, model)
    if formats == ("parquet",):
        images = _not_done(images, args.out, settings)
    threads = min(4, args.num_threads or usable_cores())
    results = _tiles(args, model, images, overlap) if args.tile else _whole(args, model, images, threads)
    return _write(args, model, results, len(images), formats, shard, settings, threads)


def _write(
    args: argparse.Namespace,
    model: Predictor,
    results: Iterator[tuple[Path, Any]],
    num_images: int,
    formats: tuple[str, ...],
    shard: tuple[int, int] | None,
    settings: str,
    threads: int,
) -> int:
    """Write the results, tell what was done, and return the exit status."""
    import shutil

    from maskrcnn.predict import write_predictions

    started = time.perf_counter()
    written = write_predictions(
        results,
        args.out,
        formats=formats,
        class_names=model.config.class_names,
        category_ids=model.config.category_ids,
        tolerance=0.5 if args.tolerance is None else args.tolerance,
        draw=not args.no_draw and not args.tile,
        draw_threshold=_DRAW_THRESHOLD if args.score_threshold is None else args.score_threshold,
        by_uncertainty=bool(args.sort),
        shard=shard,
        settings=settings,
        crs=args.crs or "",
        num_threads=threads,
    )
    if args.tile and not written.num_failed:  # else --resume still has what was found before the fault
        shutil.rmtree(args.out / _TILES, ignore_errors=True)
    seconds = time.perf_counter() - started
    for line in written.not_drawn:
        print(f"not drawn: {line}", file=sys.stderr)
    skipped = f"; {written.num_failed} of {num_images} files skipped, see above" if written.num_failed else ""
    speed = f"{seconds:.1f} s" if args.tile else f"{written.num_images / max(seconds, 1e-9):.2f} images/s"
    print(
        f"{_count(written.num_images, 'image')}, {_count(written.num_detections, 'detection')}, "
        f"{speed} (engine {model.engine}): {written.path}{skipped}"
    )
    return 1 if written.num_failed or written.not_drawn else 0


def _check_formats(args: argparse.Namespace) -> tuple[str, ...]:
    """Check the formats and what belongs to them, and return them."""
    formats = tuple(dict.fromkeys(f for given in args.formats or ["coco"] for f in given.split(",")))
    for name in formats:
        if name not in _FORMATS:
            near = did_you_mean(name, _FORMATS, show_all_up_to=0)
            raise UserError(f"--format {name!r}: expected one of {', '.join(_FORMATS)}. {near}".rstrip())
    if args.tolerance is not None:
        check_number(args.tolerance, "--tolerance", 0, 1000)
    if args.crs and "geojson" not in formats:
        raise UserError("--crs: expected --format geojson with it, got none. Add it.")
    if args.level and (those := [name for name in formats if name in _IN_THE_PICTURE]):
        raise UserError(
            f"--format {those[0]}: expected --level 0 with it, got {args.level}: it is drawn on the file."
        )
    if args.sort and "parquet" in formats:
        raise UserError(
            "--sort: expected no --format parquet with it, whose parts are written as results come."
        )
    if "parquet" in formats:
        from maskrcnn.predict.formats.parquet import table_schema

        table_schema()  # before the work, where pyarrow is missing
    return formats


def _check_pictures(args: argparse.Namespace, images: Sequence[Path], formats: tuple[str, ...]) -> None:
    """Check what the options ask of the pictures."""
    if "geojson" in formats:
        from maskrcnn.predict.geo import check_crs

        check_crs(images, args.crs or "")
    folders = [path for path in images if path.is_dir()]
    if folders and not args.tile:
        raise UserError(f"{folders[0]}: expected --tile SIZE with Zarr, got none. Add it.")


def _are_films(args: argparse.Namespace, formats: tuple[str, ...]) -> bool:
    """Tell films from pictures, and check what goes with them."""
    from maskrcnn.predict.films import is_film

    films = [given for given in args.images if is_film(given) and not Path(given).is_dir()]
    if not films:
        if args.every or args.track:
            raise UserError("predict: --every and --track: expected a film with them, got pictures.")
        return False
    if len(films) < len(args.images):
        raise UserError(f"predict: expected films or pictures, got both: {films[0]}. Do one after the other.")
    if args.tile or args.shard or args.sort or tta_of(args) is not None:
        raise UserError("predict: a film: expected no --tile, --shard, --sort and --tta with it.")
    for name in formats:
        if name not in _FILM_FORMATS:
            raise UserError(
                f"--format {name}: expected {' or '.join(_FILM_FORMATS)} of a film: others name pictures' files."
            )
    return True


def _films(args: argparse.Namespace, formats: tuple[str, ...]) -> int:
    """Predict films, each into a folder of its own where there are several; returns the exit status."""
    from maskrcnn.files import check_writable_folder
    from maskrcnn.images.bands import refuse_bands
    from maskrcnn.predict.films import is_live, name_of, predict_film

    check_writable_folder(args.out)
    names = [name_of(given) for given in args.images]
    if len(set(names)) < len(names):
        raise UserError("predict: expected films whose names differ without their endings. Rename one.")
    for given, name in zip(args.images, names, strict=True):
        if (args.out / f"{name}.mp4").resolve() == Path(given).resolve() and not args.no_draw:
            raise UserError(f"{given}: the film drawn would replace it. Choose another folder to write in.")
    model = _load_model(args)
    refuse_bands(model.config.input, "predict: a film")
    status = 0
    for given, name in zip(args.images, names, strict=True):
        started = time.perf_counter()
        try:
            with counted(name, "frames") as progress:
                done = predict_film(
                    model,
                    given,
                    args.out if len(names) == 1 else args.out / name,
                    formats=formats,
                    class_names=model.config.class_names,
                    category_ids=model.config.category_ids,
                    every=args.every or 1,
                    track=args.track,
                    draw_film=not args.no_draw,
                    draw_threshold=_DRAW_THRESHOLD if args.score_threshold is None else args.score_threshold,
                    settings=_settings(args, model),
                    progress=progress,
                )
        except UserError as e:
            if len(names) == 1:
                raise
            print(f"skipped: {e}", file=sys.stderr)
            status = 1
            continue
        for line in done.broken[:5]:
            print(f"skipped: {line}", file=sys.stderr)
        if len(done.broken) > 5:
            print(f"skipped: {len(done.broken) - 5} frames more", file=sys.stderr)
        tracks = f", {_count(done.tracks, 'track')}" if args.track else ""
        speed = done.frames / max(time.perf_counter() - started, 1e-9)
        print(
            f"{_count(done.frames, 'frame')}, {_count(done.detections, 'detection')}{tracks}, {speed:.2f} frames/s "
            f"(engine {model.engine}): {done.film or args.out}"
        )
        status = 1 if done.broken else status
        if done.interrupted and not is_live(given):
            raise KeyboardInterrupt(f"interrupted; what was found until then is in {args.out}")
    return status


def _settings(args: argparse.Namespace, model: Predictor) -> str:
    """Everything that says what is found in a picture: the command but for what does not touch it, and the model."""
    from maskrcnn.predict.write import changed

    others = (
        "images",
        "out",
        "resume",
        "no_draw",
        "formats",
        "tolerance",
        "crs",
        "sort",
        "shard",
        "batch_size",
        "num_threads",
    )
    chosen = {k: str(v) for k, v in vars(args).items() if k not in others}
    return json.dumps(chosen | {"changed": changed(args.model, args.weights)})


def _not_done(images: Sequence[Path], out: Path, settings: str) -> list[Path]:
    """Leave out the pictures that an earlier run wrote to Parquet, and tell how many."""
    from maskrcnn.predict.formats.parquet import done

    before = done(out, settings)
    left = [path for path in images if str(path) not in before]
    if len(left) < len(images):
        print(
            f"{len(images) - len(left)} of {len(images)} images are done, {len(left)} left", file=sys.stderr
        )
    return left


def _whole(
    args: argparse.Namespace, model: Predictor, images: Sequence[Path], threads: int
) -> Iterator[tuple[Path, Any]]:
    """Predict whole pictures, several at a time."""
    from maskrcnn.predict import predict_stream

    results = predict_stream(
        model,
        images,
        batch_size=args.batch_size or (1 if model.device.type == "cpu" else 8),
        num_threads=threads,
        tta=tta_of(args),
    )
    return _with_progress(results, len(images))


def _check_tiles(args: argparse.Namespace) -> int:
    """Check the options of tiles and return the overlap."""
    if not args.tile:
        if args.resume or args.overlap is not None or args.level is not None:
            raise UserError(
                "predict: --overlap, --level and --resume: expected --tile SIZE with them, got none. Add it."
            )
        return 0
    from maskrcnn.tiles.tiled import check_overlap, usual_overlap

    if tta_of(args) is not None or args.batch_size:
        raise UserError("predict: --tile: expected no --tta and no --batch-size with it. Leave them out.")
    overlap = usual_overlap(args.tile) if args.overlap is None else args.overlap
    check_overlap(args.tile, overlap)
    if args.level is not None:
        check_number(args.level, "--level", 0, whole=True)
    return overlap


def _tiles(
    args: argparse.Namespace, model: Predictor, images: Sequence[Path], overlap: int
) -> Iterator[tuple[Path, Any]]:
    """Predict pictures tile by tile."""
    import shutil

    from maskrcnn.predict import predict_tiled

    kept = args.out / _TILES
    if not args.resume:
        shutil.rmtree(kept, ignore_errors=True)
    settings = _settings(args, model)
    for path in images:
        try:
            with counted(path.name, "tiles") as progress:
                yield (
                    path,
                    predict_tiled(
                        model,
                        path,
                        args.tile,
                        overlap,
                        level=args.level or 0,
                        keep=kept / path.name,
                        settings=settings,
                        progress=progress,
                    ),
                )
        except UserError as e:
            print(f"skipped: {e}", file=sys.stderr)
            yield path, e


def _load_model(args: argparse.Namespace) -> Predictor:
    categories = _read_categories(args.data) if args.data else None
    model = load_model(args)
    if categories is not None:
        _adopt_ids(model.config, *categories, args.data)
    return model


def _read_categories(path: Path) -> tuple[Sequence[int], Sequence[str]]:
    """Ids and names of a data set's classes."""
    from maskrcnn.data.coco_arrays import read_categories
    from maskrcnn.data.find import find_data, is_other_format, read_data

    if is_other_format(path):
        data = read_data(find_data(path).train)
        return data.category_ids, data.class_names
    return read_categories(path)


def _adopt_ids(c: ModelConfig, its_ids: Sequence[int], its_names: Sequence[str], path: Path) -> None:
    """Give the model's classes the data set's ids, by name; those that it does not have keep their own.

    Raises:
        UserError: other classes, or the id of one that it does not have is another's there.
    """
    from maskrcnn.data.classes import ids_of_model

    ids = ids_of_model(c, its_names, its_ids, path)
    own = c.category_ids or range(c.num_classes)
    for k, i in enumerate(ids):
        if i is None and own[k] in its_ids:
            name = c.class_names[k] if c.class_names else own[k]
            raise UserError(
                f"{path}: expected all classes of the model, got no {name!r}, whose id {own[k]} is another's there. "
                "Give the data set that it was trained on."
            )
    named = dict(zip(its_ids, its_names, strict=True))
    if not c.class_names and len(named) == c.num_classes:
        c.class_names = tuple(named[i] for i in ids if i is not None)
    c.category_ids = tuple(own[k] if i is None else i for k, i in enumerate(ids))


def _with_progress(results: Iterator[tuple[Any, Any]], total: int) -> Iterator[tuple[Any, Any]]:
    """Hand `results` through, with a bar on standard error and a line there for each file that failed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("predict"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("predict", total=total, rate="")
        for done, (path, result) in enumerate(results, 1):
            if isinstance(result, UserError):
                console.print(f"skipped: {result}", markup=False, highlight=False, soft_wrap=True)
            progress.update(task, advance=1, rate=f"{done / (time.perf_counter() - started):.2f} images/s")
            yield path, result


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
