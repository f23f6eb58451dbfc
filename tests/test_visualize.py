"""Pictures show what was found: masks in colour, the rest untouched, labels inside and apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn import visualize
from maskrcnn.errors import UserError
from maskrcnn.masks import InstanceMasks, PredictedMasks
from maskrcnn.structures import GroundTruth, Instances
from maskrcnn.visualize import save_picture, side_by_side


def found(boxes, scores, size=(480, 640), labels=None, image="grey", names=("cat", "dog")) -> Instances:
    """Detections whose masks fill their boxes."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(
        size,
        boxes,
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
        PredictedMasks(torch.ones(len(boxes), 28, 28), boxes, size),
        class_names=names,
        image=np.full((*size, 3), 100, np.uint8) if isinstance(image, str) else image,
    )


def changed(picture, grey=100):
    return (picture != grey).any(2)


def test_only_the_object_and_its_label_are_painted():
    picture = found([[200, 200, 400, 400]], [0.9]).draw()
    assert picture.shape == (480, 640, 3)
    assert picture.dtype == np.uint8
    assert changed(picture)[200:400, 200:400].all()
    outside = changed(picture)
    outside[200:400, 200:400] = False
    rows, columns = np.nonzero(outside)
    assert rows.min() >= 170  # the label: right above the box
    assert rows.max() < 200
    assert columns.min() >= 200
    assert columns.max() < 400


def test_the_picture_given_is_left_alone():
    instances = found([[200, 200, 400, 400]], [0.9])
    instances.draw()
    assert isinstance(instances.image, np.ndarray)
    assert (instances.image == 100).all()


def test_detections_under_the_threshold_are_left_out():
    instances = found([[20, 100, 120, 200], [400, 100, 500, 200]], [0.9, 0.4])
    strict, lax = instances.draw(), instances.draw(score_threshold=0.4)
    assert not changed(strict)[:, 350:].any()
    assert changed(lax)[150, 450]
    assert (instances.draw(score_threshold=0.95) == 100).all()


def test_a_small_object_stays_visible_on_a_large_one_whatever_their_order():
    boxes = [[300, 200, 340, 240], [100, 100, 600, 400]]
    for order in ([0, 1], [1, 0]):
        picture = found([boxes[i] for i in order], [0.9, 0.8], labels=order).draw()
        assert (picture[220, 320] != picture[350, 150]).any()


def test_small_pictures_are_enlarged_and_large_ones_kept():
    assert found([[10, 10, 50, 50]], [0.9], size=(100, 200)).draw().shape == (300, 600, 3)
    assert found([[10, 10, 50, 50]], [0.9], size=(256, 256)).draw().shape == (768, 768, 3)
    assert found([[1, 1, 5, 5]], [0.9], size=(8, 8)).draw().shape == (32, 32, 3)
    assert found([[10, 10, 50, 50]], [0.9], size=(400, 30)).draw().shape == (400, 30, 3)


@pytest.mark.parametrize("size", [(480, 640), (1, 1), (3, 700)])
def test_odd_detections_draw_without_harm(size):
    boxes = [[0, 0, size[1], size[0]], [-50, -50, -10, -10], [0, 0, 0, 0], [size[1] - 1, 0, size[1], 1]]
    picture = found(boxes, [0.9, 0.8, 0.7, 0.6], size=size).draw()
    assert picture.shape[2] == 3
    assert found([], [], size=size).draw().shape == picture.shape


def test_without_masks_boxes_are_drawn():
    instances = found([[200, 200, 400, 400]], [0.9])
    instances.masks = None
    picture = changed(instances.draw())
    assert picture[300, 200]
    assert picture[399, 300]
    assert not picture[300, 300]


def test_contours_are_stronger_than_the_inside():
    picture = found([[200, 200, 400, 400]], [0.9]).draw().astype(int)
    edge, inside = picture[300, 201], picture[300, 300]
    assert np.abs(edge - 100).sum() > np.abs(inside - 100).sum() > 0


@pytest.mark.parametrize("width", [1, 2, 3, 6])
def test_erosion_is_the_minimum_over_a_square(width):
    mask = np.random.default_rng(width).random((40, 50)) < 0.97
    framed = np.pad(mask, width)
    expected = np.ones_like(mask)
    for dy in range(2 * width + 1):
        for dx in range(2 * width + 1):
            expected &= framed[dy : dy + 40, dx : dx + 50]
    assert (visualize._eroded(mask, width) == expected).all()


def test_labels_stay_inside_and_hardly_cover_each_other(monkeypatch):
    rng = np.random.default_rng(0)
    corners = rng.uniform(-20, 600, (25, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(40, 200, (25, 2))], 1)
    chips = record_chips(monkeypatch, found(boxes.tolist(), [0.9] * 25))
    assert len(chips) >= 5
    assert (chips[:, :2] >= 0).all()
    assert (chips[:, 2] <= 640).all()
    assert (chips[:, 3] <= 480).all()
    shared = visualize._overlap(chips, chips)
    np.fill_diagonal(shared, 0)
    assert shared.sum(1).max() <= 0.5 * (chips[0, 2:] - chips[0, :2]).prod()


def test_a_crowd_of_small_objects_gets_no_labels_but_its_large_ones_do(monkeypatch):
    grid = [[x, y, x + 9, y + 9] for x in range(0, 400, 20) for y in range(0, 300, 20)]
    assert len(record_chips(monkeypatch, found(grid, [0.9] * len(grid)))) == 0
    assert len(record_chips(monkeypatch, found([*grid, [420, 100, 630, 300]], [0.9] * (len(grid) + 1)))) == 1


