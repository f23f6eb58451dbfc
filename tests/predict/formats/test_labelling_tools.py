"""Predictions as labelling tools read them: by our readers, by the tools' own importers, or by their documents."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn.data import find_data, read_data
from maskrcnn.errors import UserError
from maskrcnn.masks import PredictedMasks
from maskrcnn.masks.coco_api import fill_polygons
from maskrcnn.predict import write_predictions
from maskrcnn.structures import Instances

H, W = 48, 64
NAMES = ("cat", "dog & <pup>")
TOOLS = Path(os.environ.get("MASKRCNN_LABEL_TOOLS", "build/label-tools/bin/python"))


def found(scores: list[float]) -> Instances:
    """Detections with masks of 28 x 28 that have a hole and two parts."""
    count = len(scores)
    probs = torch.zeros(count, 28, 28)
    probs[:, 2:16, 2:24] = 1
    probs[:, 6:10, 8:14] = 0
    probs[:, 20:26, 4:20] = 1
    boxes = torch.tensor(
        [[3.0 + 5 * k, 2.0 + 3 * k, 40.0 + 5 * k, 40.0 + 2 * k] for k in range(count)]
    ).reshape(-1, 4)
    labels = torch.arange(count) % 2
    masks = PredictedMasks(probs, boxes, (H, W))
    return Instances((H, W), boxes, torch.tensor(scores), labels, masks, class_names=NAMES)


@pytest.fixture
def pictures(tmp_path: Path) -> dict[Path, Instances]:
    scores = {"a b.png": [0.9, 0.5, 0.25], "empty.png": [], "sure.png": [0.99]}
    pictures = {}
    for name, values in scores.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (W, H)).save(tmp_path / "in" / name)
        pictures[tmp_path / "in" / name] = found(values)
    return pictures


def write(pictures: dict[Path, Any], out: Path, *formats: str, **how: Any) -> Path:
    results = [*pictures.items(), (out.parent / "in" / "broken.png", UserError("broken.png: cannot read."))]
    written = write_predictions(results, out, formats=formats, class_names=NAMES, draw=False, **how)
    assert (written.num_images, written.num_failed) == (len(pictures), 1)
    return out


def bitmaps(pictures: dict[Path, Instances], name: str) -> list[tuple[str, bytes]]:
    instances = next(v for k, v in pictures.items() if k.name == name)
    masks = np.asarray(instances.masks) if len(instances) else ()
    labels = instances.labels.tolist()
    return sorted((NAMES[k], np.packbits(m).tobytes()) for k, m in zip(labels, masks, strict=True))


def filled(name: str, rings: list[list[float]]) -> tuple[str, bytes]:
    mask = np.asarray(fill_polygons([np.array(r) for r in rings], (H, W)).any(0))
    return name, np.packbits(mask).tobytes()


@pytest.mark.parametrize("format", ["labelme", "yolo"])
def test_our_own_readers_find_the_same_pixels(
    pictures: dict[Path, Instances], tmp_path: Path, format: str
) -> None:
    out = write(pictures, tmp_path / "out", format)
    if format == "yolo":  # beside the pictures, as its tools want them
        (out / "images").symlink_to(tmp_path / "in")
        scores = (out / "scores" / "a b.txt").read_text().split()
        assert [float(s) for s in scores] == [0.9, 0.5, 0.25]
        assert (out / "labels" / "empty.txt").read_text() == ""
    data = read_data(find_data(out, format=format).train)
    names = {data.file_name(i).split("/")[-1]: i for i in range(data.num_images)}
    assert set(names) == {p.name for p in pictures}
    truth = data.ground_truth(names["a b.png"])
    assert truth.masks is not None
    masks = np.asarray(truth.masks.to_bitmaps((H, W))) > 0
    labels = [data.class_names[k] for k in truth.labels.tolist()]
    read = sorted((n, np.packbits(m).tobytes()) for n, m in zip(labels, masks, strict=True))
    assert read == bitmaps(pictures, "a b.png")
    assert data.image_path(names["a b.png"]).is_file()
    assert len(data.ground_truth(names["empty.png"])) == 0


def test_labelme_groups_parts_and_shows_scores(pictures: dict[Path, Instances], tmp_path: Path) -> None:
    out = write(pictures, tmp_path / "out", "labelme")
    content = json.loads((out / "a b.json").read_text())
    assert [s["group_id"] for s in content["shapes"]] == [1, 1, 2, 2, 3, 3]
    assert content["shapes"][0]["description"] == "score 0.900"
    assert content["imagePath"] == "../in/a b.png"
    assert (out / "labels.txt").read_text().splitlines() == list(NAMES)


def test_cvat_has_every_picture_and_pixel(pictures: dict[Path, Instances], tmp_path: Path) -> None:
    tree = ElementTree.parse(write(pictures, tmp_path / "out", "cvat") / "annotations.xml")
    images = tree.getroot().findall("image")
    assert [i.get("name") for i in images] == ["a b.png", "empty.png", "sure.png"]
    assert [label.findtext("name") for label in tree.iter("label")] == list(NAMES)
    groups: dict[str, list[ElementTree.Element]] = {}
    for polygon in images[0]:
        assert float(polygon.findtext("attribute") or "") in (0.9, 0.5, 0.25)
        groups.setdefault(str(polygon.get("group_id")), []).append(polygon)
    read = [
        filled(
            str(parts[0].get("label")),
            [[float(v) for p in str(e.get("points")).split(";") for v in p.split(",")] for e in parts],
        )
        for parts in groups.values()
    ]
    assert sorted(read) == bitmaps(pictures, "a b.png")


def test_label_studio_has_polygons_in_percent(pictures: dict[Path, Instances], tmp_path: Path) -> None:
    out = write(pictures, tmp_path / "out", "label-studio")
    tasks = json.loads((out / "label_studio.json").read_text())
    assert [t["data"]["image"].split("/")[-1] for t in tasks] == ["a%20b.png", "empty.png", "sure.png"]
    (prediction,) = tasks[0]["predictions"]
    assert prediction["score"] == pytest.approx(0.55)
    regions = prediction["result"]
    assert [r["score"] for r in regions] == pytest.approx([0.9, 0.5, 0.25])
    assert {r["type"] for r in regions} == {"polygonlabels"}
    read = []
    for region in regions:
        points = np.array(region["value"]["points"]) * [W / 100, H / 100]
        read.append(filled(region["value"]["polygonlabels"][0], [points.ravel().tolist()]))
    assert sorted(read) == bitmaps(pictures, "a b.png")
    interface = ElementTree.parse(out / "label_studio.xml")
    assert {e.get("value") for e in interface.iter("Label")} == set(NAMES)
    assert tasks[1]["predictions"][0]["result"] == []


def test_what_would_teach_most_comes_first(pictures: dict[Path, Instances], tmp_path: Path) -> None:
    out = write(pictures, tmp_path / "out", "cvat", "coco", by_uncertainty=True)
    with open(out / "uncertainty.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(Path(r["image"]).name, float(r["uncertainty"]), int(r["detections"])) for r in rows] == [
        ("a b.png", 1.7, 3),
        ("sure.png", 0.02, 1),
        ("empty.png", 0.0, 0),
        ("broken.png", 0.0, 0),
    ]
    tree = ElementTree.parse(out / "annotations.xml")
    assert [i.get("name") for i in tree.iter("image")] == ["a b.png", "sure.png", "empty.png"]
    assert [e["image_id"] for e in json.loads((out / "predictions.json").read_text())] == ["a b"] * 3 + [
        "sure"
    ]


def by_tool(script: str, folder: Path) -> Any:
    if not TOOLS.is_file():
        pytest.skip(
            f"{TOOLS}: no environment with the labelling tools' importers; `make label-tools` makes it"
        )
    done = subprocess.run([TOOLS, "-c", script, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_datumaro_reads_cvats_file(pictures: dict[Path, Instances], tmp_path: Path) -> None:
    out = write(pictures, tmp_path / "out", "cvat")
    (out / "images").symlink_to(tmp_path / "in")
    script = """
