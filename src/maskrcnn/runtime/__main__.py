"""Find objects in images with an exported model, without PyTorch: what `maskrcnn predict` does, for one file.

    python -m maskrcnn.runtime nuclei.onnx photo.jpg pictures/ --out out

IMAGES are files and folders (the images in them, not in their subfolders). DIR/predictions.json gets one entry for
each detection in COCO's results format; DIR/NAME.jpg is the picture of each image. A file that cannot be read is
reported and skipped; the exit status is then 1. It is 2 for a mistake in the command; nothing is written then.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from maskrcnn.cores import core_limit
from maskrcnn.errors import UserError, check_number, one_line
from maskrcnn.files import atomic_path, check_writable_folder
from maskrcnn.images.checks import IMAGE_SUFFIXES
from maskrcnn.runtime.found import Found
from maskrcnn.runtime.model import ExportedModel

DRAWN_FROM = 0.5  # score


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See python -m maskrcnn.runtime --help.")


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status; users' mistakes are printed, not raised."""
    try:
        return _predict(_arguments().parse_args(argv))
    except UserError as e:
        print(f"maskrcnn.runtime: {e}", file=sys.stderr)
        return 2


def _arguments() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m maskrcnn.runtime",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", type=Path, metavar="FILE", help="exported model: NAME.onnx or NAME.xml")
    add("images", nargs="+", type=Path, metavar="IMAGES", help="files or folders")
    add("--out", required=True, type=Path, metavar="DIR", help="folder to write in; made if missing")
    add("--min-size", type=int, metavar="PIXELS", help="shortest side that the network sees (the model's)")
    add("--max-size", type=int, metavar="PIXELS", help="longest side that the network sees (the model's)")
    add("--score-threshold", type=float, metavar="S", help="leave out detections below it")
    add("--no-draw", action="store_true", help=f"write no pictures (they show what scores {DRAWN_FROM})")
    add("--num-threads", type=int, metavar="N", help="threads (as many as the runtime takes)")
    return parser


def _predict(args: argparse.Namespace) -> int:
    images = _listed(args.images)
    check_writable_folder(args.out)
    if not args.no_draw and (clash := [p for p in images if _drawn(p, args.out).resolve() == p.resolve()]):
        raise UserError(f"{clash[0]}: the picture drawn would replace it. Choose another folder to write in.")
    _check(args)
    model = ExportedModel(args.model, args.num_threads or core_limit())
    path, failed, not_drawn, count = args.out / "predictions.json", 0, 0, 0
    with atomic_path(path) as temporary, open(temporary, "w") as file:
        file.write("[")
        for image in images:
            try:
                found = model.predict(
                    image,
                    min_size=args.min_size,
                    max_size=args.max_size,
                    score_threshold=args.score_threshold,
                )
            except UserError as e:
                print(f"skipped: {e}", file=sys.stderr)
                failed += 1
                continue
            not_drawn += not args.no_draw and not _draw(found, image, args)
            for entry in found.to_coco(image.stem):
                file.write((",\n" if count else "\n") + json.dumps(entry))
                count += 1
        file.write("\n]\n")
    skipped = f"; {failed} of {len(images)} files skipped, see above" if failed else ""
    print(f"{len(images) - failed} images, {count} detections: {path}{skipped}")
    return 1 if failed or not_drawn else 0


def _check(args: argparse.Namespace) -> None:
    """Check the numbers, before the model is read."""
    for name in ("min_size", "max_size", "num_threads"):
        if getattr(args, name) is not None:
            check_number(getattr(args, name), f"--{name.replace('_', '-')}", 1, whole=True)
    if args.score_threshold is not None:
        check_number(args.score_threshold, "--score-threshold", 0, 1)


def _draw(found: Found, image: Path, args: argparse.Namespace) -> bool:
    """Draw what was found; what cannot be drawn is told and costs nothing else."""
    try:
        threshold = DRAWN_FROM if args.score_threshold is None else args.score_threshold
        found.draw(_drawn(image, args.out), score_threshold=threshold)
    except UserError as e:
        print(f"not drawn: {e}", file=sys.stderr)
        return False
    return True


def _drawn(image: Path, folder: Path) -> Path:
    return folder / f"{image.stem}.jpg"


def _listed(given: Iterable[Path]) -> list[Path]:
    """List the images that files and folders name, each once, of stems that differ."""
    found: dict[str, Path] = {}
    for path in given:
        inside = path.is_dir() and sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if path.is_dir() and not inside:
            raise UserError(
                f"{path}: expected images ({' '.join(IMAGE_SUFFIXES)}), got a folder without any."
            )
        if not path.exists():
            raise UserError(f"{path}: no such file or folder.")
        for image in inside or [path]:
            if found.setdefault(image.stem, image).resolve() != image.resolve():
                raise UserError(
                    f"{image}: expected file names that differ without their endings, got {found[image.stem]} too."
                )
    return list(found.values())


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OSError as e:
        sys.exit(f"maskrcnn.runtime: {one_line(str(e))}")
