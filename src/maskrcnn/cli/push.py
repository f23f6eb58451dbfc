"""Upload a trained model to the Hugging Face hub, with a card that says what it is and how to use it.

Afterwards `--model hf://USER/NAME` is the model, for everybody who may see it. Log in first with `hf auth login`,
or set HF_TOKEN.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, metavar="RUN", help="a run folder, or a safetensors file of ours")
    add("name", metavar="USER/NAME", help="its name on the hub; made if it is new")
    add("--licence", default="other", metavar="L", help="of the weights, as the hub names it (other)")
    add("--private", action="store_true", help="for yourself alone")
    add("--dry-run", action="store_true", help="print the card, upload nothing")


def main(args: argparse.Namespace) -> int:
    from maskrcnn.zoo.hub import card, push_to_hub

    if args.dry_run:
        print(card(args.model, args.name, args.licence))
        return 0
    print(push_to_hub(args.model, args.name, licence=args.licence, private=args.private))
    return 0
