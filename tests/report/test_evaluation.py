"""The page about a model's results: it says what the numbers say, whatever the data, and shows the right pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn.errors import UserError
from maskrcnn.evaluation.analysis import Analysis, analyse
from maskrcnn.evaluation.causes import CAUSES
from maskrcnn.evaluation.scores import evaluate_results
from maskrcnn.evaluation.truth import load_truth
from maskrcnn.report.evaluation import MEANING, write_evaluation
from maskrcnn.report.mistakes import draw_causes
from tests.coco_cases import random_case
from tests.evaluation.small import SIZE, data_set, results
from tests.test_report import Page

A, B, C = (0, 0, 10, 10), (20, 0, 10, 10), (40, 0, 10, 10)


def analysis_of(
    truth: dict[str, Any],
    found: list[dict[str, Any]],
    kind: str = "segm",
    against: list[dict[str, Any]] | None = None,
) -> Analysis:
    loaded = load_truth(truth)
    return analyse(loaded, found, evaluate_results(loaded, found, [kind]), against=against)


def errors() -> Analysis:
    """A cat found as a dog, a cat found beside its place, a dog missed, and a dog that is none."""
    objects = [(1, 1, A), (1, 1, B), (1, 2, C)]
    found = [(1, 2, 0.9, A), (1, 1, 0.8, (20, 0, 10, 4)), (1, 2, 0.7, (0, 40, 9, 9))]
    return analysis_of(data_set(objects, names=("<cat>", "dog")), results(found))


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_any_data_has_a_page_and_numbers(tmp_path: Path, kind: str) -> None:
    for seed in range(25):
        truth, found = random_case(seed)
        analysis = analysis_of(truth, found, kind, against=found[1:])
        page = write_evaluation(tmp_path / "report", analysis, title=f"case {seed}", against="others")
        Page(page.read_text())
        text = (tmp_path / "report" / "report.json").read_text()
        report = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        assert report == analysis.numbers


@pytest.mark.parametrize("objects", [[], [(1, 1, A)]])
def test_nothing_found_or_nothing_to_find(tmp_path: Path, objects: list[Any]) -> None:
    for found in ([], results([(1, 1, 0.9, A)])):
        page = write_evaluation(tmp_path / "report", analysis_of(data_set(objects), found), title="little")
        text = Page(page.read_text()).text
        assert not any("nan" in word for word in text)


def test_scores_may_be_any_numbers(tmp_path: Path) -> None:
    found = results([(1, 1, 87.5, A), (1, 1, -3.0, B)])
    page = write_evaluation(tmp_path / "report", analysis_of(data_set([(1, 1, A)]), found), title="percent")
    assert "Calibration" not in page.read_text()
    assert json.loads((tmp_path / "report" / "report.json").read_text())["thresholds"]["per_class"]["cat"] == {
        "threshold": 87.5, "precision": 1.0, "recall": 1.0, "detections": 1, "objects": 1, "f1": 1.0,
    }  # fmt: skip


def test_it_says_what_the_numbers_say(tmp_path: Path) -> None:
    analysis = errors()
    page = Page(write_evaluation(tmp_path / "report", analysis, title="a run", lead="as it is").read_text())
    words = " ".join(page.text)
    for cause in CAUSES:
        assert cause.capitalize() in words
        assert MEANING[cause] in words
    assert "<cat>" in words
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["causes"]["counts"] == {
        "class": 1, "place": 1, "both": 0, "doubled": 0, "background": 1, "missed": 1,
    }  # fmt: skip
    assert list(report["per_class"]["segm"]) == ["<cat>", "dog"]
    assert report["by_size"]["segm"]["<cat>"]["s"]["objects"] == 2
    assert report["confusion"]["classes"] == ["<cat>", "dog", "background"]


def test_many_classes_have_their_confusions_listed(tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(1, 31)]
    truth = data_set([(1, k, A) for k in range(1, 31)], names=names)
    found = results([(1, 7, 0.9, A)])
    text = Page(
        write_evaluation(tmp_path / "report", analysis_of(truth, found), title="many").read_text()
    ).text
    assert "10 more classes" in text
    swapped = results([(1, 2, 0.9, B)])
    truth = data_set([(1, 1, B)], names=names)
    page = write_evaluation(tmp_path / "report", analysis_of(truth, swapped), title="many").read_text()
    assert "<tr><th>class 1</th><td>class 2</td><td>1</td></tr>" in page


class TestPictures:
    @pytest.fixture
    def paths(self, tmp_path: Path) -> dict[int, Path]:
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(tmp_path / "1.png")
        return {1: tmp_path / "1.png"}

    def test_errors_are_orange_and_objects_blue(self, paths: dict[int, Path]) -> None:
        drawn = draw_causes(errors(), paths, 2)
        assert {cause: len(found) for cause, found in drawn.items()} == {
            "class": 1, "place": 1, "both": 0, "doubled": 0, "background": 1, "missed": 1,
        }  # fmt: skip
        ((picture, caption),) = drawn["missed"]
        assert caption == "1.png: 1 object missed"
        zoom = picture.shape[0] // SIZE[0]
        assert is_orange(picture, (45 * zoom, 5 * zoom))
        ((picture, caption),) = drawn["class"]
        assert caption == "1.png: 1 error"
        assert is_orange(picture, (5 * zoom, 5 * zoom))
        ((picture, _),) = drawn["place"]  # its upper part, which was found, and the rest of the object
        assert is_orange(picture, (25 * zoom, 2 * zoom))
        assert not is_orange(picture, (25 * zoom, 7 * zoom))
        assert picture[7 * zoom, 25 * zoom, 2] > 120

    def test_a_large_picture_is_drawn_smaller(self, tmp_path: Path) -> None:
        size = (900, 1300)
        Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(tmp_path / "1.png")
        truth = data_set([(1, 1, (650, 450, 300, 300))], size=size)
        for kind in ("segm", "bbox"):
            drawn = draw_causes(analysis_of(truth, [], kind), {1: tmp_path / "1.png"}, 1)
            picture, _ = drawn["missed"][0]
            assert picture.shape[:2] == (443, 640)
            assert is_orange(picture, (650 * 640 // 1300, 600 * 640 // 1300), outline=True)

    def test_pictures_that_cannot_be_drawn_are_left_out(self, paths: dict[int, Path], tmp_path: Path) -> None:
        assert not any(draw_causes(errors(), {}, 2).values())
        assert not any(draw_causes(errors(), {1: tmp_path / "none.png"}, 2).values())
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(paths[1])  # of another size
        assert not any(draw_causes(errors(), paths, 2).values())


def is_orange(picture: np.ndarray, place: tuple[int, int], outline: bool = False) -> bool:
    """More red than blue at (x, y), or within two pixels of it."""
    x, y = place
    reach = 2 if outline else 0
    part = picture[y - reach : y + reach + 1, x - reach : x + reach + 1].reshape(-1, 3).astype(int)
    return bool((part[:, 0] > part[:, 2] + 40).any())


def test_a_folder_of_other_things_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="expected a new or empty folder"):
        write_evaluation(tmp_path, errors(), title="a run")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
