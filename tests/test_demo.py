from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn import demo as module
from maskrcnn.cli.main import main
from maskrcnn.config import Config
from maskrcnn.data.synthetic import make_synthetic
from maskrcnn.demo import demo, recipe, split
from maskrcnn.errors import UserError
from maskrcnn.presets import shrink
from maskrcnn.weights.load import read_weights


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink the demo to few small pictures, few channels and two steps: the same job in seconds."""
    monkeypatch.setattr(module, "NUM_TRAIN", 6)
    monkeypatch.setattr(module, "NUM_VAL", 3)
    monkeypatch.setattr(module, "SIZE", (64, 96))

    def shrunk(**settings: Any) -> Config:
        config = shrink(recipe(**settings))
        config.data.batch_size, config.train.log_every = 2, 1
        config.train.iterations = config.train.checkpoint_every = config.train.evaluate_every = 2
        return config

    monkeypatch.setattr(module, "recipe", shrunk)


def check_page(page: Path, panels: int) -> None:
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 2 * panels
    for section in ("Scores", "Pictures", "Curves", "Classes", "Time", "Settings"):
        assert f"<h2>{section}</h2>" in text


@pytest.mark.slow
def test_the_job_runs_from_nothing_to_the_page_and_again(tmp_path: Path, small: None) -> None:
    said: list[str] = []
    result = demo(tmp_path / "out", seed=1, say=said.append)
    check_page(result.page, panels=3)
    assert str(result.page.resolve()) in said[-1]
    assert -1 <= result.mask_ap <= 1
    first = read_weights(tmp_path / "out" / "run").state
    demo(tmp_path / "out", seed=1, say=said.append)  # takes the place of the earlier one
    again = read_weights(tmp_path / "out" / "run").state
    assert all(torch.equal(again[name], value) for name, value in first.items())


@pytest.mark.slow
def test_the_command_takes_a_folder_of_ones_own(
    tmp_path: Path, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """One JSON of any name beside the pictures; nothing is written into the user's folder."""
    made = make_synthetic(tmp_path / "made", 10, 0, size=(64, 80))
    own = tmp_path / "shapes <of mine>"
    shutil.move(made / "train", own)
    shutil.move(made / "annotations" / "train.json", own / "labels.json")
    before = sorted(p.name for p in own.iterdir())
    status = main(["demo", "--data", str(own), "--out", str(tmp_path / "out"), "--minutes", "0.5"])
    assert status == 0, capsys.readouterr().err
    check_page(tmp_path / "out" / "report.html", panels=2)
    assert "Mask R-CNN on shapes &lt;of mine&gt;" in (tmp_path / "out" / "report.html").read_text()
    assert sorted(p.name for p in own.iterdir()) == before


def coco(num_images: int) -> dict[str, Any]:
    images = [{"id": 10 * i, "file_name": f"{i}.png", "width": 9, "height": 9} for i in range(num_images)]
    annotations = [{"id": i, "image_id": 10 * (i // 3)} for i in range(3 * num_images)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}


@pytest.mark.parametrize(("num_images", "num_val"), [(2, 1), (5, 1), (50, 10)])
def test_a_split_keeps_every_image_with_its_objects_in_one_part(num_images: int, num_val: int) -> None:
    content = coco(num_images)
    rest, val = split(content, 0.2, seed=4)
    assert len(val["images"]) == num_val
    assert sorted(i["id"] for part in (rest, val) for i in part["images"]) == [
        10 * i for i in range(num_images)
    ]
    assert len(rest["annotations"]) + len(val["annotations"]) == 3 * num_images
    for part in (rest, val):
        assert {a["image_id"] for a in part["annotations"]} == {i["id"] for i in part["images"]}
        assert part["categories"] == content["categories"]
    assert split(content, 0.2, seed=4) == (rest, val)


def test_mistakes_are_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        split(coco(1), 0.2, seed=0)
    (tmp_path / "out" / "run").mkdir(parents=True)
    (tmp_path / "out" / "run" / "thesis.txt").touch()
    for arguments, words in (
        (["--minutes", "0"], "--minutes: expected more than 0"),
        (["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")], "nowhere"),
        (["--out", str(tmp_path / "out")], "no earlier demo's"),
    ):
        assert main(["demo", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1
    assert (tmp_path / "out" / "run" / "thesis.txt").exists()


def test_the_recipe_is_json(tmp_path: Path) -> None:
    """What a run saves can be read back."""
    from maskrcnn.config import from_dict, to_json

    config = recipe(minutes=1.0, seed=2, min_size=320)
    assert from_dict(Config, json.loads(to_json(config)), "recipe") == config
