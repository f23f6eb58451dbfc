"""Every public entry of Python takes what people have at hand, and tells the rest in one line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import maskrcnn
from maskrcnn.config import TTAConfig
from maskrcnn.errors import UserError, UserIndexError
from maskrcnn.masks import PredictedMasks
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.structures import GroundTruth, ImageBatch, Instances
from maskrcnn.visualize import save_picture

PIXELS = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    torch.manual_seed(0)
    model = maskrcnn.build("mask_rcnn_R_50_FPN_1x", num_classes=3, tiny=True).eval()
    model.config.input.min_size, model.config.input.max_size = 64, 128
    return model


@pytest.fixture
def instances() -> Instances:
    boxes = torch.tensor([[0.0, 0, 20, 20], [5, 5, 30, 40], [10, 0, 60, 30]])
    masks = PredictedMasks(torch.rand(3, 28, 28), boxes, (48, 64))
    return Instances(
        (48, 64), boxes, torch.tensor([0.9, 0.8, 0.3]), torch.tensor([0, 2, 1]), masks, image=PIXELS
    )


class TestPredict:
    def test_every_kind_of_picture_gives_the_same(self, model, tmp_path):
        path = tmp_path / "a.png"
        Image.fromarray(PIXELS).save(path)
        expected = model.predict(PIXELS, score_threshold=0.0)
        assert len(expected)
        with open(path, "rb") as file:
            kinds = [
                path,
                str(path),
                file,
                io.BytesIO(path.read_bytes()),
                Image.open(path),
                Image.fromarray(PIXELS),
            ]
            found = model.predict(kinds, score_threshold=0.0)
        for one in found:
            assert torch.equal(one.boxes, expected.boxes)
            assert torch.equal(one.scores, expected.scores)
            assert one.draw().shape == expected.draw().shape  # each still has its picture
        assert isinstance(model.predict(kinds[4]), Instances)
        assert isinstance(model.predict((PIXELS,)), list)
        assert isinstance(model.predict(p for p in [path]), list)
        assert model.predict([]) == []

    def test_a_pillow_image_keeps_its_pixels_and_its_transparency(self, model):
        turned = Image.fromarray(PIXELS).quantize(16)
        turned.getexif()[0x0112] = 6
        turned.info["transparency"] = 3
        assert model.predict(turned).image_size == (48, 64)
        assert turned.info["transparency"] == 3
        assert model.predict(Image.fromarray(PIXELS[..., 0])).image_size == (48, 64)

    @pytest.mark.parametrize(
        ("given", "why"),
        [
            (None, "got NoneType"),
            (5, "got int"),
            (b"\xff\xd8\xff", r"got bytes\. Give io\.BytesIO"),
            (torch.zeros(3, 48, 64, dtype=torch.uint8), r"got Tensor\. Give tensor\.permute"),
            ({"a.png": 1}, "got dict"),
            ({"a.png"}, "got set"),
            (np.zeros((48, 64), np.uint8), r"got \(48, 64\) uint8"),
            (np.zeros((48, 64, 3)), "float64"),
            (np.zeros((2, 48, 64, 3), np.uint8), r"\(2, 48, 64, 3\)"),
            (np.zeros((0, 64, 3), np.uint8), r"\(0, 64, 3\)"),
            ([PIXELS, None], r"predict: images\[1\]: expected .* got NoneType"),
            ([[PIXELS]], r"predict: images\[0\]: expected .* got list"),
            (Image.fromarray(PIXELS[..., 0]).convert("F"), "its pixels are floats"),
            (io.StringIO("text"), "opened as text"),
            (io.BytesIO(b"text"), "not an image"),
            ("", "cannot read the image"),
            (Path("/"), "cannot read the image"),
        ],
    )
    def test_anything_else_is_one_line(self, model, given, why):
        with pytest.raises(UserError, match=why) as error:
            model.predict(given)
        assert "\n" not in str(error.value)
        assert not model.training

    @pytest.mark.parametrize(
        "options",
        [
            {"min_size": -5},
            {"min_size": 0},
            {"min_size": 64.5},
            {"max_size": "100"},
            {"max_size": True},
            {"score_threshold": 50},
            {"score_threshold": -0.1},
            {"score_threshold": float("nan")},
            {"score_threshold": "0.5"},
            {"tta": True},
            {"tta": TTAConfig(min_sizes=())},
            {"tta": TTAConfig(min_sizes=(0,))},
            {"tta": TTAConfig(min_sizes=(64,)), "min_size": 64},
        ],
    )
    def test_odd_options_are_one_line(self, model, options):
        with pytest.raises(UserError, match=r"^predict: "):
            model.predict(PIXELS, **options)

    def test_numpy_numbers_are_numbers(self, model):
        found = model.predict(PIXELS, min_size=np.int64(64), score_threshold=np.float32(0.0))
        assert len(found)

    def test_a_failure_leaves_the_model_in_training(self, model, monkeypatch):
        model.train()
        monkeypatch.setattr(type(model), "detect", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.predict(PIXELS)
        assert model.training
        model.eval()


class TestIndex:
    @pytest.mark.parametrize("array", ["instances", "masks"])
    @pytest.mark.parametrize(
        ("index", "numbers"),
        [
            ([], []),
            ((), []),
            (np.array([]), []),
            (slice(None, None, -1), [2, 1, 0]),
            (slice(5, 9), []),
            ([2, 0, 2], [2, 0, 2]),
            ([-1], [2]),
            (np.array([1, 2], np.uint8), [1, 2]),
            (torch.tensor([True, False, True]), [0, 2]),
            ([False, True, False], [1]),
            (range(2), [0, 1]),
        ],
    )
    def test_indices_as_people_write_them(self, instances, array, index, numbers):
        chosen = (instances if array == "instances" else instances.masks)[index]
        assert torch.equal(chosen.boxes, instances.boxes[numbers])
        assert len(np.asarray(chosen if array == "masks" else chosen.masks)) == len(numbers)

    @pytest.mark.parametrize("number", [1, -2, np.int64(1), np.uint8(1), torch.tensor(1)])
    def test_a_number_keeps_the_dimension(self, instances, number):
        one = instances[number]
        assert one.boxes.tolist() == [[5, 5, 30, 40]]
        assert len(one) == len(one.masks) == 1

    @pytest.mark.parametrize(
        "index",
        [None, "0", True, 1.0, [0.5], [[0, 1]], {}, [None], [True], torch.zeros(2, 2), slice(0, 2, 0), b"0"],
    )
    def test_anything_else_is_one_line(self, instances, index):
        if index == {}:
            assert len(instances[index]) == 0  # an empty collection chooses nothing
            return
        for array, name in ((instances, "instances"), (instances.masks, "masks")):
            with pytest.raises(UserError, match=rf"^{name}\[\.\.\.\]: expected "):
                array[index]

    @pytest.mark.parametrize("index", [3, -4, [0, 3], 10**30])
    def test_beyond_the_end_is_an_index_error(self, instances, index):
        kind = UserIndexError if index != 10**30 else UserError
        for array in (instances, instances.masks):
            with pytest.raises(kind):
                array[index]

    def test_they_are_walked_through(self, instances):
        assert [one.scores.item() for one in reversed(list(instances))] == pytest.approx([0.3, 0.8, 0.9])
        assert len(list(reversed(instances))) == 3
        assert len(instances[[]].to_coco()) == 0


class TestEquality:
    def test_what_holds_tensors_is_equal_to_itself_alone(self, instances):
        truth = GroundTruth(torch.zeros(2, 4), torch.zeros(2))
        batch = ImageBatch(torch.zeros(2, 3, 8, 8), [(8, 8)] * 2, [(8, 8)] * 2)
        for thing in (instances, instances.masks, truth, batch):
            other = thing[:] if thing in (instances, instances.masks) else None  # pyright: ignore[reportIndexIssue]
            assert thing == thing
            assert thing != other
            assert thing in [other, thing]
            assert len({thing, thing}) == 1


class TestToCoco:
    @pytest.mark.parametrize("ids", [np.array([7, 8, 9]), [7, 8, 9], torch.tensor([7, 8, 9]), range(7, 10)])
    def test_ids_come_in_any_sequence(self, instances, ids):
        entries = instances.to_coco(np.int64(1), ids)
        assert [e["category_id"] for e in json.loads(json.dumps(entries))] == [7, 9, 8]
        assert entries[0]["image_id"] == 1

    @pytest.mark.parametrize(
        "arguments", [(1, [7, 8]), (1, "789"), (1, 5), (1, [7, 8.5, 9]), (1, None), (None,), ([1],), (1.5,)]
    )
    def test_anything_else_is_one_line(self, instances, arguments):
        with pytest.raises(UserError, match=r"^(category_ids|image_id)"):
            instances.to_coco(*arguments)


class TestDraw:
    @pytest.mark.parametrize("options", [{"score_threshold": 50}, {"score_threshold": None}, {"path": 5}])
    def test_odd_options_are_one_line(self, instances, options):
        with pytest.raises(UserError, match=r"^draw: "):
            instances.draw(**options)

    @pytest.mark.parametrize("image", [5, b"x", np.zeros((48, 64)), torch.zeros(3, 48, 64), "none.png"])
    def test_odd_pictures_are_one_line(self, instances, image):
        instances.image = image
        with pytest.raises(UserError):
            instances.draw()

    def test_a_pillow_image_is_a_picture(self, instances):
        instances.image = Image.fromarray(PIXELS)
        assert instances.draw().ndim == 3

    @pytest.mark.parametrize("pixels", [None, np.zeros((4, 4)), np.zeros((0, 4, 3), np.uint8)])
    def test_only_pictures_are_saved(self, tmp_path, pixels):
        with pytest.raises(UserError, match="picture: expected an"):
            save_picture(pixels, tmp_path / "a.png")


class TestByName:
    @pytest.mark.parametrize(
        "name", [None, 5, "", b"x", ["mask_rcnn_R_50_FPN_1x"], "no such model", "x" * 10**5, "a\0b"]
    )
    def test_odd_names_are_one_line(self, name):
        for function in (maskrcnn.build, maskrcnn.load):
            with pytest.raises(UserError) as error:
                function(name)
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize("count", [0, -1, 2.5, "3", True, 10**9])
    def test_odd_numbers_of_classes_are_one_line(self, count):
        with pytest.raises(UserError, match="num_classes: expected a whole number from 1 to 100000, got"):
            maskrcnn.build("mask_rcnn_R_50_FPN_1x", count, tiny=True)

    @pytest.mark.parametrize(
        "options",
        [{"weights": 5}, {"device": 5}, {"device": "gpu"}, {"precision": ["fp32"]}, {"device": "cpu:x"}],
    )
    def test_odd_options_are_one_line(self, options):
        with pytest.raises(UserError):
            maskrcnn.load("mask_rcnn_R_50_FPN_1x", **options)
