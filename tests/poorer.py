"""Tests run again as on a poorer processor: `pytest -p tests.poorer` takes away what the variable POORER names.

Instruction sets are taken away by variables that oneDNN, PyTorch and MKL read themselves; see `MACHINES`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
SSE4 = {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
MACHINES: dict[str, dict[str, str]] = {
    "AVX-512 without bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2": AVX2,
    "SSE4": SSE4,
    "no oneDNN": AVX2 | {"POORER": "oneDNN"},
    "no MKL": {"POORER": "MKL"},  # as PyTorch's builds for ARM and macOS
    "another device": AVX2 | {"POORER": "operators"},  # neither CPU nor CUDA: plain PyTorch
    "convolutions for rows": {"POORER": "rows"},  # as on AMD's AVX-512
}


def run_as(machine: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments as on a poorer machine."""
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)} | machine
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )


def take_away(what: str) -> None:
    """Take oneDNN, MKL, or the CPU's and CUDA's own operators from this process, or turn rows into convolutions."""
    import torch

    from maskrcnn import processor
    from maskrcnn.ops import bilinear, sampling

    match what:
        case "oneDNN":
            torch.backends.mkldnn.enabled = False
        case "MKL":
            torch.backends.mkl.is_available = lambda: False
        case "operators":
            processor.has_sparse_products = lambda dtype: False
            sampling._sum_bags = bilinear._sum_bags = sampling.sum_rows
        case "rows":
            processor.kind = lambda: "avx512_amd"
        case _:
            raise ValueError(what)


def pytest_configure() -> None:
    if "POORER" in os.environ:
        take_away(os.environ["POORER"])
