"""`maskrcnn view`: a page, a contact sheet, and the data set as COCO JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn import zoo
from maskrcnn.cli.main import main
from maskrcnn.data import find_data, read_data
from maskrcnn.report.dataset import contact_sheet, example_pictures
from maskrcnn.weights.write import write_weights
from tests.data.label_files import picture, write_json, write_text

SQUARE = {"name": "polygon", "all_points_x": [10, 30, 30, 10], "all_points_y": [5, 5, 15, 15]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Data set of two parts of 5 and 2 images, the first of each without objects; classes cat and a name to escape."""
    for part, count in (("train", 5), ("val", 2)):
        content = {}
        for k in range(count):
            picture(tmp_path / "data" / part / f"{k}.png")
            labels = ("cat", "<dog>")[: min(k, 2)]
            regions = [{"shape_attributes": SQUARE, "region_attributes": {"class": n}} for n in labels]
            content[f"{k}.png1"] = {"filename": f"{k}.png", "size": 1, "regions": regions}
        write_json(tmp_path / "data" / part / "via_region_data.json", content)
    return tmp_path / "data"


def test_page_and_contact_sheets(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["view", str(data), "--out", str(out), "--limit", "3"]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "contact_sheet_train.jpg",
        "contact_sheet_val.jpg",
        "index.html",
    ]
    page = (out / "index.html").read_text()
    assert len(re.findall("<img ", page)) == 3 + 2
    assert "3 of 5, evenly spread." in page
    assert "0.png · 60 x 40 · 0 objects" in page
    assert "<th>cat</th>" in page
    assert "<dog>" not in page
    assert "&lt;dog&gt;" in page
    assert "train: 5 images, 7 objects" in capsys.readouterr().out


def test_one_part_as_coco(data: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "coco" / "val.json"
    assert main(["view", str(data), "--out", str(out), "--split", "val", "--coco", str(file)]) == 0
    assert (out / "contact_sheet.jpg").is_file()
    content = json.loads(file.read_text())
    assert [i["file_name"] for i in content["images"]] == ["0.png", "1.png"]
    assert [a["bbox"] for a in content["annotations"]] == [[10, 5, 20, 10]]
    again = read_data(find_data(file, data / "val").train)
    assert again.num_objects.tolist() == [0, 1]
    assert set(again.class_names) == {"cat", "<dog>"}


def test_objects_are_drawn_and_pictures_that_cannot_be_read_are_left_out(data: Path, tmp_path: Path) -> None:
    write_text(data / "train" / "4.png", "no picture")
    shown = example_pictures(read_data(find_data(data).train), 10)
    assert [caption.split(" ")[0] for _, caption in shown] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    plain, drawn = shown[0][0], shown[1][0]
    assert (plain == plain[0, 0]).all()
    assert not (drawn == drawn[0, 0]).all()
    assert main(["view", str(data), "--out", str(tmp_path / "out"), "--split", "train"]) == 0
    assert "4 images" in (tmp_path / "out" / "index.html").read_text().replace("</b><span>", " ")


def test_the_sheet_holds_any_number_of_pictures() -> None:
    for count in (0, 1, 7, 40):
        pictures = [(np.full((30, 20 + 40 * (k % 3), 3), k, np.uint8), "name " * 20) for k in range(count)]
        sheet = contact_sheet(pictures)
        assert sheet.dtype == np.uint8
        assert sheet.shape[2] == 3
        assert sheet.shape[0] * sheet.shape[1] >= count * 300 * 240


def test_mistakes_in_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    single = str(data / "train" / "via_region_data.json")
    for words, message in (
        ([str(tmp_path / "nowhere"), "--out", out], "does not exist"),
        ([single, "--out", out, "--split", "val"], "has no such part"),
        ([str(data), "--out", out, "--limit", "-1"], "--limit: expected 0 or more"),
        ([str(data), "--out", single], "expected a folder to write in"),
    ):
        assert main(["view", *words]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (1500, 3000))
    region = {"shape_attributes": SQUARE, "region_attributes": {}}
    write_json(tmp_path / "x.json", {"a.png1": {"filename": "a.png", "size": 1, "regions": [region]}})
    [(image, _)] = example_pictures(read_data(find_data(tmp_path).train), 1)
    assert image.shape == (450, 900, 3)
    assert Image.fromarray(image).size == (900, 450)


def test_a_model_beside_the_ground_truth(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = zoo.build("mask_rcnn_R_50_FPN_1x", num_classes=2, tiny=True)
    model.config.class_names = ("cat", "<dog>")
    write_weights(tmp_path / "model.safetensors", model.state_dict(), model.config)
    words = [
        "view",
        str(data),
        "--model",
        str(tmp_path / "model.safetensors"),
        "--out",
        str(tmp_path / "out"),
    ]
    words += ["--min-size", "64", "--max-size", "64", "--device", "cpu", "--score-threshold", "0.999"]
    assert main(words) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "1.png: 1 missed, 0 wrong of 0" in page
    assert "val: 2 images" in capsys.readouterr().out
    assert main(["view", str(data), "--out", str(tmp_path / "out"), "--score-threshold", "0.3"]) == 2
    assert "view: --score-threshold goes with --model" in capsys.readouterr().err
