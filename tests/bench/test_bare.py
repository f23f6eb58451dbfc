"""What is run on a GPU needs PyTorch, torchvision, Triton, numpy and Pillow alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REFUSE = """
import builtins
real = builtins.__import__
OTHERS = {"pydantic", "pycocotools", "hotcoco", "rich", "safetensors", "torchcodec", "onnx", "onnxruntime", "openvino",
          "pytest", "fastapi"}
def bare(name, globals=None, *rest, **more):
    asks = (globals or {}).get("__name__", "")
    if name.split(".")[0] in OTHERS and asks.startswith(("maskrcnn", "__main__", "gpu_")):
        raise ModuleNotFoundError(f"{asks} imports {name}")
    return real(name, globals, *rest, **more)
builtins.__import__ = bare
"""


def bare(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python where this package and the scripts find no other packages."""
    (folder / "sitecustomize.py").write_text(REFUSE)
    paths = [str(folder), str(ROOT / "src"), str(ROOT / "benchmarks")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=300)


def test_the_hook_refuses(tmp_path: Path) -> None:
    done = bare(tmp_path, "-c", "import rich")
    assert "__main__ imports rich" in done.stderr


@pytest.mark.slow
def test_scripts_for_a_gpu_import_nothing_else(tmp_path: Path) -> None:
    modules = "gpu_checks, gpu_speed, gpu_profile, deformable, maskrcnn.bench.card, maskrcnn.bench.gpu_report"
    done = bare(tmp_path, "-c", f"import maskrcnn.cli.main, maskrcnn.cli.bench, {modules}")
    assert done.returncode == 0, done.stderr[-2000:]


def test_usage_of_the_script_is_its_head() -> None:
    done = subprocess.run(["sh", str(ROOT / "benchmarks" / "gpu_all.sh")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "benchmarks/gpu_all.sh OUT [PART] [--tiny]" in done.stdout
    assert "DEVICE is cuda" in done.stdout