import json, sys
from datumaro.components.dataset import Dataset
data = Dataset.import_from(sys.argv[1], "cvat")
names = [c.name for c in data.categories()[next(iter(data.categories()))].items]
print(json.dumps({i.id: [[names[a.label], a.group, a.points] for a in i.annotations] for i in data}))
"""
    read = by_tool(script, out)
    groups: dict[int, tuple[str, list[list[float]]]] = {}
    for name, group, points in read["a b"]:
        groups.setdefault(group, (name, []))[1].append(points)
    assert sorted(filled(*g) for g in groups.values()) == bitmaps(pictures, "a b.png")
    assert read["empty"] == []


def test_label_studios_converter_makes_coco_of_its_file(
    pictures: dict[Path, Instances], tmp_path: Path
) -> None:
    out = write(pictures, tmp_path / "out", "label-studio")
    script = """
import json, sys
from label_studio_sdk.converter import Converter
folder = sys.argv[1]
tasks = json.load(open(folder + "/label_studio.json"))
for k, task in enumerate(tasks):
    task["id"] = k
    task["annotations"] = task.pop("predictions")  # a person has accepted them
json.dump(tasks, open(folder + "/accepted.json", "w"))
made = Converter(folder + "/label_studio.xml", None, download_resources=False)
where = folder + "/coco"
made.convert_to_coco(folder + "/accepted.json", where, output_image_dir=where + "/images", is_dir=False)
coco = json.load(open(folder + "/coco/result.json"))
names = {c["id"]: c["name"] for c in coco["categories"]}
first = [i["id"] for i in coco["images"] if "b.png" in i["file_name"]]
its = [a for a in coco["annotations"] if a["image_id"] in first]
print(json.dumps([[names[a["category_id"]], a["segmentation"]] for a in its]))
"""
    read = by_tool(script, out)
    assert sorted(filled(*entry) for entry in read) == bitmaps(pictures, "a b.png")


def test_labelme_opens_its_file(pictures: dict[Path, Instances], tmp_path: Path) -> None:
    out = write(pictures, tmp_path / "out", "labelme")
    script = """
import json, sys
from labelme._label_file import LabelFile
file = LabelFile(sys.argv[1] + "/a b.json")
print(json.dumps([[s["label"], s["group_id"], [v for p in s["points"] for v in p]] for s in file.shapes]))
"""
    read = by_tool(script, out)
    groups: dict[int, tuple[str, list[list[float]]]] = {}
    for name, group, points in read:
        groups.setdefault(group, (name, []))[1].append(points)
    assert sorted(filled(*g) for g in groups.values()) == bitmaps(pictures, "a b.png")
