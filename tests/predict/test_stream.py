"""Prediction over many images: every image once, in order, whatever the batches, threads and broken files."""

from __future__ import annotations

import json
import threading
import types
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn.config import InputConfig
from maskrcnn.data.writers import LabelledPicture
from maskrcnn.errors import UserError
from maskrcnn.masks import PredictedMasks, rle_decode, rle_encode
from maskrcnn.predict import (
    TiledInstances,
    check_outputs,
    find_images,
    predict_stream,
    write,
    write_predictions,
)
from maskrcnn.structures import ImageBatch, Instances


class FakeModel:
    """Model that finds one object in each image: the whole of it, scored by its mean value."""

    def __init__(self):
        self.config = types.SimpleNamespace(input=InputConfig(min_size=64, max_size=100))
        self.batches: list[list[tuple[int, int]]] = []

    training = False

    def eval(self):
        return self

    def train(self, mode=True):
        return self

    def preprocess(self, images, original_sizes):
        self.batches.append([tuple(i.shape[1:]) for i in images])
        assert len({tuple(-(-s // 32) for s in i.shape[1:]) for i in images}) == 1
        means = torch.stack([i.float().mean() / 255 for i in images])
        return ImageBatch(means, [tuple(i.shape[1:]) for i in images], list(original_sizes))

    def detect(self, batch):
        return [detection(float(score), size) for score, size in zip(batch.pixels, batch.original_sizes)]


def fake_model() -> Any:  # pyright: ignore[reportUndefinedVariable]
    return FakeModel()


def detection(score: float, size: tuple[int, int]) -> Instances:
    boxes = torch.tensor([[0.0, 0.0, size[1], size[0]]])
    masks = PredictedMasks(torch.ones(1, 28, 28), boxes, size)
    return Instances(size, boxes, torch.tensor([score]), torch.tensor([0]), masks, class_names=("thing",))


@pytest.fixture
def paths(tmp_path):
    """Twelve pictures of three shapes, number i of value 20 * i; number 5 is broken."""
    folder = tmp_path / "in"
    folder.mkdir()
    paths = []
    for i in range(12):
        path = folder / f"{i:02}.png"
        Image.new("RGB", [(40, 40), (60, 40), (40, 60)][i % 3], (20 * i,) * 3).save(path)
        paths.append(path)
    paths[5].write_bytes(b"not an image")
    return paths


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_every_image_in_order_and_broken_ones_named(paths, batch_size, num_threads):
    model = fake_model()
    results = list(predict_stream(model, paths, batch_size=batch_size, num_threads=num_threads))
    assert [path for path, _ in results] == paths
    for i, (path, result) in enumerate(results):
        if i == 5:
            assert isinstance(result, UserError)
            assert str(path) in str(result)
        else:
            assert result.scores.item() == pytest.approx(20 * i / 255)  # pyright: ignore[reportAttributeAccessIssue]
            assert result.image == path  # pyright: ignore[reportAttributeAccessIssue]
    assert max(map(len, model.batches)) <= batch_size
    if batch_size == 2:
        assert sum(len(b) == 2 for b in model.batches) >= 3  # of one shape, though no two neighbours are


def test_memory_is_bounded(paths):
    """Of an endless stream of paths only a few are read ahead of the results that were taken."""
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield paths[0]

    stream = predict_stream(fake_model(), endless(), batch_size=2, num_threads=2)
    for _ in range(20):
        next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert taken <= 20 + 3 * 2 * 4


def test_sizes_reach_the_model(paths):
    model = fake_model()
    list(predict_stream(model, paths[:1], min_size=32, max_size=500))
    assert model.batches == [[(32, 32)]]


def test_predictions_and_pictures_are_written(paths, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    written = write_predictions(predict_stream(fake_model(), paths, batch_size=4), out, category_ids=(17,))
    assert (written.num_images, written.num_failed, written.num_detections) == (11, 1, 11)
    entries = json.loads((out / "predictions.json").read_text())
    assert [e["image_id"] for e in entries] == [f"{i:02}" for i in range(12) if i != 5]
    entry = entries[1]
    assert entry["category_id"] == 17
    assert entry["bbox"] == [0, 0, 60, 40]
    assert entry["score"] == pytest.approx(20 / 255)
    assert entry["segmentation"]["size"] == [40, 60]
    assert rle_decode(entry["segmentation"]).all()
    names = sorted(p.name for p in out.iterdir())
    assert names == sorted([f"{i:02}.jpg" for i in range(12) if i != 5] + ["predictions.json"])


def test_no_images_give_an_empty_list(tmp_path):
    assert write_predictions([], tmp_path).num_images == 0
    assert json.loads((tmp_path / "predictions.json").read_text()) == []


def test_without_drawing_there_are_no_pictures(paths, tmp_path):
    (tmp_path / "out").mkdir()
    write_predictions(predict_stream(fake_model(), paths), tmp_path / "out", draw=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["predictions.json"]


def test_a_picture_that_cannot_be_drawn_costs_no_result(paths, tmp_path):
    """One is gone when it would be drawn; one is wider than JPEG allows."""
    wide = tmp_path / "wide.png"
    Image.new("L", (70_000, 2)).save(wide)

    def results():
        for path, result in predict_stream(
            fake_model(), [paths[1], paths[2], wide], min_size=1, max_size=100
        ):
            if path == paths[2]:
                paths[2].unlink()
            yield path, result

    (tmp_path / "out").mkdir()
    written = write_predictions(results(), tmp_path / "out", num_threads=1)
    assert (written.num_images, written.num_failed) == (3, 0)
    assert len(written.not_drawn) == 1
    assert "02.png" in written.not_drawn[0]
    with Image.open(tmp_path / "out" / "wide.jpg") as drawn:
        assert drawn.size == (65_500, 1)


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "predictions.json").write_text("old")

    def results():
        yield "a.png", detection(0.9, (30, 30))
        raise RuntimeError("model broke")

    with pytest.raises(RuntimeError, match="model broke"):
        write_predictions(results(), tmp_path, draw=False)
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.json"]
    assert (tmp_path / "predictions.json").read_text() == "old"


def test_few_results_wait_for_the_writers(tmp_path, monkeypatch):
    """The model is not taken further ahead than two results a writing thread."""
    gate, produced = threading.Event(), 0

    def slow(path, found):
        gate.wait(10)
        return LabelledPicture(path, path.name, (30, 30), [])

    monkeypatch.setattr(write, "labelled", slow)

    def results():
        nonlocal produced
        for i in range(30):
            if i == 3:
                threading.Timer(0.05, gate.set).start()
            produced = i
            assert gate.is_set() or i <= 3
            yield f"{i}.png", detection(0.9, (30, 30))

    assert write_predictions(results(), tmp_path, draw=False, num_threads=2).num_images == 30
    assert produced == 29


def test_batches_do_not_change_what_is_found(tmp_path):
    """A real model: streamed in batches as alone by `predict`. In float64, so that no tie is broken by rounding."""
    from maskrcnn.zoo import build

    torch.manual_seed(0)
    model = build("mask_rcnn_R_50_FPN_1x", num_classes=3, tiny=True).double().eval()
    rng = np.random.default_rng(0)
    paths = []
    for i, size in enumerate([(50, 60), (60, 50), (48, 60), (50, 61), (50, 60)]):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(paths[-1])
    model.config.box_head.score_threshold = 0.0
    for path, streamed in predict_stream(model, paths, batch_size=3, min_size=64, max_size=128):
        alone = model.predict(path, min_size=64, max_size=128)
        assert isinstance(streamed, Instances)
        assert len(streamed) == len(alone) > 0
        assert streamed.image_size == alone.image_size
        torch.testing.assert_close(streamed.boxes, alone.boxes)
        torch.testing.assert_close(streamed.scores, alone.scores)


class TestFindImages:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "sub/c.png", "sub/deep/d.tif", "x[1].png"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    @pytest.mark.parametrize(
        ("given", "names"),
        [
            (["."], ["a.JPG", "b.png", "x[1].png"]),
            (["sub"], ["c.png"]),
            (["*.png"], ["b.png", "x[1].png"]),
            (["**/*"], ["a.JPG", "b.png", "c.png", "d.tif", "x[1].png"]),
            (["sub/**/*.tif", "b.png"], ["d.tif", "b.png"]),
            (["b.png", ".", "./b.png"], ["b.png", "a.JPG", "x[1].png"]),
            (["x[1].png"], ["x[1].png"]),
            (["notes.txt"], ["notes.txt"]),
        ],
    )
    def test_files_folders_and_patterns(self, given, names):
        assert [p.name for p in find_images(given)] == names

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("bb.png", r"bb\.png: .*got no such file\. Did you mean 'b\.png'"),
            ("none/x.png", "got no folder none"),
            ("*.webp", r"\*\.webp: expected a pattern that matches images .* got no match"),
            ("empty", r"empty: .* got a folder without any"),
            ("outer", r"outer: .* \(or 'outer/\*\*/\*' for its subfolders\)"),
        ],
    )
    def test_mistakes(self, tmp_path, given, message):
        (tmp_path / "empty").mkdir()
        (tmp_path / "outer" / "inner").mkdir(parents=True)
        with pytest.raises(UserError, match=message):
            find_images([given])


def test_outputs_that_would_collide_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    first, second = tmp_path / "in" / "a.jpg", tmp_path / "a.png"
    with pytest.raises(UserError, match=r"a\.png: expected file names that differ .*'a' in the results"):
        check_outputs([first, second], tmp_path / "out")
    with pytest.raises(UserError, match="would replace an input"):
        check_outputs([first], tmp_path / "in")
    check_outputs([first], tmp_path / "in", draw=False)
    check_outputs([second], tmp_path)


def test_a_large_picture_is_written_as_a_small_one(tmp_path):
    """Objects that are made when they are asked for, also where they wait on the disk for their place in the order."""
    boxes = np.array([[1.5, 2, 3, 4.25], [0, 0, 2, 2]])
    counts = [rle_encode(bitmap)["counts"] for bitmap in (np.eye(5), np.tri(5))]
    found = TiledInstances((5, 5), boxes, np.array([0.75, 0.5]), np.array([1, 0]), counts)
    objects = write.TiledObjects(found)
    assert [o.label for o in objects] == [o.label for o in objects[:]] == [1, 0]
    assert objects[-1].box == (0, 0, 2, 2)
    for sort in (False, True):
        results = [("a.png", UserError("a.png: cannot read")), ("b.png", found)]
        written = write_predictions(results, tmp_path, draw=False, by_uncertainty=sort)
        assert (written.num_images, written.num_failed, written.num_detections) == (1, 1, 2)
        assert json.loads(written.path.read_text()) == found.to_coco("b")
