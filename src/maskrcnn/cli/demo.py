"""Train a small model in a few minutes, and show the result as one HTML page.

  maskrcnn demo                        on a synthetic data set, which it makes
  maskrcnn demo --data cells/          on your own: a folder with images and a COCO JSON

Needs no download and no GPU: about 4 minutes on 2 cores. Prints where the page is.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="DIR_OR_JSON", help="your data set; without it, a synthetic one is made"
    )
    parser.add_argument("--out", metavar="DIR", default="demo", help="where everything goes (default: demo)")
    parser.add_argument(
        "--minutes", metavar="M", type=float, default=3.5, help="of training, at most (default: 3.5)"
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of the data and the training (default: 0)"
    )


def main(args: argparse.Namespace) -> int:
    from maskrcnn.demo import demo
    from maskrcnn.processor import use_cores

    use_cores()
    demo(args.out, args.data, minutes=args.minutes, seed=args.seed)
    return 0
