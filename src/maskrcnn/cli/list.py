"""List the models: backbone, parameters, multiply-adds and published AP on COCO val2017."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON, one object a model")


def main(args: argparse.Namespace) -> int:
    from maskrcnn.zoo import listing

    rows = listing()
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{'name':<30}{'backbone':<18}{'parameters':>12}{'GMACs':>8}{'box AP':>8}{'mask AP':>9}")
    for row in rows:
        numbers = (f"{row[k]:.1f}" if row[k] is not None else "-" for k in ("gflops", "box_ap", "mask_ap"))
        gflops, box_ap, mask_ap = numbers
        parameters = f"{row['parameters'] / 1e6:.1f} M"
        print(f"{row['name']:<30}{row['backbone']:<18}{parameters:>12}{gflops:>8}{box_ap:>8}{mask_ap:>9}")
    return 0
