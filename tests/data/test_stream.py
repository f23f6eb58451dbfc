"""Streaming keeps the order, names broken files, and holds few pictures at once."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from maskrcnn.data import stream
from maskrcnn.data.stream import stream_images
from maskrcnn.images.read import read_image
from maskrcnn.images.resize import resize_image


@pytest.fixture
def paths(tmp_path):
    """Nine pictures of different sizes; number 4 is broken."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(9):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (20 + i, 30, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    paths[4].write_bytes(paths[4].read_bytes()[:200])
    return paths


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 20])
def test_order_sizes_and_errors(paths, batch_size, num_threads):
    batches = list(stream_images(paths, 40, 100, batch_size, num_threads))
    images = [image for batch in batches for image in batch.images]
    errors = [error for batch in batches for error in batch.errors]
    assert [image.index for image in images] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert [image.original_size for image in images] == [(20 + i, 30) for i in range(9) if i != 4]
    assert [(e.index, e.path) for e in errors] == [(4, paths[4])]
    assert str(paths[4]) in str(errors[0].error)
    assert all(len(b.images) + len(b.errors) == batch_size for b in batches[:-1])


def test_pixels_are_the_resized_picture(paths):
    (batch,) = stream_images(paths[:1], 40, 100)
    expected = resize_image(read_image(paths[0]), (40, 60))
    assert np.array_equal(batch.images[0].pixels.permute(1, 2, 0).numpy(), expected)


def test_no_paths_no_batches():
    assert list(stream_images([], 40, 100)) == []


def test_paths_are_read_little_by_little(paths):
    taken = []

    def endless():
        while True:
            taken.append(paths[0])
            yield paths[0]

    batches = stream_images(endless(), 40, 100, batch_size=2, num_threads=2)
    for consumed in range(1, 5):
        next(batches)
        assert len(taken) <= 2 * consumed + 4
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_bug_is_not_taken_for_a_broken_file(paths, monkeypatch):
    def bug(path, config):
        raise ZeroDivisionError

    monkeypatch.setattr(stream, "read_input", bug)
    with pytest.raises(ZeroDivisionError):
        list(stream_images(paths, 40, 100))
