"""COCO JSON in: what is read, what it costs other processes, and where the files are found."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn.data import coco, coco_arrays, find_coco, read_coco, read_data
from maskrcnn.data.json_stream import JsonStream
from maskrcnn.errors import UserError
from maskrcnn.masks import rle_encode


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))


BITMAP = np.zeros((20, 30), np.uint8)
BITMAP[5:9, 10:16] = 1


def small() -> dict[str, Any]:
    """Three images: one with a polygon, a compressed and an uncompressed RLE, one empty, one with a crowd."""
    uncompressed = {"size": [20, 30], "counts": [205, 4, 16, 4, 16, 4, 16, 4, 16, 4, 16, 4, 291]}
    return {
        "info": {"year": 2026},
        "annotations": [
            {"id": 7, "image_id": 30, "category_id": 90, "bbox": [2, 3, 10, 8], "iscrowd": 0, "area": 80.0,
             "segmentation": [[2, 3, 12, 3, 12, 11, 2, 11], [2.5, 3, 4, 3, 4, 5]]},
            {"id": 8, "image_id": 10, "category_id": 5, "bbox": [10, 5, 6, 4], "iscrowd": 1,
             "segmentation": rle_encode(BITMAP)},
            {"image_id": 30, "category_id": 5, "bbox": [10, 5, 6, 4], "segmentation": rle_encode(BITMAP)},
            {"id": 9, "image_id": 30, "category_id": 5, "bbox": [10, 5, 6, 4], "segmentation": uncompressed},
        ],
        "images": [
            {"id": 30, "file_name": "a.png", "height": 20, "width": 30},
            {"id": 20, "file_name": "sub/ö.png", "height": 40, "width": 50},
            {"id": 10, "file_name": "c.png", "height": 20, "width": 30},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 5, "name": "airplane"}],
    }  # fmt: skip


def write(folder: Path, content: Any, name: str = "train.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_labels_rank_the_category_ids(tmp_path: Path) -> None:
    data = read_coco(write(tmp_path, small()))
    assert data.category_ids == (5, 90)
    assert data.class_names == ("airplane", "toothbrush")
    assert data.ground_truth(0).labels.tolist() == [1, 0, 0]


def test_images_keep_the_order_ids_and_sizes_of_the_json(tmp_path: Path) -> None:
    data = read_coco(write(tmp_path, small()), tmp_path / "pictures")
    assert data.num_images == len(data) == 3
    assert data.image_ids.tolist() == [30, 20, 10]
    assert data.sizes.tolist() == [[20, 30], [40, 50], [20, 30]]
    assert data.image_path(1) == tmp_path / "pictures" / "sub" / "ö.png"
    assert data.num_objects.tolist() == [3, 0, 0]


def test_ground_truth_has_boxes_and_the_masks_of_all_three_forms(tmp_path: Path) -> None:
    truth = read_coco(write(tmp_path, small())).ground_truth(0)
    assert truth.boxes.tolist() == [[2, 3, 12, 11], [10, 5, 16, 9], [10, 5, 16, 9]]
    assert truth.image_id == 30
    masks = truth.masks
    assert masks is not None
    bitmaps = masks.to_bitmaps((20, 30))
    assert bitmaps[0].sum() == 80
    assert bitmaps[0, 3:11, 2:12].all()
    np.testing.assert_array_equal(bitmaps[1], BITMAP)
    np.testing.assert_array_equal(bitmaps[2], BITMAP)


def test_crowds_are_apart_from_objects(tmp_path: Path) -> None:
    data = read_coco(write(tmp_path, small()))
    assert len(data.ground_truth(2)) == 0
    crowd = data.crowd(2)
    assert crowd.boxes.tolist() == [[10, 5, 16, 9]]
    assert crowd.masks is not None
    np.testing.assert_array_equal(crowd.masks.to_bitmaps((20, 30))[0], BITMAP)


def test_classes_of_images_are_those_of_their_objects(tmp_path: Path) -> None:
    """Image 0 has both classes, one of them twice; the crowd of image 2 is no object."""
    data = read_coco(write(tmp_path, small()), tmp_path)
    assert data.classes_of_images().tolist() == [[0, 0], [0, 1]]
    assert data.subset([1, 0]).classes_of_images().tolist() == [[1, 0], [1, 1]]
    assert data.subset([1, 2]).classes_of_images().shape == (0, 2)


def test_an_image_without_a_name_has_that_of_its_address(tmp_path: Path) -> None:
    content = small()
    del content["images"][0]["file_name"]
    content["images"][0]["coco_url"] = "http://images.cocodataset.org/val2017/000000397133.jpg"
    assert read_coco(write(tmp_path, content), tmp_path).file_name(0) == "val2017/000000397133.jpg"


def test_an_empty_image_has_empty_ground_truth(tmp_path: Path) -> None:
    truth = read_coco(write(tmp_path, small())).ground_truth(1)
    assert truth.boxes.shape == (0, 4)
    assert truth.masks is not None
    assert len(truth.masks) == 0


def test_text_image_ids(tmp_path: Path) -> None:
    content = small()
    for entry in content["images"]:
        entry["id"] = f"image-{entry['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"image-{entry['image_id']}"
    data = read_coco(write(tmp_path, content))
    assert data.image_ids.tolist() == ["image-30", "image-20", "image-10"]
    assert data.num_objects.tolist() == [3, 0, 0]
    assert data.ground_truth(0).image_id == "image-30"


def test_keypoints_are_at_pixel_centres(tmp_path: Path) -> None:
    content = small()
    content["annotations"][0]["keypoints"] = [3, 4, 2, 0, 0, 0]
    points = read_coco(write(tmp_path, content)).keypoints(0)
    assert points.shape == (3, 2, 3)
    assert points[0].tolist() == [[3.5, 4.5, 2.0], [0.5, 0.5, 0.0]]


def test_a_subset_keeps_the_chosen_images_in_order(tmp_path: Path) -> None:
    data = read_coco(write(tmp_path, small())).subset([2, 0])
    assert data.image_ids.tolist() == [10, 30]
    assert len(data.ground_truth(1)) == 3
    assert data.num_objects.tolist() == [0, 3]
    assert data.subset(np.array([False, True])).file_name(0) == "a.png"


# --- sharing ---------------------------------------------------------------------------------------------------


def _first_object(data: coco.CocoData, queue: Any) -> None:
    queue.put((data.ground_truth(0).boxes.tolist(), str(data.arrays.path)))


@pytest.fixture
def shared_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> coco.CocoData:
    monkeypatch.setattr(coco, "SHARE_FROM_BYTES", 0)
    return read_coco(write(tmp_path, small()))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_processes_map_the_same_file(shared_set: coco.CocoData, method: str) -> None:
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    data = shared_set.patched((("boxes", np.array([0]), np.array([[1, 2, 3, 4]], np.float32)),))
    process = context.Process(target=_first_object, args=(data, queue))  # pyright: ignore[reportAttributeAccessIssue]
    process.start()
    boxes, path = queue.get(timeout=120)
    process.join()
    assert boxes == [[1, 2, 3, 4], [10, 5, 16, 9], [10, 5, 16, 9]]
    assert path == str(shared_set.arrays.path)


def test_what_is_sent_to_a_process_does_not_grow_with_the_set(
    tmp_path: Path, shared_set: coco.CocoData
) -> None:
    content = small()
    content["annotations"] *= 500
    large = read_coco(write(tmp_path, content, "large.json"))
    assert large.arrays.nbytes > 50 * shared_set.arrays.nbytes
    assert len(pickle.dumps(large)) < len(pickle.dumps(shared_set)) + 10
    assert pickle.loads(pickle.dumps(large)).ground_truth(0).boxes.shape == (1500, 4)


def test_the_second_reading_does_not_parse(
    shared_set: coco.CocoData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco.coco_arrays, "parse", lambda path: pytest.fail("parsed again"))
    again = read_coco(shared_set.json_path)
    assert again.class_names == shared_set.class_names
    for name, array in shared_set.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])


def test_a_changed_json_is_read_anew(shared_set: coco.CocoData) -> None:
    content = small()
    content["categories"][0]["name"] = "brush"
    write(shared_set.json_path.parent, content)
    assert read_coco(shared_set.json_path).class_names == ("airplane", "brush")
    assert shared_set.ground_truth(0).boxes[0].tolist() == [2, 3, 12, 11]  # the old file is still mapped


@pytest.mark.parametrize("damage", [b"", b"not ours", None])
def test_a_damaged_cache_is_made_anew(shared_set: coco.CocoData, damage: bytes | None) -> None:
    cache = shared_set.arrays.path
    assert cache is not None
    whole = cache.read_bytes()
    cache.unlink()  # `shared_set` has it mapped
    cache.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert len(read_coco(shared_set.json_path).ground_truth(0)) == 3
    assert cache.read_bytes() == whole


def test_patches_stay_in_their_own_set(shared_set: coco.CocoData) -> None:
    first = shared_set.patched((("keep", np.array([0]), np.array([False])),))
    second = first.patched((("keep", np.array([2]), np.array([False])),))
    assert [d.num_objects[0] for d in (shared_set, first, second)] == [3, 2, 1]
    assert pickle.loads(pickle.dumps(second)).num_objects[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        shared_set.arrays["boxes"][0] = 0


def test_without_a_writable_cache_the_arrays_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco, "SHARE_FROM_BYTES", 0)
    monkeypatch.setenv("MASKRCNN_CACHE", str(write(tmp_path, "a file", "in_the_way")))
    data = read_coco(write(tmp_path, small()))
    assert data.arrays.path is None
    assert len(pickle.loads(pickle.dumps(data)).ground_truth(0)) == 3


# --- reading JSON ----------------------------------------------------------------------------------------------


def test_the_stream_reads_what_json_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {
        "n": -12.5e3,
        "text": 'a"]}\\ ö',
        "empty": [],
        "x": [{"a": [1, {"b": None}]}, 12345, "s"],
        "last": 7,
    }
    path = write(tmp_path, "\ufeff " + json.dumps(content, indent=1) + "\n")
    for chunk in (1, 2, 7, 1000):
        monkeypatch.setattr("maskrcnn.data.json_stream._CHUNK", chunk)
        stream = JsonStream(path, ("x", "empty"))
        assert list(stream) == [("x", e) for e in content["x"]]
        assert stream.seen == list(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a COCO JSON object"),
        ("[]", "a list (a results file?)"),
        ('{"images": [{"id": 1}', "the file ends there"),
        ('{"images": [}', "not valid JSON: Expecting value at character 12"),
        ('{"images": [], "categories": []} x', "text after the end"),
        ('{"images": []}', "got images."),
        ('{"images": [3], "categories": []}', "images[0]: expected an object, got int"),
        ('{"images": [{"file_name": "a"}], "categories": []}', "images[0]: expected an id"),
        (
            '{"images": [{"id": 1}, {"id": "1"}], "categories": []}',
            "images[1]: its id '1' is text among numbers",
        ),
        (
            '{"images": [], "categories": [{"id": "x"}]}',
            "categories[0]: expected an object with a whole number",
        ),
        ('{"images": [], "categories": [{"id": 1, "name": "cat"}, {"id": 1}]}', "id 1 is taken by 'cat'"),
        (
            '{"images": [], "categories": [], "annotations": ["a"]}',
            "annotations[0]: expected an object, got str",
        ),
    ],
)
def test_a_json_that_is_not_coco_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_coco(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_a_folder_and_bytes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_coco(tmp_path / "none.json")
    with pytest.raises(UserError, match="got a folder"):
        read_coco(tmp_path)
    (tmp_path / "picture.json").write_bytes(b"\x89PNG\xff")
    with pytest.raises(UserError, match="not a JSON text file"):
        read_coco(tmp_path / "picture.json")


# --- finding ---------------------------------------------------------------------------------------------------


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20)).save(path)


def test_annotations_folder_with_train_and_val(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        write(tmp_path / "annotations", small(), f"instances_{split}.json")
        write(tmp_path / "annotations", small(), f"person_keypoints_{split}.json")
        write(tmp_path / "annotations", {"licence": 1}, f"notes_{split}.json")
        picture(tmp_path / split / "a.png")
    found = find_coco(tmp_path)
    assert found.train[:2] == (tmp_path / "annotations/instances_train2017.json", tmp_path / "train2017")
    assert found.val is not None
    assert found.val[:2] == (tmp_path / "annotations/instances_val2017.json", tmp_path / "val2017")


def test_json_in_the_folder_of_its_images(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write(tmp_path / split, small(), "_annotations.coco.json")
        picture(tmp_path / split / "a.png")
    found = find_coco(tmp_path)
    assert found.train[:2] == (tmp_path / "train" / "_annotations.coco.json", tmp_path / "train")
    assert found.val is not None
    assert found.val[:2] == (tmp_path / "valid" / "_annotations.coco.json", tmp_path / "valid")


def test_a_single_json_of_any_name_with_images_given(tmp_path: Path) -> None:
    path = write(tmp_path / "labels", small(), "export.json")
    picture(tmp_path / "elsewhere" / "deep" / "a.png")
    images = tmp_path / "elsewhere" / "deep"
    for where in (tmp_path, path):
        found = find_coco(where, images)
        assert found.train[:2] == (path, images)
        assert found.val is None


def test_images_are_found_though_the_first_ones_are_missing(tmp_path: Path) -> None:
    content = small()
    content["images"] = [{**content["images"][0], "id": k, "file_name": f"{k}.png"} for k in range(40)]
    path = write(tmp_path / "annotations", content)
    picture(tmp_path / "images" / "39.png")
    assert find_coco(tmp_path).train[:2] == (path, tmp_path / "images")


def test_what_cannot_be_found_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        find_coco(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no COCO JSON in it"):
        find_coco(tmp_path)
    path = write(tmp_path, small(), "one.json")
    with pytest.raises(UserError, match=r"its images \(the first is 'a.png'\) are not in"):
        find_coco(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        find_coco(tmp_path, path)
    write(tmp_path, small(), "two.json")
    with pytest.raises(UserError, match=r"with 'train' in its name, found one.json, two.json"):
        find_coco(tmp_path)


# --- real sets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "train", "val"),
    [("nuclei", (476, 20340, 1), (94, 4481, 1)), ("coco", (209, 1881, 80), (106, 963, 80)),
     ("coco_fruits", (18, 165, 3), None)],
)  # fmt: skip
def test_real_sets_are_found_and_read(shared: Path, folder: str, train: tuple, val: tuple | None) -> None:
    found = find_coco(shared / "data" / folder)
    for source, expected in zip(found, (train, val), strict=True):
        assert (source is None) == (expected is None)
        if source is not None:
            data = read_data(source)
            assert (data.num_images, data.num_objects.sum(), len(data.class_names)) == expected
            assert all(data.image_path(i).is_file() for i in range(data.num_images))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools
def test_ground_truth_equals_pycocotools_on_real_images(shared: Path) -> None:
    from pycocotools.coco import COCO

    source = find_coco(shared / "data" / "coco").val
    assert source is not None
    data, oracle = read_data(source), COCO(str(source.labels))
    for i in range(0, data.num_images, 3):
        objects = oracle.loadAnns(oracle.getAnnIds(imgIds=[data.image_ids[i]], iscrowd=False))
        truth = data.ground_truth(i)
        assert truth.masks is not None
        assert [data.category_ids[k] for k in truth.labels] == [o["category_id"] for o in objects]
        boxes = np.array([o["bbox"] for o in objects]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(truth.boxes.numpy(), boxes, atol=1e-4)
        bitmaps = truth.masks.to_bitmaps(tuple(data.sizes[i].tolist()))
        for bitmap, o in zip(bitmaps, objects, strict=True):
            np.testing.assert_array_equal(bitmap, oracle.annToMask(o))


CATEGORIES = [{"id": 3, "name": "cat"}, {"id": "5", "name": "dog"}, {"id": 9}]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"images": [{"id": 1}], "annotations": "nonsense", "categories": CATEGORIES}),
        json.dumps({"categories": CATEGORIES, "images": []}, indent=1),
        json.dumps(
            {"info": {"categories": 1}, "categories": CATEGORIES, "images": []}
        ),  # the name is written twice
        json.dumps({"images": [], "categories": CATEGORIES}).encode("utf-16"),
    ],
    ids=["last", "first", "twice", "UTF-16"],
)
def test_categories_are_read_without_the_rest(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    assert coco_arrays.read_categories(path) == ([3, 5, 9], ["cat", "dog", "9"])


@pytest.mark.parametrize(
    "text", ["", "[]", '{"images": []}', '{"categories": [3]}', '{"categories": [{"id": 1}']
)
def test_broken_categories_are_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(path))):
        coco_arrays.read_categories(path)
