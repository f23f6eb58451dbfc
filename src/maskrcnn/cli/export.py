"""Write a model as a file for other runtimes: one graph, pictures in, detections with masks out.

The file is compared with the model after it is written: on a picture, on noise, on three sizes at once and at another
size. One that differs is not left behind. `maskrcnn predict --model FILE.onnx` uses it like any model.
`--format web` writes a folder for any static web server instead, whose page runs the model in the browser, offline.
docs/howto/export.md has what goes in and comes out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from maskrcnn.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from maskrcnn.config import InputConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="NAME",
        help="a name, a run folder, or a checkpoint file, as for predict",
    )
    add("--weights", metavar="FILE", help="weights for a model given by name")
    add("--format", choices=("onnx", "web"), default="onnx", help="a file, or a page for browsers (onnx)")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="the file NAME.onnx, or the folder of the page",
    )
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

    if args.format == "web":
        check_replaceable(args.out, "model.json")
    elif args.out.suffix != ".onnx":
        raise UserError(f"--out {args.out}: expected a name that ends in .onnx.")
    else:
        check_writable(args.out)

    from maskrcnn.export.check import compare
    from maskrcnn.export.onnx_file import check_exportable, check_sizes, write_onnx
    from maskrcnn.export.web import read_runtime, web_folder
    from maskrcnn.files import atomic_path
    from maskrcnn.zoo import load

    model = load(args.model, weights=args.weights, device="cpu", engine="eager")
    if args.score_threshold is not None:
        model.config.box_head.score_threshold = args.score_threshold
    size = None if args.size is None else (args.size[0], args.size[1])
    check_exportable(model.config)
    check_sizes(model.config, size, args.batch)
    if args.format == "web":
        runtime = read_runtime(args.web_runtime)
        output = web_folder(args.out, model.config, {"size": size, "batch": args.batch}, runtime)
    else:
        output = atomic_path(args.out)
    with output as temporary:
        write_onnx(model, temporary, size=size, batch=args.batch)
        from maskrcnn.engines.exported import ExportedPredictor

        found = compare(
            model, ExportedPredictor(temporary), _picture(args.picture, model.config.input), size, args.batch
        )
        for difference in found:
            print(difference.line(), file=sys.stderr)
        if bad := [d.case for d in found if not d.passed]:
            raise UserError(
                f"{args.out}: expected what the model says, got something else ({', '.join(bad)}, see above). "
                "Nothing is written."
            )
    written = [args.out] if args.format == "onnx" else [p for p in args.out.rglob("*") if p.is_file()]
    print(f"{args.out}: {model.config.name}, {sum(p.stat().st_size for p in written) / 2**20:.0f} MB")
    return 0


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
