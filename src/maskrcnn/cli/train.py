r"""Train or fine-tune a model on your data.

  maskrcnn train --data cells/ --model mask_rcnn_R_50_FPN_3x --out runs/cells
  maskrcnn train --data cells/train.json --val cells/val.json --model mask_rcnn_mobilenet_v2_FPN --out runs/small \
      --weights mobilenet_v2_imagenet.pt --optim.lr 1e-4 --train.max_minutes 25
  torchrun --nproc-per-node 8 -m maskrcnn train --data coco/ --model mask_rcnn_R_50_FPN_1x --out runs/coco

The data may be COCO JSON, VGG Image Annotator, LabelMe, YOLO segmentation, Pascal VOC, Cityscapes, or a PNG an
object. A model with published weights starts from them, with new heads for your classes. A schedule that was
published for COCO is cut to the size of your data; what is chosen is said, and can be set below. Without a
validation part, a fifth of the images is kept for it. Fewer stages learn with --model.backbone.frozen_stages.
Killed at any moment, the same command with --resume goes on from the last complete checkpoint, and ends with the same
bits on a CPU with as many threads and processes. SIGTERM and Ctrl-C write a checkpoint at the end of the iteration
(exit status 143 and 130); a second one ends at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from maskrcnn import presets
from maskrcnn.config import Config, ModelConfig, field_names, from_file, override
from maskrcnn.errors import Interrupted, UserError, did_you_mean

if TYPE_CHECKING:
    pass

FROM_THE_DATA_SET = ("model.name", "model.num_classes", "model.class_names", "model.category_ids")
OPTIONS = (
    "data", "images", "val", "format", "model", "weights", "out", "resume", "config", "device", "num-threads",
    "max-pixels",
)  # fmt: skip
VAL_FRACTION = 0.2
RANDOM = "none"  # as --weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="DIR_OR_FILE",
        help="the training set: a folder, or a label file of any known format",
    )
    parser.add_argument("--images", metavar="DIR", help="its images, if they are not found by themselves")
    parser.add_argument(
        "--val", metavar="DIR_OR_FILE", help="the validation set, if the folder of --data has none"
    )
    parser.add_argument("--format", metavar="FORMAT", help="of both (docs/data.md); found out without it")
    parser.add_argument("--model", metavar="NAME", help="a preset: " + ", ".join(sorted(presets.PRESETS)))
    parser.add_argument("--config", metavar="FILE", help="start from a run's config.json instead of a preset")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="initial weights: a file, or 'none' for random ones; without it, the model's published ones",
    )
    parser.add_argument("--out", metavar="RUN", required=True, help="the run's folder, new or empty")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, or start it")
    parser.add_argument(
        "--device", metavar="cpu|cuda|cuda:1|mps|xpu", help="default: cuda where there is one"
    )
    parser.add_argument("--num-threads", metavar="N", type=int, help="threads of one process on the CPU")
    parser.epilog = _settings_help()


def main(args: argparse.Namespace, extra: list[str]) -> int:
    config, given = config_from(args, extra), {name for name, _ in dotted(extra)}
    saved = Path(args.out) / "config.json"
    resumed = args.resume and saved.is_file() and bool(args.model)
    if resumed:
        keep_choices(config, from_file(saved), given, args)
    elif args.model:
        choose_start(config, given, args)
    from maskrcnn.processor import use_cores
    from maskrcnn.training.distributed import LostProcessError
    from maskrcnn.training.finetune import choose_schedule
    from maskrcnn.training.train import train

    if args.num_threads is not None and args.num_threads < 1:
        raise UserError(f"--num-threads: expected at least 1, got {args.num_threads}.")
    use_cores(args.num_threads)
    try:
        choose = partial(choose_schedule, given=given) if args.model and not resumed else None
        result = train(config, Path(args.out), resume=args.resume, device=args.device, choose=choose)
    except UserError:
        if os.environ.get("RANK", "0") == "0":
            raise
        return 2  # rank 0 says it
    except Interrupted as e:
        if os.environ.get("RANK", "0") == "0":
            raise
        return e.status
    except LostProcessError as e:  # which may be rank 0, so each says it
        print(f"maskrcnn: {e}", file=sys.stderr)
        return 1
    if os.environ.get("RANK", "0") == "0":
        print(f"weights: {result.out / 'model.safetensors'}  log: {result.out / 'log.jsonl'}")
    return 0


def config_from(args: argparse.Namespace, extra: list[str]) -> Config:
    """The preset or the file, changed by the named options and then by the dotted ones."""
    if bool(args.model) == bool(args.config):
        raise UserError(
            "train: expected one of --model NAME and --config FILE. See `maskrcnn list` for the names."
        )
    config = presets.get(args.model) if args.model else from_file(args.config)
    config.data.train = args.data or config.data.train
    config.data.train_images = args.images or config.data.train_images
    config.data.val = args.val or config.data.val
    config.data.format = args.format or config.data.format
    config.train.weights = "" if args.weights == RANDOM else args.weights or config.train.weights
    for name, value in dotted(extra):
        override(config, name, value)
    return config


def choose_start(config: Config, given: Collection[str], args: argparse.Namespace) -> None:
    """Choose the settings that the command leaves open: where the weights come from, and how much is kept for
    validation.
    """
    from maskrcnn import zoo
    from maskrcnn.zoo import table as zoo_table

    if "data.val_fraction" not in given:
        config.data.val_fraction = VAL_FRACTION
    entry = zoo_table.find(config.model.name)
    if args.weights or "train.weights" in given or entry is None or not entry.weights:
        return
    try:
        config.train.weights = str(zoo.published_weights(config.model.name))
    except UserError as e:
        raise UserError(f"{e} Or give --weights FILE, or --weights {RANDOM} to start at random.") from None


def keep_choices(config: Config, saved: Config, given: Collection[str], args: argparse.Namespace) -> None:
    """Keep, on resuming, the choices made when the run began, whatever would be chosen now."""
    from maskrcnn.training.finetune import CHOSEN

    names = {*CHOSEN, "data.val_fraction", *(() if args.weights else ("train.weights",))}
    for name in names - set(given):
        part, field = name.split(".")
        setattr(getattr(config, part), field, getattr(getattr(saved, part), field))


def dotted(extra: list[str]) -> list[tuple[str, str]]:
    """`--a.b value` and `--a.b=value` as pairs.

    Raises:
        UserError: anything else among them.
    """
    pairs, words = [], iter(extra)
    for word in words:
        if not word.startswith("--"):
            raise UserError(f"train: unexpected argument {word!r}. See `maskrcnn train --help`.")
        name, separator, value = word[2:].partition("=")
        if "." not in name:
            near = did_you_mean(name, OPTIONS, show_all_up_to=0)
            raise UserError(f"train: unknown option --{name}. {near or 'See `maskrcnn train --help`.'}")
        if not separator:
            value = next(words, None)
        if value is None:
            raise UserError(f"--{name}: expected a value after it, got the end of the line.")
        pairs.append((name, value))
    return pairs


def _settings_help() -> str:
    base = Config(model=ModelConfig(name=""))
    lines = ["settings (--NAME VALUE; with their defaults, which presets change):", ""]
    for name in field_names(base):
        value = base
        for part in name.split("."):
            value = getattr(value, part)
        if name not in FROM_THE_DATA_SET:
            lines.append(f"  --{name} {value!r}")
    return "\n".join(lines)
