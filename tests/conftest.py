"""Shared fixtures. Real data and reference outputs lie beside the checkout; tests that need them skip without."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.parity import parity, pytest_addoption, pytest_configure  # noqa: F401 (pytest finds them here)

# Two cores and several workers: more threads only fight. Set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data and reference outputs."""
    folder = Path(os.environ.get("MASKRCNN_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"no reference outputs at {folder}; set MASKRCNN_SHARED to their folder")
    return folder


@pytest.fixture(scope="session")
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny MobileNetV2-FPN model as `maskrcnn export` writes it, with ids that are not its classes' numbers.

    It takes a picture at a time, of up to 128 x 160 pixels: of free sizes, exporting takes twice as long.
    """
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    fcntl = pytest.importorskip("fcntl")
    from maskrcnn.export.onnx_file import write_onnx
    from tests.export.test_onnx import sure

    # Exporting takes seconds: the first of several workers does it for all.
    own = tmp_path_factory.getbasetemp()
    path = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "small.onnx"
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            model = sure("mask_rcnn_mobilenet_v2_FPN")
            model.config.category_ids = (3, 7, 20)
            write_onnx(model, path.with_suffix(".part"), size=(128, 160), batch=1)
            path.with_suffix(".part").rename(path)
    return path


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PNG file of 70 x 90 random pixels, which the tiny models resize."""
    from PIL import Image

    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
