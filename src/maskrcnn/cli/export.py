"""Write a model as a file for other runtimes: one graph, pictures in, detections with masks out.

The file is compared with the model after it is written: on a picture, on noise, on three sizes at once and at another
size. One that differs is not left behind. `maskrcnn predict --model FILE` uses it like any model.
`--format web` writes a folder for any static web server instead, whose page runs the model in the browser, offline.
docs/howto/export.md has what goes in and comes out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from maskrcnn.cli.model_options import whole_number
from maskrcnn.errors import UserError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import numpy as np

    from maskrcnn.config import InputConfig, ModelConfig
    from maskrcnn.models.mask_rcnn import MaskRCNN

ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2", "aot": ".pt2"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="NAME",
        help="a name, a run folder, or a checkpoint file, as for predict",
    )
    add("--weights", metavar="FILE", help="weights for a model given by name")
    add("--format", choices=(*ENDINGS, "web"), default="onnx", help="a file, or a page for browsers (onnx)")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="the file: NAME.onnx, NAME.xml of OpenVINO, NAME.pt2 of PyTorch (torch, or aot: compiled for this kind of "
        "processor); or the folder of the page",
    )
    add("--precision", choices=("fp32", "fp16", "bf16", "int8"), default="fp32", help="of openvino (fp32)")
    add("--calibration", metavar="DATA", help="pictures like yours, a folder, for --precision int8")
    add("--num-calibration", type=whole_number, default=128, metavar="N", help="how many of them (128)")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="fix the padded size of the pictures (any)")
    add("--batch", type=int, metavar="N", help="fix the number of pictures at a time (any)")
    add("--picture", metavar="FILE", help="picture to compare on (a drawn one)")
    add(
        "--web-runtime",
        type=Path,
        metavar="FILE",
        help="ONNX Runtime Web as `npm pack` gives it (downloaded)",
    )
    add("--score-threshold", type=float, metavar="S", help="lowest score of the file's detections (0.05)")


def main(args: argparse.Namespace) -> int:
    from maskrcnn.files import check_replaceable, check_writable

    _check(args)
    if args.format == "web":
        check_replaceable(args.out, "model.json")
    else:
        check_writable(args.out)

    from maskrcnn.export.check import compare
    from maskrcnn.export.onnx_file import check_exportable, check_sizes
    from maskrcnn.zoo import load

    model = load(args.model, weights=args.weights, device="cpu", engine="eager")
    if args.score_threshold is not None:
        model.config.box_head.score_threshold = args.score_threshold
    size = None if args.size is None else (args.size[0], args.size[1])
    check_exportable(model.config)
    check_sizes(model.config, size, args.batch)
    pictures = _calibration(args) if args.calibration else []
    with _output(args, model.config, size) as temporary:
        _write(args, model, temporary, size, pictures)
        from maskrcnn.engines.exported import ExportedPredictor
        from maskrcnn.engines.pt2 import CompiledSession

        picture = _picture(args.picture, model.config.input)
        session = CompiledSession(temporary) if args.format == "aot" else None
        written = ExportedPredictor(temporary, session=session)
        found = compare(model, written, picture, size, args.batch, args.precision)
        for difference in found:
            print(difference.line(args.precision), file=sys.stderr)
        if not any(d.count for d in found):
            print(
                "nothing was found on any of these: compare on a picture with objects, --picture FILE",
                file=sys.stderr,
            )
        if bad := [d.case for d in found if not d.passed(args.precision)]:
            raise UserError(
                f"{args.out}: expected what the model says, got something else ({', '.join(bad)}, see above). "
                "Nothing is written."
            )
    print(f"{args.out}: {model.config.name}, {_megabytes(args.out):.0f} MB")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Check the options against each other.

    Raises:
        UserError: another ending than the format's, a precision or calibration that it has no use for.
    """
    ending = ENDINGS.get(args.format)
    if ending is not None and args.out.suffix != ending:
        raise UserError(f"--out {args.out}: expected a name that ends in {ending}.")
    if args.precision != "fp32" and args.format != "openvino":
        raise UserError(
            f"--precision {args.precision}: expected fp32 for --format {args.format}. Leave it out, or take openvino."
        )
    if (args.precision == "int8") != (args.calibration is not None):
        raise UserError("--calibration: expected pictures for --precision int8, and only for it.")


def _calibration(args: argparse.Namespace) -> list[np.ndarray]:
    """Read pictures of a folder, evenly chosen.

    Raises:
        UserError: no such folder, or none in it that can be read.
    """
    from maskrcnn.images.checks import IMAGE_SUFFIXES
    from maskrcnn.images.read import read_image

    folder = Path(args.calibration)
    if not folder.is_dir():
        raise UserError(f"--calibration {folder}: expected a folder of pictures, got no folder.")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"--calibration {folder}: expected pictures in it, got none.")
    step = max(1, len(files) // args.num_calibration)
    return [read_image(path) for path in files[::step][: args.num_calibration]]


def _output(
    args: argparse.Namespace, config: ModelConfig, size: tuple[int, int] | None
) -> AbstractContextManager[Path]:
    """Yield, as a context, a temporary path to write to, which becomes the output when all is well."""
    from maskrcnn.files import atomic_path

    if args.format == "web":
        from maskrcnn.export.web import read_runtime, web_folder

        return web_folder(
            args.out, config, {"size": size, "batch": args.batch}, read_runtime(args.web_runtime)
        )
    if args.format == "openvino":
        from maskrcnn.export.openvino_file import two_files

        return two_files(args.out)
    return atomic_path(args.out)


def _write(
    args: argparse.Namespace,
    model: MaskRCNN,
    path: Path,
    size: tuple[int, int] | None,
    pictures: list[np.ndarray],
) -> None:
    if args.format == "torch":
        from maskrcnn.export.torch_file import write_torch

        write_torch(model, path, size=size, batch=args.batch)
    elif args.format == "aot":
        from maskrcnn.export.torch_file import write_compiled

        write_compiled(model, path, size=size, batch=args.batch)
    elif args.format == "openvino":
        from maskrcnn.export.openvino_file import calibration_inputs, write_openvino

        inputs = calibration_inputs(pictures, model.config, size, args.batch)
        how = {"precision": args.precision, "calibration": inputs}
        write_openvino(model, path, size=size, batch=args.batch, **how)
    else:
        from maskrcnn.export.onnx_file import write_onnx

        write_onnx(model, path, size=size, batch=args.batch)


def _megabytes(out: Path) -> float:
    """Size of what was written, in MB: a folder's files, or a file and what belongs to it."""
    written = [p for p in out.rglob("*") if p.is_file()] if out.is_dir() else [out]
    if out.suffix == ".xml":
        written.append(out.with_suffix(".bin"))
    return sum(p.stat().st_size for p in written) / 2**20


def _picture(path: str | None, c: InputConfig) -> np.ndarray:
    """The picture to compare on, at the network's size."""
    import numpy as np

    from maskrcnn.images.read import read_image
    from maskrcnn.images.resize import resize_image, resize_size

    if path is not None:
        image = read_image(path)
    else:  # a few shapes on a gradient
        image = np.linspace(40, 200, 480 * 640 * 3).reshape(480, 640, 3).astype(np.uint8)
        image[100:220, 80:300], image[250:400, 350:600] = (230, 60, 40), (20, 90, 210)
    height, width = image.shape[:2]
    size = resize_size(height, width, c.min_size, c.max_size, c.resize)
    return resize_image(image, size, c.resize)
