"""Turn a published weight file (.pkl, .pth) into a safetensors file that carries the model's config."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the weights, in any format that --weights takes")
    parser.add_argument("--model", required=True, metavar="NAME", help="the model they belong to")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="the safetensors file to write")


def main(args: argparse.Namespace) -> int:
    from maskrcnn import presets
    from maskrcnn.errors import UserError
    from maskrcnn.files import check_writable

    presets.get(args.model)  # a misspelt name is said before torch is loaded
    if Path(args.out).suffix != ".safetensors":
        raise UserError(f"--out {args.out}: expected a name that ends in .safetensors.")
    check_writable(args.out)

    from maskrcnn.engine.checkpoint import write_weights
    from maskrcnn.zoo import restore

    model = restore(args.model, args.file)
    write_weights(Path(args.out), model.state_dict(), model.config)
    print(f"{args.out}: {args.model}, {model.config.num_classes} classes")
    return 0
