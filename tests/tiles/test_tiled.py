"""Large pictures: windows, seams, and going on after an interruption, with a finder that makes no mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import maskrcnn
from maskrcnn.config import TTAConfig
from maskrcnn.errors import UserError
from maskrcnn.masks.rle import rle_decode
from maskrcnn.structures import Instances
from maskrcnn.tiles.seams import Pieces, joined_runs, merge
from maskrcnn.tiles.tiled import predict_tiled, tiles_of


class ExactMasks:
    """Masks as they are, with the interface that a tile's masks have."""

    def __init__(self, masks: list[np.ndarray]) -> None:
        self.masks = masks

    def __len__(self) -> int:
        return len(self.masks)

    def to(self, device: object) -> ExactMasks:
        return self

    def crop(self, i: int) -> tuple[np.ndarray, tuple[int, int]]:
        return self.masks[i], (0, 0)


class Finder:
    """Finds each colour of a window: red and green are the object's number, blue its class; black is background."""

    def __init__(self) -> None:
        self.calls = 0

    def predict(self, window: np.ndarray) -> Instances:
        self.calls += 1
        values = (window.astype(np.int64) * [65536, 256, 1]).sum(-1)
        masks = [values == v for v in np.unique(values) if v]
        boxes = []
        for mask in masks:
            y, x = np.nonzero(mask)
            boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
        sums = torch.tensor([float(m.sum()) for m in masks])
        return Instances(
            (window.shape[0], window.shape[1]),
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            sums / (sums + 1),
            torch.tensor([int(window[m][0, 2]) for m in masks], dtype=torch.int64),
            ExactMasks(masks),  # pyright: ignore[reportArgumentType]
        )


class Nothing:
    """Finds nothing, and counts the windows."""

    def __init__(self) -> None:
        self.calls = 0

    def predict(self, window: np.ndarray) -> Instances:
        self.calls += 1
        none = ExactMasks([])
        size = (window.shape[0], window.shape[1])
        return Instances(size, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), none)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """400 x 500 pixels: discs of many sizes, a ring larger than any tile, and a bar through the whole width."""
    rng, pixels = np.random.default_rng(0), np.zeros((400, 500, 3), np.uint8)
    y, x = np.mgrid[:400, :500]
    pixels[(y >= 196) & (y < 204)] = (201, 0, 2)
    distance = np.hypot(y - 200, x - 250)
    pixels[(distance > 150) & (distance < 156)] = (200, 0, 1)  # it parts the bar
    for number in range(1, 160):
        cy, cx, r = rng.integers(0, 400), rng.integers(0, 500), rng.integers(3, 26)
        away = np.hypot(y - cy, x - cx)
        if not pixels[away < r + 2].any():
            pixels[away < r] = (number, 0, 1 + number % 2)
    return pixels


