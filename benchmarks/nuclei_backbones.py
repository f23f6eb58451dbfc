"""InternImage and ViT-Adapter, small and from scratch, on the nuclei: a table beside the MobileNetV2 run.

    for model in internimage vit_adapter; do
        maskrcnn train --config benchmarks/nuclei_$model.json --data nuclei --out runs/nuclei_$model \\
            --num-threads 1 --train.max_minutes 30 --train.evaluate_every 0 --weights none &
    done
    python benchmarks/nuclei_backbones.py runs/nuclei_internimage runs/nuclei_vit_adapter --baseline runs/nuclei

30 minutes on one core each, side by side: as much computing as 15 minutes on both. The baseline is the run of
`nuclei.json`, which starts from ImageNet weights and has both cores: its scores are those of the evaluations
before and after 15 minutes, when its learning rate, planned for 25, was still high.
Tests of other work ran meanwhile and took about a third of the two runs'
share.
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
    parser.add_argument("--baseline", type=Path, required=True)
    args = parser.parse_args()
    rows = []
    for run in args.runs:
        backbone = from_file(run / "config.json").model.backbone.kind
        rows.append(row(f"{backbone}, from scratch", 1, run, evaluations(run)[-1]))
    around = evaluations(args.baseline)
    before = [e for e in around if e["seconds"] <= 900][-1]
    after = next(e for e in around if e["seconds"] > 900)
    rows += [row("mobilenet_v2, from ImageNet weights", 2, args.baseline, e) for e in (before, after)]
    (RESULTS / "nuclei_backbones.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = ["# Nuclei: InternImage and ViT-Adapter from scratch", "", __doc__.split("\n\n")[2].strip(), ""]
    lines += ["| " + " | ".join(rows[0]) + " |", "|---|" + "---:|" * (len(rows[0]) - 1)]
    lines += ["| " + " | ".join(str(v) for v in r.values()) + " |" for r in rows]
    (RESULTS / "nuclei_backbones.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
