"""InternImage, ViT-Adapter, Swin and ConvNeXt, small and from scratch, on the nuclei: a table beside MobileNetV2.

    for model in swin convnext; do
        maskrcnn train --config benchmarks/nuclei_$model.json --data nuclei --out runs/nuclei_$model \\
            --num-threads 1 --train.max_minutes 30 --train.evaluate_every 0 --weights none
    done
    python benchmarks/nuclei_backbones.py runs/nuclei_swin runs/nuclei_convnext --note "AMD EPYC, ..."

30 minutes on one core each: as much computing as 15 minutes on both. Rows of runs that are not given stay as they are.
MobileNetV2 starts from ImageNet weights; of the others' sizes there are none. In the runs of the Xeon tests of other
work took about a third of the processor; MobileNetV2's had both cores and were evaluated on the way, when the learning
rate, planned for 25 minutes, was still high.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from maskrcnn.config import from_file

RESULTS = Path(__file__).parent / "results"


def evaluations(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "eval"]


def row(name: str, cores: int, run: Path, e: dict[str, Any]) -> dict[str, Any]:
    with safe_open(run / "model.safetensors", framework="np") as file:
        parameters = sum(_size(file, key) for key in file.keys())  # noqa: SIM118 (no mapping)
    return {
        "run": name,
        "millions of weights": round(parameters / 1e6, 1),
        "core-minutes": round(cores * e["seconds"] / 60, 1),
        "iterations": e["iteration"],
        "box AP": round(e["bbox"]["AP"], 3),
        "mask AP": round(e["segm"]["AP"], 3),
        "mask AP50": round(e["segm"]["AP50"], 3),
    }


def _size(file: Any, key: str) -> int:
    size = 1
    for side in file.get_slice(key).get_shape():
        size *= side
    return size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--note", default="", help="of the machine, and of what else it did")
    args = parser.parse_args()
    file = RESULTS / "nuclei_backbones.json"
    new = []
    for run in args.runs:
        config = from_file(run / "config.json")
        origin = "from ImageNet weights" if config.train.weights else "from scratch"
        name = f"{config.model.backbone.kind}, {origin}"
        new.append(row(name, 1, run, evaluations(run)[-1]) | {"machine": args.note})
    given = {(r["run"], r["machine"]) for r in new}
    rows = [r for r in json.loads(file.read_text()) if (r["run"], r["machine"]) not in given] + new
    file.write_text(json.dumps(rows, indent=1) + "\n")
    lines = ["# Nuclei: small backbones from scratch", "", (__doc__ or "").split("\n\n")[2].strip(), ""]
    lines += ["| " + " | ".join(rows[0]) + " |", "|---|" + "---:|" * (len(rows[0]) - 2) + "---|"]
    lines += ["| " + " | ".join(str(v) for v in r.values()) + " |" for r in rows]
    (RESULTS / "nuclei_backbones.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
