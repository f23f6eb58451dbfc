r"""Train or fine-tune a model on a COCO data set.

  maskrcnn train --data cells/ --model mask_rcnn_R_50_FPN_3x --weights model_final_f10217.pkl --out runs/cells
  maskrcnn train --data cells/train.json --val cells/val.json --model mask_rcnn_mobilenet_v2_FPN --out runs/small \
      --optim.lr 1e-4 --train.max_minutes 25
  torchrun --nproc-per-node 8 -m maskrcnn train --data coco/ --model mask_rcnn_R_50_FPN_1x --out runs/coco

Killed at any moment, the same command with --resume goes on from the last complete checkpoint.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from maskrcnn import presets
from maskrcnn.config import Config, ModelConfig, field_names, from_file, override
from maskrcnn.errors import UserError, did_you_mean

FROM_THE_DATA_SET = ("model.name", "model.num_classes", "model.class_names", "model.category_ids")
OPTIONS = ("data", "images", "val", "model", "weights", "out", "resume", "config", "device", "num-threads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="DIR_OR_JSON", help="the training set: a COCO JSON, or a folder with one"
    )
    parser.add_argument("--images", metavar="DIR", help="its images, if they are not found beside the JSON")
    parser.add_argument(
        "--val", metavar="DIR_OR_JSON", help="the validation set, if the folder of --data has none"
    )
    parser.add_argument("--model", metavar="NAME", help="a preset: " + ", ".join(sorted(presets.PRESETS)))
    parser.add_argument("--config", metavar="FILE", help="start from a run's config.json instead of a preset")
    parser.add_argument("--weights", metavar="FILE", help="initial weights; without it, random ones")
    parser.add_argument("--out", metavar="RUN", required=True, help="the run's folder, new or empty")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, or start it")
    parser.add_argument("--device", metavar="cpu|cuda", help="default: cuda where there is one")
    parser.add_argument("--num-threads", metavar="N", type=int, help="threads of one process on the CPU")
    parser.epilog = _settings_help()


def main(args: argparse.Namespace, extra: list[str]) -> int:
    config = config_from(args, extra)
    import torch

    from maskrcnn.engine.train import train

    if args.num_threads is not None:
        if args.num_threads < 1:
            raise UserError(f"--num-threads: expected at least 1, got {args.num_threads}.")
        torch.set_num_threads(args.num_threads)
    try:
        result = train(config, Path(args.out), resume=args.resume, device=args.device)
    except UserError:
        if os.environ.get("RANK", "0") == "0":
            raise
        return 2  # rank 0 says it
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
    config.train.weights = args.weights or config.train.weights
    for name, value in dotted(extra):
        override(config, name, value)
    return config


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