def expected(pixels: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
    colours = np.unique(pixels.reshape(-1, 3), axis=0)
    return {tuple(c.tolist()): (pixels == c).all(-1) for c in colours if c.any()}


@pytest.mark.parametrize(("tile", "overlap"), [(128, 32), (100, 50), (171, 64), (1000, 100)])
def test_every_object_is_found_once_with_its_exact_mask(picture, tile, overlap):
    found = predict_tiled(Finder(), picture, tile, overlap)
    truth = expected(picture)
    assert len(found) == len(truth)
    for rle, label, box in zip(found.rles, found.labels, found.boxes, strict=True):
        mask = rle_decode(rle).astype(bool)
        colour = tuple(picture[mask][0].tolist())
        np.testing.assert_array_equal(mask, truth.pop(colour))
        y, x = np.nonzero(mask)
        assert label == colour[2]
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize(("seed", "tile", "overlap"), [(0, 100, 50), (1, 128, 32), (2, 171, 64)])
def test_objects_that_lie_over_others_stay_apart_from_them(seed: int, tile: int, overlap: int) -> None:
    """Discs over a ring and a bar. (Where a disc hides all of the bar that two tiles share, its halves stay two:
    nothing that was seen says that they are one.)
    """
    rng, pixels = np.random.default_rng(seed), np.zeros((400, 500, 3), np.uint8)
    y, x = np.mgrid[:400, :500]
    pixels[(y >= 196) & (y < 204)] = (201, 0, 2)
    distance = np.hypot(y - 200, x - 250)
    pixels[(distance > 150) & (distance < 156)] = (200, 0, 1)
    for number in range(1, 60):
        cy, cx, r = rng.integers(0, 400), rng.integers(0, 500), rng.integers(3, 26)
        pixels[np.hypot(y - cy, x - cx) < r] = (number, 0, 1 + number % 2)
    found, truth = predict_tiled(Finder(), pixels, tile, overlap), expected(pixels)
    assert len(found) == len(truth)
    for rle in found.rles:
        mask = rle_decode(rle).astype(bool)
        np.testing.assert_array_equal(mask, truth.pop(tuple(pixels[mask][0].tolist())))


def test_the_order_in_which_tiles_are_done_does_not_matter(picture: np.ndarray) -> None:
    size, tiles = (400, 500), tiles_of((400, 500), 128, 48)
    pieces = []
    for number, tile in enumerate(tiles):
        window = picture[tile.y0 : tile.y1, tile.x0 : tile.x1]
        found = Finder().predict(window)
        for i in range(len(found)):
            mask = found.masks.crop(i)[0]  # pyright: ignore[reportOptionalMemberAccess]
            y, x = np.nonzero(mask)
            crop = mask[y.min() : y.max() + 1, x.min() : x.max() + 1]
            origin = (int(tile.x0 + x.min()), int(tile.y0 + y.min()))
            box = (*origin, int(tile.x0 + x.max() + 1), int(tile.y0 + y.max() + 1))
            how_sure, label = float(found.scores[i]), int(found.labels[i])
            pieces.append(Pieces.of_tile(number, [(box, how_sure, label, crop, origin)]))

    def objects() -> list[tuple[object, ...]]:
        all_of_them = Pieces.joined(pieces)
        groups = merge(all_of_them, tiles, size)
        runs = [joined_runs(all_of_them, group, size[0]) for group in groups]
        return [
            (all_of_them.scores[g[0]], starts.tolist(), ends.tolist())
            for g, (starts, ends) in zip(groups, runs, strict=True)
        ]

    in_order = objects()
    assert len(in_order) == len(expected(picture))
    for seed in range(3):
        np.random.default_rng(seed).shuffle(pieces)  # pyright: ignore[reportArgumentType]
        assert objects() == in_order


def test_tiles_of_one_size_cover_the_picture():
    tiles = tiles_of((400, 500), 128, 32)
    covered = np.zeros((400, 500), bool)
    for t in tiles:
        covered[t.y0 : t.y1, t.x0 : t.x1] = True
        assert (t.x1 - t.x0, t.y1 - t.y0) == (128, 128)
    assert covered.all()
    assert len(tiles_of((50, 60), 128, 32)) == 1


def test_finished_tiles_are_kept(picture, tmp_path):
    class Dies(Finder):
        def predict(self, window: np.ndarray) -> Instances:
            if self.calls == 7:
                raise KeyboardInterrupt
            return super().predict(window)

    whole = predict_tiled(Finder(), picture, 128, 32)
    with pytest.raises(KeyboardInterrupt):
        predict_tiled(Dies(), picture, 128, 32, keep=tmp_path / "kept")
    again, other = Finder(), Finder()
    resumed = predict_tiled(again, picture, 128, 32, keep=tmp_path / "kept")
    assert again.calls == len(tiles_of((400, 500), 128, 32)) - 7
    assert resumed.to_coco(1) == whole.to_coco(1)
    predict_tiled(other, picture, 128, 48, keep=tmp_path / "kept")
    assert other.calls == len(tiles_of((400, 500), 128, 48))


def test_nothing_to_find_is_no_error():
    assert predict_tiled(Finder(), np.zeros((300, 200, 3), np.uint8), 128, 32).to_coco() == []


@pytest.mark.parametrize("overlap", [0, 15, 65, 200])
def test_an_overlap_that_cannot_be_is_refused(picture, overlap):
    with pytest.raises(UserError, match="overlap: expected 16 to 64 pixels"):
        predict_tiled(Finder(), picture, 128, overlap)


def test_predict_takes_a_tile() -> None:
    torch.manual_seed(0)
    model = maskrcnn.build("mask_rcnn_R_50_FPN_1x", num_classes=3, tiny=True)
    model.config.box_head.score_threshold = 0.0
    slide = np.random.default_rng(0).integers(0, 255, (200, 260, 3), dtype=np.uint8)
    found = model.predict(slide, tile=128, min_size=64, max_size=64)
    assert found.image_size == (200, 260)
    assert len(found) > 20
    by_hand = model.predict(slide[:128, :128], min_size=64, max_size=64)
    assert by_hand.scores.max().item() in found.scores
    assert model.predict(slide, tile=128, overlap=16, min_size=64, max_size=64).rles == found.rles
    for wrong, said in (
        ({"overlap": 16}, "overlap: expected a tile with it"),
        ({"tile": 128, "overlap": 80}, "expected 16 to 64 pixels"),
        ({"tile": 128, "tta": TTAConfig()}, "no tta with it"),
    ):
        with pytest.raises(UserError, match=said):
            model.predict(slide, **wrong)  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(UserError, match="expected one path or array"):
        model.predict([slide], tile=128)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_what_another_version_kept_is_looked_at_again(picture: np.ndarray, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    predict_tiled(Finder(), picture, 128, 32, keep=kept)
    mark = kept / "tiles.json"
    fields, settings = json.loads(mark.read_text())
    mark.write_text(json.dumps([fields[1:], settings]))
    again = Finder()
    predict_tiled(again, picture, 128, 32, keep=kept)
    assert again.calls == len(tiles_of((400, 500), 128, 32))
