"""JSON file of a card's results: its name, its form, and the figures that are read off it.

format, card, device, memory_gib, capability, driver, torch, cuda, hip, cudnn, machine, tiny, date
rows: for each model and precision
    error: why there are no figures, or null; task: the settings
    largest_batch, largest_is_the_limit
    training, inference: [{batch, images_a_second, iterations, peak_mib}], at batch 1 of inference also latency_ms
    training_from_files: one such entry
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from maskrcnn.errors import UserError

FORMAT = 1
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
Report = dict[str, Any]


def file_name(card: str, tiny: bool) -> str:
    """Name of a card's files: `nvidia_h100_80gb_hbm3`; tiny reports are marked."""
    name = re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_") or "card"
    return name + "_tiny" * tiny


def read_report(path: Path) -> Report:
    """Read a card's JSON.

    Raises:
        UserError: the file is something else.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        rows = report["rows"]
        assert report["format"] == FORMAT
        assert all({"model", "precision", "error"} <= set(row) for row in rows)
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        raise UserError(f"{path}: expected a report of `bench --gpu-report`, got something else.") from None
    return report


def best_training(row: dict[str, Any]) -> float | None:
    """Most training images a second of any batch, the input on the device."""
    return max((one["images_a_second"] for one in row.get("training", [])), default=None)


def best_inference(row: dict[str, Any]) -> float | None:
    """Most images a second that are detected in, of any batch."""
    return max((one["images_a_second"] for one in row.get("inference", [])), default=None)


def latency(row: dict[str, Any]) -> float | None:
    """Milliseconds of one image alone."""
    return next((one["latency_ms"] for one in row.get("inference", []) if one["batch"] == 1), None)
