"""Each kind of defect is found, named by its ids, and repaired as its rule says or refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn.data import Report, checked, find_coco, read_coco, read_data
from maskrcnn.data.coco import CocoData
from maskrcnn.data.mask_extents import FLAT, NOT_FINITE, ODD, SHORT, SOUND, measure_rings
from maskrcnn.data.quality.check import check
from maskrcnn.data.quality.defects import RULES
from maskrcnn.errors import UserError
from maskrcnn.masks import rle_encode

SQUARE = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]
BITMAP = np.zeros((20, 30), np.uint8)
BITMAP[2:8, 2:8] = 1
Change = Callable[[dict[str, Any]], None]


def sound() -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in (1, 2, 3)],
        "annotations": [
            {"id": 10 + i, "image_id": i, "category_id": 4, "bbox": [2, 2, 6, 6], "segmentation": SQUARE}
            for i in (1, 2)
        ],
        "categories": [{"id": 4, "name": "cell"}],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in (1, 2, 3):
        Image.new("RGB", (30, 20)).save(tmp_path / f"{i}.png")
    return tmp_path


def data_of(folder: Path, content: dict[str, Any]) -> CocoData:
    (folder / "train.json").write_text(json.dumps(content))
    return read_coco(folder / "train.json")


def changed(change: Change) -> dict[str, Any]:
    content = copy.deepcopy(sound())
    change(content)
    return content


def annotation(**fields: Any) -> Change:
    """Change the first annotation; a field that is given as ... goes."""

    def change(content: dict[str, Any]) -> None:
        target = content["annotations"][0]
        target.update(fields)
        for name in [n for n, v in fields.items() if v is ...]:
            del target[name]

    return change


def image(**fields: Any) -> Change:
    """Change the first image; a field that is given as ... goes."""

    def change(content: dict[str, Any]) -> None:
        content["images"][0] = {k: v for k, v in {**content["images"][0], **fields}.items() if v is not ...}

    return change


def more_annotations(**fields: Any) -> Change:
    return lambda content: content["annotations"].append({**content["annotations"][0], **fields})


def more_images(**fields: Any) -> Change:
    return lambda content: content["images"].append({**content["images"][0], **fields})


def short_rle() -> dict[str, Any]:
    rle = rle_encode(BITMAP)
    return {"size": rle["size"], "counts": rle["counts"][:-2]}


def test_a_sound_set_has_no_findings(folder: Path) -> None:
    data = data_of(folder, sound())
    report = check(data)
    assert len(report) == 0
    assert report.summary() == "no defects"
    repaired, _ = checked(data, "refuse")
    assert repaired.num_objects.tolist() == [1, 1, 0]


# change, the kinds found, annotation or image named, part of the message, objects a image that are left
OBJECT_DEFECTS = {
    "beyond the right edge": (annotation(bbox=[2, 2, 40, 6], segmentation=[[2, 2, 29, 2, 29, 8, 2, 8]]),
                              "box_outside", "[2, 2, 40, 6] reaches outside the image of 30 x 20", [1, 1, 0]),
    "outside": (annotation(bbox=[50, 2, 6, 6]), "zero_area", "[50, 2, 6, 6] has no area in the image", [0, 1, 0]),
    "no width": (annotation(bbox=[2, 2, 0, 6]), "zero_area", "[2, 2, 0, 6] has no area", [0, 1, 0]),
    "negative": (annotation(bbox=[8, 8, -6, -6]), "zero_area", "has no area", [0, 1, 0]),
    "no box": (annotation(bbox=...), "box_absent", "missing", [1, 1, 0]),
    "three numbers": (annotation(bbox=[1, 2, 3]), "box_absent", "not four finite numbers", [1, 1, 0]),
    "text": (annotation(bbox=[1, 2, 3, "4"]), "box_absent", "not four finite numbers", [1, 1, 0]),
    "infinite": (annotation(bbox=[1, 2, 3, float("inf")]), "box_absent", "not four finite", [1, 1, 0]),
    "elsewhere": (annotation(bbox=[20, 10, 6, 6]), "box_differs", "which has [2, 2, 6, 6]", [1, 1, 0]),
    "category": (annotation(category_id=5), "unknown_category", "category_id 5 is not among", [0, 1, 0]),
    "no category": (annotation(category_id=...), "unknown_category", "category_id None", [0, 1, 0]),
    "no mask": (annotation(segmentation=...), "mask_absent", "no segmentation", [0, 1, 0]),
    "empty mask": (annotation(segmentation=[]), "mask_absent", "no segmentation", [0, 1, 0]),
    "mask of text": (annotation(segmentation="x"), "mask_unreadable", "neither", [0, 1, 0]),
    "ring of text": (annotation(segmentation=[["x"]]), "mask_unreadable", "neither", [0, 1, 0]),
    "counts do not add up": (annotation(segmentation={"size": [20, 30], "counts": [5, 5]}),
                             "mask_unreadable", "adds up", [0, 1, 0]),
    "two points": (annotation(segmentation=[[1, 2, 3, 4]]), "polygon_broken", "polygon 0 has fewer", [0, 1, 0]),
    "pairs": (annotation(segmentation=[[2, 2]]), "polygon_broken", "a list of pairs", [0, 1, 0]),
    "odd": (annotation(segmentation=[[*SQUARE[0], 5.0]]), "polygon_broken", "an odd count", [0, 1, 0]),
    "not finite": (annotation(segmentation=[[float("nan"), *SQUARE[0][1:]]]), "polygon_broken", "finite", [0, 1, 0]),
    "a line": (annotation(segmentation=[[2, 2, 5, 5, 8, 8]]), "polygon_broken", "no area", [0, 1, 0]),
    "second polygon": (annotation(segmentation=[*SQUARE, [1, 1, 2, 2]]), "polygon_broken", "polygon 1", [1, 1, 0]),
    "polygon outside": (annotation(segmentation=[[40, 2, 48, 2, 48, 8]]), "zero_area", "its mask has no", [0, 1, 0]),
    "cut RLE": (annotation(segmentation=short_rle()), "rle_broken", "RLE", [0, 1, 0]),
    "characters": (annotation(segmentation={"size": [20, 30], "counts": "\x01~~"}), "rle_broken", "RLE", [0, 1, 0]),
    "RLE of another size": (annotation(segmentation=rle_encode(BITMAP.T)), "rle_broken", "[30, 20]", [0, 1, 0]),
    "empty RLE": (annotation(segmentation=rle_encode(0 * BITMAP)), "zero_area", "its mask has no", [0, 1, 0]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "kind", "message", "left"), OBJECT_DEFECTS.values(), ids=OBJECT_DEFECTS.keys()
)
def test_a_broken_object_is_found_and_repaired(
    folder: Path, change: Change, kind: str, message: str, left: list[int]
) -> None:
    data = data_of(folder, changed(change))
    repaired, report = checked(data)
    (finding,) = report.findings()
    assert (finding.kind, finding.image_id, finding.annotation_id) == (kind, 1, 11)
    assert message in finding.message
    assert finding.rule == RULES[kind] != "refused"
    assert repaired.num_objects.tolist() == left
    assert len(check(repaired)) == len(report) or left[0] == 0 or kind.startswith("box")
    for i in range(repaired.num_images):
        truth = repaired.ground_truth(i)
        assert truth.masks is not None
        assert len(truth.masks) == len(truth.boxes) == left[i]
    with pytest.raises(UserError, match=rf"1 defect; the first is {kind}: image 1, annotation 11: "):
        checked(data, "refuse")


@pytest.mark.parametrize("name", ["no box", "elsewhere", "infinite"])
@pytest.mark.parametrize("mask", [SQUARE, rle_encode(BITMAP)], ids=["polygon", "RLE"])
def test_a_wrong_box_is_taken_from_the_mask(folder: Path, name: str, mask: Any) -> None:
    content = changed(OBJECT_DEFECTS[name][0])
    content["annotations"][0]["segmentation"] = mask
    repaired, _ = checked(data_of(folder, content))
    assert repaired.ground_truth(0).boxes.tolist() == [[2, 2, 8, 8]]
    assert len(check(repaired)) == 0


def test_boxes_are_clipped_and_rounding_is_no_defect(folder: Path) -> None:
    far = [[2, 2, 29, 2, 29, 8, 2, 8]]
    content = changed(annotation(bbox=[2, 2, 40, 6], segmentation=far))
    repaired, _ = checked(data_of(folder, content))
    assert repaired.ground_truth(0).boxes.tolist() == [[2, 2, 30, 8]]
    content = changed(annotation(bbox=[2, -0.5, 28.4, 8.5], segmentation=far))
    repaired, report = checked(data_of(folder, content))
    assert len(report) == 0
    assert repaired.ground_truth(0).boxes.tolist() == [[2, 0, 30, 8]]


def test_only_the_broken_polygon_is_left_out(folder: Path) -> None:
    content = changed(annotation(segmentation=[[1, 1, 2, 2], *SQUARE, [5, 5, 9]]))
    repaired, report = checked(data_of(folder, content))
    assert report.counts == {"polygon_broken": 2}
    masks = repaired.ground_truth(0).masks
    assert masks is not None
    np.testing.assert_array_equal(masks.to_bitmaps((20, 30))[0], BITMAP)


def test_ids_that_are_used_twice(folder: Path) -> None:
    repaired, report = checked(data_of(folder, changed(more_annotations())))
    assert report.counts == {"duplicate_annotation": 1}
    assert repaired.num_objects.tolist() == [1, 1, 0]
    other = more_annotations(bbox=[2, 2, 5, 6])
    repaired, report = checked(data_of(folder, changed(other)))
    assert [(f.kind, f.annotation_id) for f in report.findings()] == [("duplicate_annotation_id", 11)]
    assert repaired.num_objects.tolist() == [2, 1, 0]
    assert len(set(repaired.arrays["ids"].tolist())) == 3


def test_an_annotation_without_id_is_no_defect_but_can_be_named(folder: Path) -> None:
    data = data_of(folder, changed(annotation(id=..., bbox=[2, 2, 0, 0])))
    (finding,) = check(data).findings()
    assert finding.annotation_id is None
    assert finding.message.startswith("annotations[0], without an id: its bbox")


def test_annotations_of_unknown_images(folder: Path) -> None:
    change = more_annotations(id=99, image_id=7)
    repaired, report = checked(data_of(folder, changed(change)))
    (finding,) = report.findings()
    assert (finding.kind, finding.image_id, finding.annotation_id) == ("unknown_image", None, 99)
    assert "image_id 7 is not among the images" in finding.message
    assert repaired.num_objects.tolist() == [1, 1, 0]


IMAGE_DEFECTS = {
    "missing": (image(file_name="9.png"), "image_missing", "9.png", 1),
    "no name": (image(file_name=...), "image_missing", "no file name", 1),
    "corrupt": (image(file_name="train.json"), "image_unreadable", "not an image", 1),
    "another size": (image(width=31), "size_differs", "say (H, W) (20, 31), the file has (20, 30)", 1),
    "turned": (image(width=20, height=30), "size_differs", "EXIF", 1),
    "listed twice": (more_images(), "duplicate_image", "listed twice", 1),
    "file listed twice": (more_images(id=8), "duplicate_image", "1.png is the file of image 1 too", 8),
}


@pytest.mark.parametrize(
    ("change", "kind", "message", "image_id"), IMAGE_DEFECTS.values(), ids=IMAGE_DEFECTS.keys()
)
def test_a_broken_image_is_left_out(
    folder: Path, change: Change, kind: str, message: str, image_id: int
) -> None:
    content = changed(change)
    repaired, report = checked(data_of(folder, content))
    (finding,) = report.findings()
    assert (finding.kind, finding.image_id, finding.annotation_id) == (kind, image_id, None)
    assert message in finding.message
    assert repaired.num_images == len(content["images"]) - 1
    assert repaired.num_objects.sum() == (2 if kind == "duplicate_image" else 1)


def test_exif_orientation_counts(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 30)).save(folder / "1.jpg", exif=exif)  # read as 30 wide, 20 high
    assert len(check(data_of(folder, changed(image(file_name="1.jpg"))))) == 0


def test_a_size_that_the_json_lacks_comes_from_the_file(folder: Path) -> None:
    change = image(height=..., width=None)
    content = changed(change)
    content["annotations"][0]["bbox"] = [2, 2, 60, 6]
    repaired, report = checked(data_of(folder, content))
    assert report.counts == {"size_absent": 1, "box_outside": 1, "box_differs": 1}
    assert repaired.sizes.tolist() == [[20, 30]] * 3
    assert repaired.ground_truth(0).boxes.tolist() == [[2, 2, 8, 8]]


def no_annotations(content: dict[str, Any]) -> None:
    content["annotations"].clear()


def no_images(content: dict[str, Any]) -> None:
    content["images"].clear()


def split_image(content: dict[str, Any]) -> None:
    content["images"][1]["file_name"] = "1.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_annotations, "no_annotations: the labels have no annotations"),
        (no_images, "no_images: the labels list no images"),
        (split_image, "split_image: image 2: 1.png is the file of image 1 too"),
        (
            more_images(file_name="2.png"),
            "duplicate_image_id: image 1: its id stands for 1.png and for 2.png",
        ),
    ],
)
def test_what_has_no_repair_is_refused_in_one_line(folder: Path, change: Change, message: str) -> None:
    data = data_of(folder, changed(change))
    for on_error in ("repair", "refuse"):
        with pytest.raises(UserError) as error:
            checked(data, on_error)
        assert message in str(error.value)
        assert "maskrcnn doctor --limit 0" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_set_without_masks_is_refused(folder: Path) -> None:
    content = sound()
    for a in content["annotations"]:
        del a["segmentation"]
    with pytest.raises(
        UserError, match="no object to learn from is left after the checks: 2 mask_absent; the first"
    ):
        checked(data_of(folder, content))


def test_crowds_are_checked_but_are_nothing_to_learn_from(folder: Path) -> None:
    content = sound()
    for a in content["annotations"]:
        a["iscrowd"] = 1
    content["annotations"][1]["bbox"] = [2, 2, 0, 0]
    assert check(data_of(folder, content)).counts == {"crowds_only": 1, "zero_area": 1}
    with pytest.raises(UserError, match="no object to learn from"):
        checked(data_of(folder, content))


def test_the_report_lists_kinds_with_their_rules_and_a_few_findings(folder: Path) -> None:
    content = sound()
    for k in range(5):
        content["annotations"].append({**content["annotations"][0], "id": 50 + k, "bbox": [1, 1, 0, 0]})
    report = check(data_of(folder, content))
    lines = list(report.lines(limit=2))
    assert lines[0] == "zero_area: 5 (the object is left out)"
    assert lines[1].startswith("  image 1, annotation 50: its bbox [1, 1, 0, 0] has no area")
    assert lines[3] == "  ... and 3 more"
    assert len(list(report.lines())) == 6


def test_rings() -> None:
    rings: list[tuple[list[float], int]] = [
        ([0, 0, 4, 0, 4, 4], SOUND), ([], SHORT), ([0, 0, 4, 4, 4, 0, 0, 4], SOUND),  # a bow tie: no net area
        ([1, 2, 3], ODD), ([0, 0, 1, 1, 2, 2, 3, 3], FLAT), ([5, 5, 5, 5, 5, 5], FLAT),
        ([0, 0, np.inf, 0, 4, 4], NOT_FINITE), ([1e4, 1e4, 1e4 + 1, 1e4, 1e4, 1e4 + 1], SOUND), ([7, 7], SHORT),
    ]  # fmt: skip
    points = np.concatenate([np.array(r, np.float32) for r, _ in rings])
    problem, extents = measure_rings(points, np.cumsum([0, *(len(r) for r, _ in rings)]))
    assert problem.tolist() == [p for _, p in rings]
    assert extents[[0, 2, 7]].tolist() == [[0, 0, 4, 4], [0, 0, 4, 4], [1e4, 1e4, 1e4 + 1, 1e4 + 1]]
    assert np.isinf(extents[[1, 3, 4, 5, 6, 8]]).all()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_boxes_of_masks_are_those_of_their_pixels(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    bitmap = (rng.random((20, 30)) < rng.choice([0.005, 0.1, 0.9])).astype(np.uint8)
    bitmap[3, 4] = 1
    folder = tmp_path_factory.mktemp("set")
    content = changed(annotation(bbox=..., segmentation=rle_encode(bitmap)))
    repaired, _ = checked(data_of(folder, content), images=False)
    y, x = np.nonzero(bitmap)
    expected = [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert repaired.ground_truth(0).boxes[0].tolist() == expected


JUNK = st.sampled_from(
    [
        None,
        -1,
        0,
        1,
        2,
        1.5,
        1e300,
        10**400,
        float("nan"),
        "x",
        True,
        [],
        {},
        [1],
        [1e300] * 4,
        [[1, 2]],
        [[None] * 6],
    ]
)


@given(st.lists(st.tuples(st.sampled_from(["images", "annotations"]), st.integers(0, 1),
       st.sampled_from(["id", "image_id", "category_id", "bbox", "segmentation", "area", "iscrowd", "file_name",
                        "height", "width", "keypoints"]), JUNK), min_size=1, max_size=4))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_whatever_is_in_the_json_the_answer_is_a_usable_set_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, int, str, Any]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = copy.deepcopy(sound())
    for member, k, name, value in changes:
        content[member][k][name] = value
    error = None
    try:
        repaired, report = checked(data_of(folder, content), images=False)
    except UserError as e:
        error = str(e)
    if error is not None:
        assert "\n" not in error
        return
    assert isinstance(report, Report)  # pyright: ignore[reportPossiblyUnboundVariable]
    assert len(list(report.lines())) == len(report) + len(report.counts)
    for i in range(repaired.num_images):  # pyright: ignore[reportPossiblyUnboundVariable]
        truth = repaired.ground_truth(i)  # pyright: ignore[reportPossiblyUnboundVariable]
        assert truth.masks is not None
        assert (truth.boxes[:, 2:] > truth.boxes[:, :2]).all()
        truth.masks.to_bitmaps((20, 30))


@pytest.mark.parametrize("folder_name", ["nuclei", "coco", "coco_fruits"])
def test_real_sets_pass(shared: Path, folder_name: str) -> None:
    for source in find_coco(shared / "data" / folder_name):
        if source is not None:
            _, report = checked(read_data(source), "refuse")
            assert len(report) == 0