def record_chips(monkeypatch, instances) -> np.ndarray:
    """Record the boxes of the labels drawn: filled rectangles."""
    from PIL import ImageDraw

    chips, rectangle = [], ImageDraw.ImageDraw.rectangle

    def spy(self, xy, fill=None, **options):
        if fill is not None:
            chips.append([xy[0], xy[1], xy[2] + 1, xy[3] + 1])
        rectangle(self, xy, fill=fill, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", spy)
    instances.draw()
    return np.array(chips, dtype=float).reshape(-1, 4)


def test_classes_get_hues_that_do_not_depend_on_their_order_and_instances_shades():
    first, second = visualize._colours([0, 1, 0]), visualize._colours([1, 0, 0])
    assert (first[0] == second[1]).all()
    assert (first[1] == second[0]).all()
    assert (first[0] != first[2]).any()
    assert len(np.unique(visualize._colours([0, 7, 14]), axis=0)) == 3  # would share a hue
    assert len(np.unique(visualize._colours([3] * 42), axis=0)) == 42
    assert visualize._colours([]).shape == (0, 3)


def test_saved_by_suffix_and_read_again(tmp_path):
    instances = found([[200, 200, 400, 400]], [0.9])
    picture = instances.draw(tmp_path / "a.png")
    assert (np.asarray(Image.open(tmp_path / "a.png")) == picture).all()
    instances.draw(str(tmp_path / "a.JPG"))
    assert np.abs(np.asarray(Image.open(tmp_path / "a.JPG")).astype(int) - picture).mean() < 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.JPG", "a.png"]


def test_mistakes_are_named(tmp_path):
    instances = found([[200, 200, 400, 400]], [0.9])
    with pytest.raises(UserError, match=r"a\.tga: expected a picture ending in .*, got '\.tga'"):
        instances.draw(tmp_path / "a.tga")
    with pytest.raises(UserError, match=r"folder .*none does not exist"):
        instances.draw(tmp_path / "none" / "a.png")
    assert list(tmp_path.iterdir()) == []
    instances.image = None
    with pytest.raises(UserError, match="carry no picture"):
        instances.draw()
    instances.image = np.zeros((5, 5, 3), np.uint8)
    with pytest.raises(UserError, match=r"size \(480, 640\), got \(5, 5\)"):
        instances.draw()


def test_the_picture_is_read_from_its_file(tmp_path):
    Image.new("L", (640, 480), 100).save(tmp_path / "grey.png")
    picture = found([[200, 200, 400, 400]], [0.9], image=tmp_path / "grey.png").draw()
    assert (picture == found([[200, 200, 400, 400]], [0.9]).draw()).all()


def test_ground_truth_is_drawn_from_polygons_and_bitmaps():
    image = np.full((480, 640, 3), 100, np.uint8)
    square = [[200.0, 200.0, 400.0, 200.0, 400.0, 400.0, 200.0, 400.0]]
    truth = GroundTruth(
        torch.tensor([[200.0, 200, 400, 400]]),
        torch.tensor([1]),
        InstanceMasks.from_coco([square], (480, 640)),
    )
    picture = truth.draw(image, ("cat", "dog"))
    assert changed(picture)[210:390, 210:390].all()
    assert not changed(picture)[420:].any()
    empty = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert (empty.draw(image) == image).all()


def test_side_by_side_keeps_every_pixel():
    left, right = np.full((100, 50, 3), 10, np.uint8), np.full((80, 70, 3), 20, np.uint8)
    sheet = side_by_side([left, right], ["truth", "found"])
    assert (sheet == 10).all(2).sum() == 100 * 50
    assert (sheet == 20).all(2).sum() == 80 * 70
    assert sheet.shape[0] > 100
    assert side_by_side([left, right]).shape[0] == 100


def test_save_picture_takes_any_picture(tmp_path):
    save_picture(np.zeros((3, 4, 3), np.uint8), tmp_path / "x.jpeg")
    with Image.open(tmp_path / "x.jpeg") as picture:
        assert picture.size == (4, 3)


def test_key_points_are_joined_by_the_skeleton():
    boxes = torch.tensor([[100.0, 100, 300, 400], [350, 100, 550, 400]])
    points = torch.tensor([[[150.0, 150, 0.9], [250, 150, 0.9], [200, 350, 0.01]]] * 2)
    points[1, :, 0] += 250
    instances = Instances(
        (480, 640),
        boxes,
        torch.tensor([0.9, 0.2]),
        torch.tensor([0, 0]),
        keypoints=points,
        class_names=("person",),
        image=np.full((480, 640, 3), 100, np.uint8),
        skeleton=((0, 1), (1, 2)),
    )
    picture = instances.draw()
    assert (picture[150, 150] == 255).all()
    assert (picture[150, 250] == 255).all()
    assert changed(picture)[150, 160:240].all()  # a limb
    assert not changed(picture)[340:360, 190:210].any()  # the model does not know where this point is
    assert not changed(picture)[160:340, 210:240].any()
    assert not changed(picture)[:, 320:].any()  # below the threshold of scores
    truth = GroundTruth(
        boxes[:1], torch.tensor([0]), keypoints=torch.tensor([[[150, 150, 1.0], [250, 150, 0]]])
    )
    drawn = truth.draw(np.full((480, 640, 3), 100, np.uint8), ("person",), ((0, 1),))
    assert (drawn[150, 150] == 255).all()
    assert not changed(drawn)[140:160, 170:270].any()
