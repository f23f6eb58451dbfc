"""Count every model of the zoo and put what `maskrcnn bench` measured beside it: src/maskrcnn/zoo/measured.json.

    maskrcnn bench --precisions fp32 bf16 --size 800 1216 --out benchmarks/results/zoo
    python benchmarks/measure_zoo.py [--bench benchmarks/results/zoo/bench.json]

Parameters and multiply-adds are counted on models without storage. Seconds and memory are those of the model itself
or of the one that differs from it only in its schedule.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from maskrcnn import presets
from maskrcnn.bench.flops import count_macs
from maskrcnn.bench.measure import Measurement, from_dict
from maskrcnn.config import to_json
from maskrcnn.models.build import build_model
from maskrcnn.zoo.table import ENTRIES

ROOT = Path(__file__).parents[1]


def structure(name: str) -> str:
    return to_json(replace(presets.get(name).model, name=""))


def counts(name: str) -> dict[str, Any]:
    with torch.device("meta"):
        model = build_model(presets.get(name).model)
    parts = count_macs(model)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "gflops": round(sum(parts.values()) / 1e9, 2),
        "gflops_by_part": {part: round(macs / 1e9, 2) for part, macs in parts.items()},
    }


def measured(found: list[Measurement]) -> dict[str, Any]:
    """By precision: seconds an image and peak MiB at batch 1; and on what."""
    rows = [m for m in found if m.seconds is not None and m.task.mode == "inference" and m.task.batch == 1]
    if not rows:
        return {}
    values = {
        m.task.precision: {
            "seconds": round(m.seconds or 0, 3),
            "memory_mib": None if m.memory_mib is None else round(m.memory_mib),
        }
        for m in rows
    }
    height, width = rows[0].task.size
    return {"measured": {"device": rows[0].device_name, "size": [height, width], **values}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bench", type=Path, default=ROOT / "benchmarks" / "results" / "zoo" / "bench.json")
    args = parser.parse_args()
    found = [from_dict(v) for v in json.loads(args.bench.read_text())] if args.bench.exists() else []
    by_structure: dict[str, list[Measurement]] = {}
    for m in found:
        by_structure.setdefault(structure(m.task.model), []).append(m)
    counted: dict[str, dict[str, Any]] = {}
    result = {}
    for entry in (e for e in ENTRIES if e.name in presets.PRESETS):
        key = structure(entry.name)
        if key not in counted:
            counted[key] = counts(entry.name)
            print(f"{entry.name}: {counted[key]['parameters']:,} parameters, {counted[key]['gflops']} GFLOPs")
        result[entry.name] = counted[key] | measured(by_structure.get(key, []))
    out = ROOT / "src" / "maskrcnn" / "zoo" / "measured.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
