"""What is run on a GPU needs PyTorch, torchvision, Triton, numpy and Pillow alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REFUSE = """
import sys
from importlib.machinery import PathFinder
OTHERS = {"pydantic", "pycocotools", "hotcoco", "rich", "safetensors", "torchcodec", "onnx", "onnxruntime", "openvino",
          "pytest", "fastapi", "matplotlib", "scipy", "cv2", "yaml", "tqdm", "psutil"}
class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in OTHERS else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""


def bare(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python where this package and the scripts find no other packages."""
    (folder / "sitecustomize.py").write_text(REFUSE)
    paths = [str(folder), str(ROOT / "src"), str(ROOT / "benchmarks")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=300)


def test_the_hook_refuses(tmp_path: Path) -> None:
    for ask in ("import rich", "import importlib; importlib.import_module('hotcoco.mask')"):
        assert "No module named" in bare(tmp_path, "-c", ask).stderr


@pytest.mark.slow
def test_scripts_for_a_gpu_import_nothing_else(tmp_path: Path) -> None:
    modules = "gpu_checks, gpu_speed, gpu_profile, deformable, maskrcnn.bench.card, maskrcnn.bench.gpu_report"
    done = bare(tmp_path, "-c", f"import maskrcnn.cli.main, maskrcnn.cli.bench, {modules}")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["gpu_checks --tiny", "gpu_speed --smoke", "gpu_profile --tiny"])
def test_scripts_for_a_gpu_run_with_nothing_else(script: str, tmp_path: Path) -> None:
    """In small on the CPU; every check passes."""
    name, *options = script.split()
    path = str(ROOT / "benchmarks" / f"{name}.py")
    done = bare(tmp_path, path, "--device", "cpu", *options, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_the_report_runs_with_nothing_else(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--tiny", "--models", "mask_rcnn_mobilenet_v2_FPN", "--precisions", "bf16"]
    done = bare(tmp_path, "-m", "maskrcnn", "bench", "--gpu-report", *words, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_usage_of_the_script_is_its_head() -> None:
    done = subprocess.run(["sh", str(ROOT / "benchmarks" / "gpu_all.sh")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "benchmarks/gpu_all.sh OUT [PART] [--tiny]" in done.stdout
    assert "DEVICE is cuda" in done.stdout


def all_parts(folder: Path, interpreter: str, *words: str, limit: int = 100) -> tuple[int, list[str]]:
    """Run the script with a stand-in for Python: its exit status, and what it noted of each command."""
    stub = folder / "python"
    stub.write_text(f"#!/bin/sh\n{interpreter}\n")
    stub.chmod(0o755)
    unseen = {
        "CUDA_VISIBLE_DEVICES": "",
        "HIP_VISIBLE_DEVICES": "",
    }  # a GPU at hand: nothing is to be measured
    env = os.environ | {"PYTHON": str(stub), "LIMIT": str(limit)} | unseen
    command = ["sh", str(ROOT / "benchmarks" / "gpu_all.sh"), str(folder / "out"), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, [
        line for file in sorted(folder.glob("out/*/times.txt")) for line in file.read_text().splitlines()
    ]


def test_a_part_ends_in_its_time_and_keeps_what_it_had(tmp_path: Path) -> None:
    status, noted = all_parts(tmp_path, "echo a row; exec sleep 30", "5", limit=1)
    assert status == 1
    assert len(noted) == 1
    assert "exit status 124 (ended after 1 s)" in noted[0]
    assert (tmp_path / "out" / "part5" / "report.txt").read_text() == "a row\n"


def test_a_command_that_fails_is_told_and_does_not_stop_the_next(tmp_path: Path) -> None:
    status, noted = all_parts(tmp_path, "exit 3")
    assert status == 1
    assert len(noted) == 8
    assert all("exit status 3," in line for line in noted)
    assert all_parts(tmp_path, "exit 0", "3")[0] == 0


@pytest.mark.slow
def test_each_command_is_one_that_its_script_takes(tmp_path: Path) -> None:
    """Run what the script would, but for the work: every option is known, and without a GPU it is one line."""
    status, noted = all_parts(tmp_path, f'exec "{sys.executable}" "$@"', "3", limit=60)
    assert status == 1
    assert len(noted) == 3
    assert all("exit status 2," in line for line in noted)
    for text in tmp_path.glob("out/part3/*.txt"):
        if text.name != "times.txt":
            assert text.read_text().count("\n") == 1
            assert "no CUDA device here" in text.read_text()
