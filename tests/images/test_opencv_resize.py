"""OpenCV's resize without OpenCV: its own outputs, as hashes and, where it is installed, against it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskrcnn.images.opencv_resize import resize_bilinear
from maskrcnn.images.resize import resize_image, resize_size

# sha256 of what OpenCV 4.10.0 makes of `noise(*old)`: enlarged, reduced, halved, one axis, a single row.
OPENCV = {
    ((40, 60), (80, 133)): "bdaf780df8911e60",
    ((97, 61), (41, 29)): "26983ff556ea319c",
    ((64, 48), (32, 24)): "8f76288867bac9fd",
    ((64, 48), (32, 48)): "da28b62aef6fc1ab",
    ((31, 17), (31, 50)): "6dde89d05f9804ff",
    ((1, 9), (4, 4)): "c6b9c706497e18b5",
    ((48, 64), (80, 107)): "ad9e655855328269",
}


def noise(height: int, width: int) -> np.ndarray:
    """Noise (height, width, 3) uint8 by a formula, which every numpy computes alike."""
    n = np.arange(height * width * 3, dtype=np.uint64)
    return ((n * np.uint64(2654435761) >> np.uint64(13)) % 256).astype(np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize(("old", "new"), OPENCV)
def test_the_bytes_are_opencv_s(old: tuple[int, int], new: tuple[int, int]) -> None:
    resized = resize_bilinear(noise(*old), new)
    assert resized.shape == (*new, 3)
    assert hashlib.sha256(resized.tobytes()).hexdigest()[:16] == OPENCV[old, new]


def test_random_sizes_against_the_library() -> None:
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    rng = np.random.default_rng(0)
    for height, width, new_height, new_width in rng.integers(1, 70, (200, 4)).tolist():
        image = noise(height, width)
        expected = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(resize_bilinear(image, (new_height, new_width)), expected)


def test_reference_input(shared: Path) -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image has the picture of the reference")
    with Image.open(shared / "reference" / "mmdetection" / "input_a_rgb.png") as image:
        expected = np.asarray(image)
    assert np.array_equal(resize_image(data.astronaut(), (256, 256), "opencv"), expected)


def test_the_same_size_is_the_same_image() -> None:
    image = noise(5, 7)
    assert resize_bilinear(image, (5, 7)) is image


def test_size_keeps_the_ratio() -> None:
    assert resize_size(427, 640, 800, 1333, "opencv") == (800, 1199)
    assert resize_size(400, 600, 230, 345, "opencv") == (230, 345)
    assert resize_size(100, 1000, 800, 1333, "opencv") == (133, 1333)
    assert resize_size(1, 100_000, 800, 1333, "opencv") == (1, 1333)
