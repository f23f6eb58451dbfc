"""COCO's numbers: pycocotools' own, on published results and on random ones; and what is wrong, in one line."""

from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskrcnn.errors import UserError
from maskrcnn.evaluation.scores import RECALL_LEVELS, evaluate_results
from maskrcnn.masks import rle_encode
from maskrcnn.masks.coco_api import backend
from maskrcnn.report.pr_curves import pr_curves_svg
from tests import coco_cases
from tests.coco_cases import pycocotools_numbers, random_case

BOX_NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
KEYPOINT_NAMES = ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]
HALF, ONE = pytest.approx(0.5, abs=1e-12), pytest.approx(1.0, abs=1e-12)  # COCO adds an epsilon below
BACKENDS = pytest.mark.parametrize("library", ["hotcoco", "pycocotools"])


@pytest.fixture(scope="module")
def coco_eval(shared: Path) -> dict[str, Any]:
    folder = shared / "data/coco_eval"
    names = {"data": "instances_val2014_100", "bbox": "instances_val2014_fakebbox100_results"}
    names["segm"] = "instances_val2014_fakesegm100_results"
    return {key: json.loads((folder / f"{name}.json").read_text()) for key, name in names.items()}


class TestNumbers:
    @BACKENDS
    @pytest.mark.parametrize(("kind", "ap"), [("bbox", 0.5045806987249628), ("segm", 0.3195452758576433)])
    def test_are_pycocotools_on_published_results(
        self, coco_eval: dict[str, Any], kind: str, ap: float, library: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MASKRCNN_COCO_BACKEND", library)
        scores = evaluate_results(coco_eval["data"], coco_eval[kind])
        assert list(scores.numbers) == [kind]
        assert list(scores.numbers[kind]) == BOX_NAMES
        assert scores.numbers[kind]["AP"] == pytest.approx(ap, abs=1e-10)
        expected = pycocotools_numbers(coco_eval["data"], coco_eval[kind], kind)
        assert list(scores.numbers[kind].values()) == pytest.approx(expected, abs=1e-10)

    @BACKENDS
    def test_of_key_points_are_pycocotools(
        self, shared: Path, library: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MASKRCNN_COCO_BACKEND", library)
        folder = shared / "data/keypoints_eval"
        pairs = [("example_coco_val", "example_coco_preds")]
        pairs += [("faster_coco_eval/gt_dataset", "faster_coco_eval/dt_dataset")]
        aps = []
        for data, results in pairs:
            truth, found = (json.loads((folder / f"{n}.json").read_text()) for n in (data, results))
            scores = evaluate_results(truth, found)
            assert list(scores.numbers["keypoints"]) == KEYPOINT_NAMES
            expected = pycocotools_numbers(truth, found, "keypoints")
            assert list(scores.numbers["keypoints"].values()) == pytest.approx(expected, abs=1e-10)
            aps.append(scores.numbers["keypoints"]["AP"])
        assert aps[0] == pytest.approx(0.8608896, abs=1e-7)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", coco_cases.KINDS)
    def test_are_pycocotools_to_the_last_bit_on_random_cases(self, kind: str) -> None:
        """Of the 1,000 cases a third is scored by each kind."""
        assert backend() == "hotcoco"
        first = 1000 * coco_cases.KINDS.index(kind) // 3
        said = Counter(coco_cases.outcome(kind, seed) for seed in range(first, first + 334))
        assert said == {"equal": 334}

    @pytest.mark.slow
    @BACKENDS
    @pytest.mark.parametrize("file", coco_cases.FILES)
    def test_200_changed_files_are_scored_or_refused(
        self, tmp_path: Path, file: str, library: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MASKRCNN_COCO_BACKEND", library)
        said = Counter(coco_cases.file_outcome(file, seed, tmp_path) for seed in range(200))
        assert set(said) == {"read", "refused"}, said

    def test_do_not_change_what_is_given(self) -> None:
        truth, results = random_case(1)
        before = copy.deepcopy((truth, results))
        evaluate_results(truth, results)
        assert (truth, results) == before

    @BACKENDS
    def test_of_no_results_are_zero_and_of_no_objects_minus_one(
        self, library: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MASKRCNN_COCO_BACKEND", library)
        truth, _ = simple_case()
        scores = evaluate_results(truth, [])
        assert list(scores.numbers) == ["bbox", "segm"]
        assert scores.numbers["segm"]["AP"] == scores.numbers["segm"]["AR100"] == 0
        truth["annotations"] = []
        assert set(evaluate_results(truth, []).numbers["bbox"].values()) == {-1}

    @BACKENDS
    @pytest.mark.parametrize("objects", [0, 2])
    def test_of_key_points_where_the_data_has_none_are_minus_one(
        self, library: str, objects: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MASKRCNN_COCO_BACKEND", library)
        truth, results = simple_case()
        del truth["annotations"][objects:]
        results = [{**results[0], "keypoints": [10.0, 8.0, 1] * 17} for _ in range(2)]
        scores = evaluate_results(truth, results, kinds=["keypoints"])
        assert set(scores.numbers["keypoints"].values()) == {-1}
        if not objects:
            assert evaluate_results(truth, results).numbers["keypoints"] == scores.numbers["keypoints"]
            assert pycocotools_numbers(truth, results, "keypoints") == [-1] * 10

    def test_of_key_points_do_not_ask_for_boxes_of_all_results_or_none(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """pycocotools reads the first result's and then expects everybody's."""
        truth, results = random_case(1, keypoints=True)
        del results[1]["bbox"]
        without = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
        for library in ("hotcoco", "pycocotools"):
            monkeypatch.setenv("MASKRCNN_COCO_BACKEND", library)
            scores = [evaluate_results(truth, r, kinds=["keypoints"]).numbers for r in (results, without)]
            assert scores[0] == scores[1]

    def test_by_class(self) -> None:
        truth, results = simple_case()
        scores = evaluate_results(truth, results)
        assert scores.per_class["segm"] == {
            "cat": {"AP": ONE, "AP50": ONE, "AP75": ONE, "objects": 1},
            "dog": {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "objects": 1},
            "emu": {"AP": -1.0, "AP50": -1.0, "AP75": -1.0, "objects": 0},
        }
        assert scores.numbers["segm"]["AP"] == HALF

    def test_sizes_are_the_masks_not_the_boxes(self) -> None:
        """A thin diagonal in a large box is small: with its box in the results it would be medium."""
        diagonal = np.eye(80, dtype=np.uint8)
        truth = {
            "images": [{"id": 1, "height": 80, "width": 80}],
            "categories": [{"id": 1, "name": "line"}],
            "annotations": [],
        }
        result = {"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": rle_encode(diagonal)}
        lines = [diagonal, diagonal[::-1]]
        for i, line in enumerate(lines, start=1):
            entry = {"id": i, "image_id": 1, "category_id": 1, "segmentation": rle_encode(line), "area": 80}
            truth["annotations"].append(entry)
        other = {
            **result,
            "segmentation": rle_encode(np.tri(80, dtype=np.uint8) - np.tri(80, k=-2, dtype=np.uint8)),
        }
        other["score"] = 0.95
        with_boxes = [{**r, "bbox": [0, 0, 80, 80]} for r in (result, other)]
        scores = evaluate_results(truth, with_boxes, kinds=["segm"])
        assert scores.numbers["segm"]["APm"] == -1
        assert scores.numbers["segm"] == evaluate_results(truth, [result, other]).numbers["segm"]


def simple_case() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Data set and results: a cat that is found, a dog that is not, no emu."""
    bitmap = np.zeros((40, 50), np.uint8)
    bitmap[5:30, 10:35] = 1
    rle = rle_encode(bitmap)
    truth = {
        "images": [{"id": 7, "height": 40, "width": 50, "file_name": "sub/photo.v2.jpg"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 8, "name": "emu"}],
        "annotations": [
            {"id": 0, "image_id": 7, "category_id": 1, "bbox": [10, 5, 25, 25], "segmentation": rle},
            {"id": 5, "image_id": 7, "category_id": 3, "bbox": [10, 5, 25, 25], "segmentation": rle},
        ],
    }
    entry = {"image_id": 7, "category_id": 1, "score": 0.8, "bbox": [10, 5, 25, 25], "segmentation": rle}
    return truth, [entry]


class TestForms:
    def test_an_object_with_id_0_can_be_found(self) -> None:
        truth, results = simple_case()
        assert evaluate_results(truth, results).per_class["bbox"]["cat"]["AP"] == ONE

    @pytest.mark.parametrize("image_id", ["photo.v2", "7"])
    def test_images_may_be_named_by_the_stem_of_their_file(self, image_id: str) -> None:
        truth, results = simple_case()
        results[0]["image_id"] = image_id
        assert evaluate_results(truth, results).numbers["bbox"]["AP"] == HALF

    def test_ids_may_be_text(self) -> None:
        truth, results = simple_case()
        truth["images"][0]["id"] = results[0]["image_id"] = "a"
        for a in truth["annotations"]:
            a["image_id"] = "a"
        assert evaluate_results(truth, results).numbers["bbox"]["AP"] == HALF

    @BACKENDS
    def test_rle_may_be_uncompressed_or_bytes(self, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MASKRCNN_COCO_BACKEND", library)
        truth, results = simple_case()
        counts = [10 * 40 + 5, *[25, 15] * 24, 25, 2000 - 10 * 40 - 5 - 25 * 25 - 24 * 15]
        truth["annotations"][0]["segmentation"] = {"size": [40, 50], "counts": counts}
        results[0]["segmentation"]["counts"] = results[0]["segmentation"]["counts"].encode()
        assert evaluate_results(truth, results).per_class["segm"]["cat"]["AP"] == ONE
        results[0]["segmentation"]["counts"] = counts
        assert evaluate_results(truth, results).per_class["segm"]["cat"]["AP"] == ONE

    def test_polygons_are_filled_as_coco_fills_them(self) -> None:
        truth, results = simple_case()
        truth["annotations"][0]["segmentation"] = [[10, 5, 35, 5, 35, 30, 10, 30]]
        del truth["annotations"][0]["bbox"]  # then it is the mask's
        assert evaluate_results(truth, results).per_class["segm"]["cat"]["AP"] == ONE
        assert evaluate_results(truth, results).per_class["bbox"]["cat"]["AP"] == ONE

    def test_results_are_scored_by_what_they_hold(self) -> None:
        truth, results = simple_case()
        assert list(evaluate_results(truth, results).numbers) == ["bbox", "segm"]
        del results[0]["bbox"]
        assert list(evaluate_results(truth, results).numbers) == ["segm"]


class TestLimit:
    def many(self, n: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        boxes = [[x, y, 4, 4] for y in range(0, 100, 5) for x in range(0, 100, 5)][:n]
        truth = {
            "images": [{"id": 1, "height": 100, "width": 100}],
            "categories": [{"id": 1, "name": "nucleus"}],
            "annotations": [
                {"id": i, "image_id": 1, "category_id": 1, "bbox": b} for i, b in enumerate(boxes)
            ],
        }
        return truth, [{"image_id": 1, "category_id": 1, "bbox": b, "score": 0.5} for b in boxes]

    @BACKENDS
    def test_of_100_hides_objects_and_says_so(self, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MASKRCNN_COCO_BACKEND", library)
        truth, results = self.many(200)
        scores = evaluate_results(truth, results)
        assert scores.numbers["bbox"]["AR100"] == 0.5
        assert scores.warnings[0].startswith("1 of 1 images have more than 100 objects (image 1: 200)")
        raised = evaluate_results(truth, results, max_detections=200)
        assert raised.numbers["bbox"]["AP"] == raised.numbers["bbox"]["AR200"] == ONE
        assert list(raised.numbers["bbox"])[8] == "AR200"
        assert raised.warnings == ()

    def test_must_be_above_coco_s_other_limits(self) -> None:
        with pytest.raises(UserError, match="more than 10, got 10"):
            evaluate_results(*self.many(1), max_detections=10)


class TestCurves:
    def test_give_back_ap(self, coco_eval: dict[str, Any]) -> None:
        scores = evaluate_results(coco_eval["data"], coco_eval["bbox"]).kinds["bbox"]
        assert scores.curve(0.5).shape == RECALL_LEVELS.shape
        assert scores.curve(0.5).mean() == pytest.approx(scores.numbers["AP50"], abs=1e-12)
        assert scores.curve(0.75).mean() == pytest.approx(scores.numbers["AP75"], abs=1e-12)
        assert scores.class_curve("person", 0.75).mean() == pytest.approx(scores.per_class["person"]["AP75"])

    def test_are_drawn_as_svg(self) -> None:
        truth, results = simple_case()
        truth["categories"][0]["name"] = "<cat & co>"
        root = ET.fromstring(pr_curves_svg(evaluate_results(truth, results)))
        texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
        assert "<cat & co> (1): 1.000" in texts
        assert "emu (0): no objects" in texts
        assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 2 * (6 + 2)
        truth["annotations"] = []
        ET.fromstring(pr_curves_svg(evaluate_results(truth, [])))


def change(**values: Any) -> Callable[[list[Any]], None]:
    return lambda results: results[1].update(values)


class TestMistakes:
    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (change(image_id=8), "entry 1: image_id 8 is not in data."),
            (change(image_id="x"), "entry 1: image_id 'x' is not in data."),
            (change(image_id=[7]), r"entry 1: image_id \[7\] is not in data."),
            (change(category_id=0), "entry 1: category_id 0 is not in data, which has 1, 3, 8."),
            (change(score=float("nan")), "entry 1: expected a finite number as score, got nan"),
            (change(score="high"), "entry 1: expected a finite number as score, got 'high'"),
            (change(bbox=[1, 2, 3]), r"entry 1: expected bbox as x, y, width, height, got \[1, 2, 3\]"),
            (change(bbox=[1, 2, 3, float("inf")]), "entry 1: expected bbox"),
            (change(bbox=[1, 2, -3, 4]), "entry 1: expected bbox"),
            (
                change(segmentation={"size": [50, 40], "counts": "0"}),
                r"entry 1: .*size \[40, 50\].*got \[50, 40\]",
            ),
            (change(segmentation={"size": [40, 50], "counts": "0"}), "entry 1: .*counts sum to 0"),
            (
                change(segmentation={"size": [40, 50], "counts": "\u20ac"}),
                "entry 1: .*characters that cannot be",
            ),
            (change(segmentation={"size": [40, 50]}), "entry 1: expected segmentation as RLE"),
            (change(segmentation=[[1, 2, 3, 4, 5, 6]]), "entry 1: expected segmentation as RLE"),
            (
                change(segmentation={"size": [40, 50], "counts": [1.5]}),
                "entry 1: expected segmentation as RLE",
            ),
            (lambda r: r[1].pop("bbox"), "entry 1: expected 'bbox', got none"),
            (lambda r: r[1].pop("score"), "entry 1: expected 'score', got none"),
            (lambda r: r.append(3), "entry 2: expected an object"),
            (
                lambda r: r.__setitem__(slice(None), [{"image_id": 7}]),
                "entry 0: expected bbox, segmentation or",
            ),
        ],
    )
    def test_in_results_are_told_by_entry(self, spoil: Callable[[list[Any]], Any], message: str) -> None:
        truth, results = simple_case()
        results = json.loads(json.dumps([*results, *results]))
        spoil(results)
        with pytest.raises(UserError, match=message) as error:
            evaluate_results(truth, results)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "got an empty file"),
            ("[1, 2", "got no JSON: .* in line 1, column"),
            ("[" * 100_000, "got no JSON: its lists or objects are nested too deeply"),
            ("9" * 10_000, "got no JSON: a whole number of thousands of digits"),
            ("[\udcff]", "got no JSON: invalid start byte for utf-8 at byte 1"),
            ('{"images": 3}', "expected COCO results, a list of detections, got dict"),
        ],
    )
    def test_in_files_are_told(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "results.json").write_text(content, errors="surrogateescape")
        with pytest.raises(UserError, match=f"results.json: .*{message}"):
            evaluate_results(simple_case()[0], tmp_path / "results.json")
        with pytest.raises(UserError, match=r"other.json: expected a COCO data set, got no such file"):
            evaluate_results(tmp_path / "other.json", [])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"segmentation": []}, "annotation 5: expected a mask, got none. .*--kinds bbox"),
            ({"segmentation": {"size": [40, 50], "counts": "1"}}, "annotation 5: .*counts sum to 1"),
            ({"segmentation": [[1, 2]]}, "annotation 5: expected polygons of 3 points"),
            ({"bbox": "none"}, "annotation 5: expected bbox"),
        ],
    )
    def test_in_the_data_are_told_by_annotation(self, change: dict[str, Any], message: str) -> None:
        truth, results = simple_case()
        truth["annotations"][1].update(change)
        with pytest.raises(UserError, match=message):
            evaluate_results(truth, results)

    def test_in_the_layout_of_the_data_are_told(self) -> None:
        with pytest.raises(UserError, match="got no list 'categories'"):
            evaluate_results({"images": [], "annotations": []}, [])
        with pytest.raises(UserError, match="images entry 0: expected 'id'"):
            evaluate_results({"images": [{}], "annotations": [], "categories": []}, [])

    def test_two_images_of_one_stem_are_not_guessed(self) -> None:
        truth, results = simple_case()
        truth["images"].append({**truth["images"][0], "id": 9, "file_name": "other/photo.v2.jpg"})
        results[0]["image_id"] = "photo.v2"
        with pytest.raises(UserError, match="is the name of 2 images"):
            evaluate_results(truth, results)

    def test_key_points_of_another_skeleton_have_stated_or_given_sigmas(self) -> None:
        truth, results = simple_case()
        points = [12, 6, 2, 20, 9, 2]
        for entry in (*truth["annotations"], *results):
            entry |= {"keypoints": points, "num_keypoints": 2}
        scores = evaluate_results(truth, results, kinds=["keypoints"])
        assert scores.numbers["keypoints"]["AP"] == HALF
        assert "2 key points are not COCO's 17: scored with sigma 0.0635 for each" in scores.warnings[0]
        scores = evaluate_results(truth, results, kinds=["keypoints"], keypoint_sigmas=[0.05, 0.05])
        assert scores.numbers["keypoints"]["AP"] == HALF
        assert not scores.warnings
        with pytest.raises(UserError, match="expected 2 numbers above 0, one for each key point"):
            evaluate_results(truth, results, kinds=["keypoints"], keypoint_sigmas=[0.05])

    def test_objects_without_key_points_are_not_to_find(self) -> None:
        truth, results = simple_case()
        truth["annotations"][0]["keypoints"] = [12, 6, 2, 20, 9, 2]  # the dog has none
        results[0]["keypoints"] = [12, 6, 0.9, 20, 9, 0.8]
        scores = evaluate_results(truth, results, kinds=["keypoints"])
        assert scores.numbers["keypoints"]["AP"] == ONE
        assert scores.per_class["keypoints"]["dog"]["AP"] == -1

    def test_an_unknown_backend_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MASKRCNN_COCO_BACKEND", "fast")
        with pytest.raises(UserError, match="MASKRCNN_COCO_BACKEND: expected one of hotcoco, pycocotools"):
            evaluate_results(*simple_case())
