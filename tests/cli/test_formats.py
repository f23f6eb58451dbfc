"""Every format with a training and a validation part, from the command line: checked, viewed, trained, scored, used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskrcnn import presets
from maskrcnn.cli.main import main
from maskrcnn.config import Config, from_file
from maskrcnn.data import FORMATS
from maskrcnn.presets.tiny import shrink
from tests.data.data_sets import CLASSES, WRITERS, write_set

NAME = "mask_rcnn_R_50_FPN_3x"
PUBLISHED = presets.PRESETS[NAME]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny() -> Config:
        config = shrink(PUBLISHED())
        config.data.num_workers = 0
        config.model.input.min_size, config.model.input.max_size = 64, 96
        config.model.box_head.score_threshold = 0.0  # random weights find something
        return config

    monkeypatch.setitem(presets.PRESETS, NAME, tiny)


def train(data: Path, run: Path, *more: str) -> int:
    words = ["train", "--data", str(data), "--model", NAME, "--out", str(run), "--weights", "none"]
    few = ["--train.iterations", "2", "--data.batch_size", "2", "--device", "cpu"]
    return main([*words, *few, *more])


def test_every_format_is_here() -> None:
    assert {kind.split("_")[0] for kind in WRITERS} == set(FORMATS)


@pytest.mark.parametrize("kind", WRITERS)
def test_both_parts_through_every_verb(kind: str, tmp_path: Path, capsys: Captured) -> None:
    data, run, out = write_set(tmp_path / "set", kind), tmp_path / "run", tmp_path / "out"
    classes = CLASSES if kind != "instances" else ("object",)

    assert main(["doctor", str(data)]) == 0
    told = capsys.readouterr().out
    assert "train: " in told
    assert "val: " in told
    assert "unknown_category" not in told
    assert main(["view", str(data), "--out", str(out / "view")]) == 0
    assert "val: 2 images, 2 objects" in capsys.readouterr().out

    assert train(data, run) == 0
    model = from_file(run / "config.json").model
    assert model.class_names == classes
    assert (
        model.category_ids
        == {"yolo": (0, 1), "cityscapes": (3, 5)}.get(kind.removesuffix("_folders"), (1, 2))[: len(classes)]
    )
    assert "validation: 2 images, 2 objects" in capsys.readouterr().out

    words = ["--data", str(data), "--model", str(run), "--device", "cpu"]
    per_class = out / "per_class.json"
    assert main(["evaluate", *words, "--per-class-json", str(per_class)]) == 0
    assert "val part" in capsys.readouterr().err
    counts = {name: n["objects"] for name, n in json.loads(per_class.read_text())["segm"].items()}
    assert counts == ({"ant": 0, "bee": 2} if len(classes) == 2 else {"object": 2})

    photos = [str(p) for p in data.rglob("*.*") if p.suffix in (".png", ".jpg") and p.stem[0] in "de"][:1]
    assert main(["predict", *photos, *words, "--out", str(out / "predict")]) == 0
    found = json.loads((out / "predict" / "predictions.json").read_text())
    assert {entry["category_id"] for entry in found} <= set(model.category_ids)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_model_of_the_training_part_alone_is_scored_on_the_other(kind: str, tmp_path: Path) -> None:
    data, run, per_class = write_set(tmp_path / "set", kind, "train"), tmp_path / "run", tmp_path / "numbers"
    assert train(data, run, "--data.val_fraction", "0", "--train.iterations", "1") == 0
    write_set(data, kind)
    words = ["--data", str(data), "--model", str(run), "--device", "cpu"]
    assert main(["evaluate", *words, "--split", "val", "--per-class-json", str(per_class)]) == 0
    counts = {name: n["objects"] for name, n in json.loads(per_class.read_text())["segm"].items()}
    assert counts["object" if kind == "instances" else "bee"] == 2


def test_a_coco_json_is_scored_by_names_whatever_its_ids(tmp_path: Path, capsys: Captured) -> None:
    data, run, out = write_set(tmp_path / "set", "coco"), tmp_path / "run", tmp_path / "out"
    labels = data / "annotations" / "val.json"
    assert train(data, run, "--train.iterations", "1") == 0
    words = ["--data", str(labels), "--model", str(run), "--device", "cpu"]
    saved = tmp_path / "results.json"
    assert main(["evaluate", *words, "--save-results", str(saved)]) == 0
    with_ids = {e["category_id"] for e in json.loads(saved.read_text())}
    assert with_ids <= {7, 1}  # ant and bee there, where the model's own are 1 and 2
    assert main(["predict", str(data / "val" / "d.png"), *words, "--out", str(out)]) == 0
    assert {e["category_id"] for e in json.loads((out / "predictions.json").read_text())} <= {7, 1}

    content = json.loads(labels.read_text())
    content["categories"][1]["name"] = "wasp"
    labels.write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["evaluate", *words]) == 2
    assert "expected classes that the model knows (ant, bee), got 'wasp'" in capsys.readouterr().err
    use = ["predict", str(data / "val" / "d.png"), *words, "--out", str(out)]
    assert main(use) == 0  # the bee keeps its own id, 2, which is nobody's there
    content["categories"][0]["id"] = 2
    labels.write_text(json.dumps(content))
    assert main(use) == 2
    assert (
        "expected all classes of the model, got no 'bee', whose id 2 is another's" in capsys.readouterr().err
    )
