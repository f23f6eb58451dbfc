"""Turn a weight file into another: a published one into a safetensors file that carries the model's config, or any
into one that the model's original reads.

OUT's ending says what is written: .safetensors; .pkl with detectron2's names, as in its zoo; .pth with the names of
detectron2, torchvision or MMDetection, whichever the model comes from.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the weights, in any format that --weights takes")
    parser.add_argument("--model", required=True, metavar="NAME", help="the model they belong to")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="the file to write")


def main(args: argparse.Namespace) -> int:
    from maskrcnn import presets
    from maskrcnn.files import check_writable

    config = presets.get(args.model).model  # a misspelt name is said before torch is loaded

    from maskrcnn.weights.convert import check_suffix, write_as
    from maskrcnn.zoo import restore

    out = Path(args.out)
    check_suffix(config, out)
    check_writable(out)
    model = restore(args.model, args.file)
    write_as(out, model.config, model.state_dict())
    print(f"{out}: {args.model}, {model.config.num_classes} classes")
    return 0
