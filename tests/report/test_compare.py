"""Pages of a model beside the ground truth: what is wrong in each picture, and the worst first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn.evaluation.pairs import pair
from maskrcnn.evaluation.truth import load_truth
from maskrcnn.masks import rle_encode
from maskrcnn.report import compare
from maskrcnn.report.compare import judge, write_comparison

SIZE = (40, 60)


def square(x: int, y: int, side: int = 10) -> dict[str, Any]:
    mask = np.zeros(SIZE, bool)
    mask[y : y + side, x : x + side] = True
    return rle_encode(mask)


def case() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Three pictures: all right; two objects, one missed, one found twice and a find where nothing is; one missed, and
    a find that the model is not sure of.
    """
    places = {1: [(5, 5)], 2: [(5, 5), (30, 5)], 3: [(5, 5)]}
    annotations = [
        {"id": 10 * image + k, "image_id": image, "category_id": 1, "iscrowd": 0, "area": 100}
        | {"bbox": [x, y, 10, 10], "segmentation": square(x, y)}
        for image, corners in places.items()
        for k, (x, y) in enumerate(corners)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in places]
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    found = [
        (1, (5, 5), 0.9),
        (2, (5, 5), 0.9),
        (2, (6, 5), 0.8),
        (2, (45, 25), 0.7),
        (3, (30, 20), 0.3),
    ]
    results = [
        {"image_id": i, "category_id": 1, "score": s, "segmentation": square(*corner)}
        for i, corner, s in found
    ]
    return truth, results


def test_the_worst_picture_comes_first_with_its_causes() -> None:
    truth, results = case()
    pairs = pair(load_truth(truth), results, "segm")
    judged = judge(pairs, 0.5)
    assert [(j.picture, j.errors) for j in judged] == [(1, 3), (2, 1), (0, 0)]
    assert judged[0].wrong.tolist() == [False, True, True]
    assert [compare.CAUSES[c] for c in judged[0].cause[1:]] == ["doubled", "background"]
    assert judged[0].missed.tolist() == [False, True]
    assert judged[1].missed.tolist() == [True]
    assert [j.errors for j in judge(pairs, 0.2)] == [3, 2, 0]


def test_pages_can_be_leafed_through(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(compare, "PER_PAGE", 1)
    truth, results = case()
    for i in (1, 2, 3):
        Image.new("RGB", (SIZE[1], SIZE[0]), (90, 90, 90)).save(tmp_path / f"{i}.png")
    pairs = pair(load_truth(truth), results, "segm")
    paths = {i: tmp_path / f"{i}.png" for i in (1, 2, 3)}
    first = write_comparison(tmp_path / "out", "a <model>", pairs, paths, 0.5)
    assert first == tmp_path / "out" / "index.html"
    pages = [(tmp_path / "out" / n).read_text() for n in ("index.html", "page-2.html", "page-3.html")]
    captions = [re.findall(r"<figcaption>(.*?)</figcaption>", page) for page in pages]
    assert captions == [
        ["2.png: 1 missed, 2 wrong of 3"],
        ["3.png: 1 missed, 0 wrong of 0"],
        ["1.png: 0 missed, 0 wrong of 1"],
    ]
    assert 'href="page-2.html"' in pages[0]
    assert 'href="index.html"' in pages[1]
    assert "better" not in pages[2]
    assert "a &lt;model&gt;" in pages[0]
    assert "<b>2</b><span>objects missed</span>" in pages[0]
    write_comparison(tmp_path / "few", "title", pairs, paths, 0.5, limit=1)
    assert [p.name for p in (tmp_path / "few").iterdir()] == ["index.html"]
