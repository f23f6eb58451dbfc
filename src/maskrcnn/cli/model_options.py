"""The options of the verbs that run a model: which, where and in what precision, and what it reports.

Defaults are None or False throughout: what is not given is the model's own.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from maskrcnn.errors import UserError

if TYPE_CHECKING:
    from maskrcnn.config import TTAConfig
    from maskrcnn.models.predictor import Predictor

# Where each is kept in a model's config.
_BOX_SETTINGS = ("score_threshold", "nms_threshold", "class_agnostic_nms", "detections_per_image")
_INPUT_SETTINGS = ("min_size", "max_size")


def add_model_options(
    parser: argparse.ArgumentParser, *, model_required: bool = True, several: bool = False
) -> None:
    """Add the options to a verb's parser; with `several` models, by name, there is no test-time augmentation."""
    model = parser.add_argument_group("the model")
    add = model.add_argument
    add(
        "--model",
        required=model_required,
        action="append" if several else "store",
        metavar="[NAME=]MODEL" if several else "NAME",
        help="a name that `maskrcnn list` shows, a run folder, or a checkpoint file"
        + ("; may be given several times" if several else ""),
    )
    add("--weights", metavar="FILE", help="weights for a model given by name")
    add("--device", metavar="cpu|cuda|cuda:1|mps|xpu", help="where to run (cuda if there is one)")
    add("--precision", choices=("fp32", "bf16", "fp16"), help="of the network (fp32)")
    add(
        "--engine",
        metavar="NAME",
        help="what runs the network: cpu, openvino, onnx, compile, cuda-graph or eager (the fastest for the device)",
    )
    add("--num-threads", type=whole_number, metavar="N", help="CPU threads (all cores)")
    settings = parser.add_argument_group(
        "what it reports", "By default as the model was published or trained."
    )
    add = settings.add_argument
    add("--min-size", type=whole_number, metavar="PIXELS", help="shortest side that the network sees")
    add("--max-size", type=whole_number, metavar="PIXELS", help="longest side that the network sees")
    add("--score-threshold", type=fraction, metavar="S", help="leave out detections that score less (0.05)")
    add(
        "--nms-threshold",
        type=fraction,
        metavar="IOU",
        help="leave out boxes that overlap a better one by more (0.5)",
    )
    add("--class-agnostic-nms", action="store_true", help="... a better one of any class, not only of theirs")
    add("--detections-per-image", type=whole_number, metavar="N", help="the best N of each image (100)")
    add("--mask-threshold", type=fraction, metavar="P", help="probability of a mask's pixels (0.5)")
    if several:
        parser.set_defaults(tta=False, tta_sizes=None)
        return
    add(
        "--tta",
        action="store_true",
        help="merge many views of each image: 9 sizes (400 to 1200), and mirrored",
    )
    add(
        "--tta-sizes",
        type=whole_number,
        nargs="+",
        metavar="PIXELS",
        help="the same with these shortest sides (longest side: --max-size, by default 4000)",
    )


def given_options(args: argparse.Namespace) -> list[str]:
    """The options of `add_model_options` on the command line, but --model."""
    parser = argparse.ArgumentParser()
    add_model_options(parser, model_required=False)
    names = [action.dest for action in parser._actions if action.dest not in ("help", "model")]
    return [f"--{name.replace('_', '-')}" for name in names if _is_given(getattr(args, name))]


def _is_given(value: object) -> bool:
    return value is not None and value is not False  # a threshold of 0 is one


def load_model(args: argparse.Namespace) -> Predictor:
    """The model of the command line, ready to predict, with the settings given there in its config.

    Raises:
        UserError: as `zoo.load`; a setting that the model has no use for.
    """
    from maskrcnn.processor import use_cores
    from maskrcnn.zoo import load

    use_cores(args.num_threads)
    tta = tta_of(args)
    model = load(
        args.model,
        weights=args.weights,
        device=args.device,
        precision=args.precision or "fp32",
        engine=args.engine,
    )
    c = model.config
    for part, names in ((c.box_head, _BOX_SETTINGS), (c.input, _INPUT_SETTINGS)):
        for name in names:
            if _is_given(getattr(args, name)):
                setattr(part, name, getattr(args, name))
    if args.mask_threshold is not None:
        if c.mask_head is None:
            raise UserError(f"--mask-threshold: expected a model with masks, got {c.name}. Leave it out.")
        c.mask_head.threshold = args.mask_threshold
    if tta is not None:
        from maskrcnn.models.tta import check

        check(model)
    return model


def tta_of(args: argparse.Namespace) -> TTAConfig | None:
    """The views to merge, where the command line asks for them."""
    from maskrcnn.config import TTAConfig

    if not args.tta and args.tta_sizes is None:
        return None
    if args.min_size is not None:
        raise UserError("--min-size: expected without test-time augmentation. Give --tta-sizes instead.")
    tta = TTAConfig()
    if args.tta_sizes is not None:
        tta.min_sizes = tuple(args.tta_sizes)
    if args.max_size is not None:
        tta.max_size = args.max_size
    return tta


def whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value
