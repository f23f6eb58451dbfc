"""`maskrcnn evaluate`: both forms, what they write, and that mistakes are told before the work."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn.cli.main import main
from maskrcnn.masks import rle_encode

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures with an object in each, data.json and perfect results.json."""
    rng = np.random.default_rng(0)
    bitmap = np.zeros((48, 64), np.uint8)
    bitmap[10:40, 20:50] = 1
    box, rle = [20, 10, 30, 30], rle_encode(bitmap)
    (tmp_path / "images").mkdir()
    data: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "[bold]cat"}]}
    results = []
    for i, name in enumerate(("a", "b"), start=1):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(tmp_path / f"images/{name}.png")
        data["images"].append({"id": i, "file_name": f"{name}.png", "height": 48, "width": 64})
        entry = {"image_id": i, "category_id": 5, "bbox": box, "segmentation": rle}
        data["annotations"].append({**entry, "id": i, "area": 900, "iscrowd": 0})
        results.append({**entry, "image_id": name, "score": 0.9})
    (tmp_path / "data.json").write_text(json.dumps(data))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def evaluate(folder: Path, *options: str | Path) -> int:
    return main(["evaluate", "--data", str(folder / "data.json"), *map(str, options)])


class TestResults:
    def test_numbers_are_written_and_shown(self, folder: Path, capsys: Captured) -> None:
        outputs = [folder / "out" / name for name in ("numbers.json", "classes.json", "curves.svg")]
        options = ("--json", outputs[0], "--per-class-json", outputs[1], "--curves", outputs[2])
        assert evaluate(folder, "--results", folder / "results.json", *options) == 0
        numbers = json.loads(outputs[0].read_text())
        assert list(numbers) == ["bbox", "segm"]
        assert all(list(kind) == NAMES for kind in numbers.values())
        assert numbers["segm"]["AP"] == pytest.approx(1.0)
        assert numbers["segm"]["APl"] == -1
        assert json.loads(outputs[1].read_text())["segm"]["[bold]cat"]["objects"] == 2
        assert outputs[2].read_text().startswith("<svg")
        shown = capsys.readouterr()
        assert shown.err == ""
        for word in ("boxes", "masks", "[bold]cat", "AP50", "1.000", "-1.000"):
            assert word in shown.out

    def test_segmentation_alone_is_segm(self, folder: Path) -> None:
        results = json.loads((folder / "results.json").read_text())
        (folder / "masks.json").write_text(
            json.dumps([{**r, "bbox": None} for r in results]).replace('"bbox"', '"x"')
        )
        assert evaluate(folder, "--results", folder / "masks.json", "--json", folder / "out.json") == 0
        assert list(json.loads((folder / "out.json").read_text())) == ["segm"]

    def test_chosen_kinds(self, folder: Path) -> None:
        options = ("--results", folder / "results.json", "--json", folder / "out.json", "--kinds", "bbox")
        assert evaluate(folder, *options) == 0
        assert list(json.loads((folder / "out.json").read_text())) == ["bbox"]

    def test_the_limit_is_an_option_and_warned_of(self, folder: Path, capsys: Captured) -> None:
        data = json.loads((folder / "data.json").read_text())
        data["annotations"] = [{**data["annotations"][0], "id": i} for i in range(150)]
        (folder / "data.json").write_text(json.dumps(data))
        options = ("--results", folder / "results.json", "--json", folder / "out.json")
        assert evaluate(folder, *options) == 0
        assert capsys.readouterr().err.startswith(
            "warning: 1 of 2 images have more than 100 objects (image 1: 150)"
        )
        assert evaluate(folder, *options, "--max-detections", "400") == 0
        assert capsys.readouterr().err == ""
        assert list(json.loads((folder / "out.json").read_text())["segm"])[8] == "AR400"

    def test_published_results(self, shared: Path, tmp_path: Path) -> None:
        d, out = shared / "data/coco_eval", tmp_path / "out.json"
        options = ["--results", str(d / "instances_val2014_fakesegm100_results.json"), "--json", str(out)]
        assert main(["evaluate", "--data", str(d / "instances_val2014_100.json"), *options]) == 0
        assert json.loads(out.read_text())["segm"]["AP"] == pytest.approx(0.3195452758576433, abs=1e-10)


class TestModel:
    @staticmethod
    def write_model(tmp_path: Path, name: str) -> Path:
        from maskrcnn import presets
        from maskrcnn.models.build import build_model
        from maskrcnn.weights.write import write_weights

        torch.manual_seed(0)
        config = presets.get(name, tiny=True).model
        config.num_classes, config.class_names, config.category_ids = 1, ("[bold]cat",), (5,)
        config.input.min_size = config.input.max_size = 64
        config.box_head.score_threshold = 0.0  # random weights find something
        write_weights(tmp_path / "model.safetensors", build_model(config).state_dict(), config)
        return tmp_path / "model.safetensors"

    @pytest.fixture
    def weights(self, tmp_path: Path) -> Path:
        return self.write_model(tmp_path, "mask_rcnn_R_50_FPN_3x")

    def test_is_scored_by_what_its_heads_find(self, folder: Path, tmp_path: Path, capsys: Captured) -> None:
        weights = self.write_model(tmp_path, "keypoint_rcnn_R_50_FPN_3x")
        options = ("--images", folder / "images", "--model", weights, "--device", "cpu")
        assert evaluate(folder, *options) == 2
        assert "expected key points, which the model finds, got none. Use --kinds bbox." in one_line(capsys)
        assert evaluate(folder, *options, "--kinds", "segm") == 2
        assert "expected some of what the model finds, bbox, keypoints" in one_line(capsys)

        data = json.loads((folder / "data.json").read_text())
        for annotation in data["annotations"]:
            annotation["keypoints"] = [30, 20, 2] * 17
        (folder / "data.json").write_text(json.dumps(data))
        assert evaluate(folder, *options, "--json", folder / "out.json") == 0
        numbers = json.loads((folder / "out.json").read_text())
        assert list(numbers) == ["bbox", "keypoints"]
        names = [f"{n}{suffix}" for n in ("AP", "AR") for suffix in ("", "50", "75", "m", "l")]
        assert list(numbers["keypoints"]) == names

    def test_is_not_run_where_the_data_is_wrong(self, folder: Path, weights: Path, capsys: Captured) -> None:
        data = json.loads((folder / "data.json").read_text())
        data["annotations"][1]["segmentation"] = {"size": [1, 1], "counts": "1"}
        (folder / "data.json").write_text(json.dumps(data))
        assert evaluate(folder, "--model", weights, "--images", folder / "none") == 2
        assert "annotation 2: expected a mask of the image's size [48, 64]" in one_line(capsys)

    def test_is_run_over_the_data_set(self, folder: Path, weights: Path) -> None:
        out, saved = folder / "out.json", folder / "found.json"
        options = ("--images", folder / "images", "--model", weights, "--device", "cpu")
        assert evaluate(folder, *options, "--json", out, "--save-results", saved) == 0
        numbers = json.loads(out.read_text())
        assert [list(kind) for kind in numbers.values()] == [NAMES, NAMES]
        found = json.loads(saved.read_text())
        assert {r["image_id"] for r in found} == {1, 2}
        assert {r["category_id"] for r in found} == {5}
        again = folder / "again.json"
        assert evaluate(folder, "--results", saved, "--json", again) == 0
        assert json.loads(again.read_text()) == numbers

    def test_objects_of_a_class_that_it_does_not_know_are_refused(
        self, folder: Path, weights: Path, capsys: Captured
    ) -> None:
        data = json.loads((folder / "data.json").read_text())
        data["categories"].append({"id": 6, "name": "dog"})
        data["annotations"][0]["category_id"] = 6
        (folder / "data.json").write_text(json.dumps(data))
        assert evaluate(folder, "--images", folder / "images", "--model", weights, "--device", "cpu") == 2
        assert "expected classes that the model knows ([bold]cat), got 'dog'" in one_line(capsys)


def one_line(capsys: Captured) -> str:
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


class TestMistakes:
    def test_neither_or_both(self, folder: Path, capsys: Captured) -> None:
        assert evaluate(folder) == 2
        assert "expected either --results or --model, got none" in one_line(capsys)
        assert evaluate(folder, "--results", folder / "results.json", "--model", "x") == 2
        assert "got both" in one_line(capsys)
        assert evaluate(folder, "--results", folder / "results.json", "--images", folder) == 2
        assert "--images goes with --model" in one_line(capsys)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--max-detections", "5"), "expected more than 10, got 5"),
            (("--max-detections", "many"), "expected a whole number from 1, got 'many'"),
            (("--kinds", "mask"), "expected some of bbox, segm, keypoints, got 'mask'"),
        ],
    )
    def test_in_options(self, folder: Path, capsys: Captured, options: tuple[str, ...], message: str) -> None:
        assert evaluate(folder, "--results", folder / "results.json", *options) == 2
        assert message in one_line(capsys)

    @pytest.mark.parametrize("option", ["--json", "--per-class-json", "--curves"])
    def test_an_output_that_cannot_be_written_is_told_before_the_work(
        self, folder: Path, capsys: Captured, option: str
    ) -> None:
        results = folder / "results.json"
        results.write_text("broken")  # would be told if the work came first
        assert evaluate(folder, "--results", results, option, results / "out") == 2
        assert "cannot write" in one_line(capsys)
        assert evaluate(folder, "--results", results, option, folder) == 2
        assert "expected a file to write, got a folder" in one_line(capsys)

    def test_nothing_is_written_after_a_mistake(self, folder: Path, capsys: Captured) -> None:
        before = sorted(os.listdir(folder))
        (folder / "results.json").write_text('[{"image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4]}]')
        assert evaluate(folder, "--results", folder / "results.json", "--json", folder / "out.json") == 2
        assert "results.json: entry 0: expected 'score', got none" in one_line(capsys)
        assert sorted(os.listdir(folder)) == before


class TestReport:
    def test_of_results_has_the_page_its_numbers_and_pictures(self, folder: Path, capsys: Captured) -> None:
        results, out = folder / "results.json", folder / "report"
        found = json.loads(results.read_text())
        results.write_text(json.dumps(found[:1]))  # b's object is missed
        assert evaluate(folder, "--results", results, "--report", out, "--images", folder / "images") == 0
        assert f"report: {out / 'index.html'}" in capsys.readouterr().out.replace("\n", "")
        report = json.loads((out / "report.json").read_text())
        assert report["kind"] == "segm"
        assert report["scores"]["segm"]["AP"] == pytest.approx(report["intervals"]["AP"]["value"])
        assert report["causes"]["counts"]["missed"] == 1
        assert report["causes"]["worst"]["missed"] == [{"image_id": 2, "errors": 1}]
        assert report["confusion"]["counts"] == [[1, 1], [0, 0]]
        assert report["against"] is None
        page = (out / "index.html").read_text()
        assert "b.png: 1 object missed" in page
        assert "[bold]cat" in page
        # Again: an earlier report is replaced.
        assert evaluate(folder, "--results", results, "--report", out, "--kinds", "bbox") == 0
        assert json.loads((out / "report.json").read_text())["kind"] == "bbox"

    def test_without_the_images_has_no_pictures(self, folder: Path, capsys: Captured) -> None:
        for path in (folder / "images").iterdir():
            path.unlink()
        assert evaluate(folder, "--results", folder / "results.json", "--report", folder / "out") == 0
        assert capsys.readouterr().err.startswith("warning: no pictures in the report:")
        assert "<img" not in (folder / "out" / "index.html").read_text()

    def test_against_other_results(self, folder: Path) -> None:
        found = json.loads((folder / "results.json").read_text())
        (folder / "other.json").write_text(json.dumps(found[:1]))
        options = ("--report", folder / "out", "--against", folder / "other.json")
        assert evaluate(folder, "--results", folder / "results.json", *options) == 0
        difference = json.loads((folder / "out" / "report.json").read_text())["against"]["AP"]
        assert difference["value"] == pytest.approx(1 - 51 / 101)
        assert difference["low"] >= 0
        assert "Against other results" in (folder / "out" / "index.html").read_text()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--report", "."), "expected a new or empty folder, got one with other files"),
            (("--against", "other.json"), "--against goes with --report"),
            (
                ("--report", "out", "--against", "none.json"),
                "none.json: expected COCO results, got no such file",
            ),
            (
                ("--report", "out", "--against", "data.json"),
                "expected COCO results, a list of detections, got dict",
            ),
            (("--report", "out", "--against", "mask_rcnn"), "mask_rcnn"),
            (("--calibrate",), "--calibrate goes with --model RUN alone"),
        ],
    )
    def test_mistakes_are_told_before_the_work(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: Captured,
        options: tuple[str, ...],
        message: str,
    ) -> None:
        monkeypatch.chdir(folder)
        (folder / "results.json").write_text("broken")  # would be told if the work came first
        before = sorted(os.listdir(folder))
        assert evaluate(folder, "--results", folder / "results.json", *options) == 2
        assert message in one_line(capsys)
        assert sorted(os.listdir(folder)) == before

    def test_key_points_alone_have_none(self, shared: Path, tmp_path: Path, capsys: Captured) -> None:
        d = shared / "data/keypoints_eval"
        options = [
            "--results",
            str(d / "example_coco_preds.json"),
            "--kinds",
            "keypoints",
            "--report",
            str(tmp_path / "out"),
        ]
        assert main(["evaluate", "--data", str(d / "example_coco_val.json"), *options]) == 2
        assert (
            "--report and --calibrate are of masks or boxes: expected one of these, got key points alone"
            in capsys.readouterr().err
        )
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "part", ["nuclei/annotations/val.json", "coco/annotations/instances_val2017.json"]
    )
    def test_of_a_perfect_model_on_real_data(self, shared: Path, tmp_path: Path, part: str) -> None:
        path = shared / "data" / part
        data = json.loads(path.read_text())
        sizes = {i["id"]: [i["height"], i["width"]] for i in data["images"]}
        found = [
            {
                "image_id": a["image_id"],
                "category_id": a["category_id"],
                "score": 0.9,
                "segmentation": mask_of(a, sizes),
            }
            for a in data["annotations"]
            if not a.get("iscrowd")
        ]
        (tmp_path / "results.json").write_text(json.dumps(found))
        options = ["--results", str(tmp_path / "results.json"), "--max-detections", "400"]
        assert main(["evaluate", "--data", str(path), *options, "--report", str(tmp_path / "out")]) == 0
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["boundary"]["AP"] == pytest.approx(report["scores"]["segm"]["AP"])
        assert report["scores"]["segm"]["AP"] > 0.98
        assert report["counting"]["mean_error"] == 0
        assert sum(report["causes"]["costs"].values()) < 0.02


def mask_of(annotation: dict[str, Any], sizes: dict[int, list[int]]) -> dict[str, Any]:
    """An annotation's polygons or RLE, as the compressed RLE of results."""
    from maskrcnn.masks.coco_api import merge_polygons

    given, size = annotation["segmentation"], sizes[annotation["image_id"]]
    if isinstance(given, dict):
        return given
    rle = merge_polygons(given, (size[0], size[1]))
    return {
        "size": size,
        "counts": rle["counts"].decode() if isinstance(rle["counts"], bytes) else rle["counts"],
    }


class TestCalibration:
    def test_the_run_keeps_a_temperature_that_the_model_uses(self, folder: Path, capsys: Captured) -> None:
        from maskrcnn.ops.temperature import tempered
        from maskrcnn.zoo import load

        weights = TestModel.write_model(folder, "mask_rcnn_R_50_FPN_3x")
        options = (
            "--images",
            folder / "images",
            "--model",
            weights,
            "--device",
            "cpu",
            "--nms-threshold",
            "0.95",
        )
        data = json.loads((folder / "data.json").read_text())
        # Something is right: what the model finds first is the truth.
        assert evaluate(folder, *options, "--save-results", folder / "found.json") == 0
        first = {r["image_id"]: r for r in reversed(json.loads((folder / "found.json").read_text()))}
        for annotation in data["annotations"]:
            annotation |= {k: first[annotation["image_id"]][k] for k in ("bbox", "segmentation")}
        (folder / "data.json").write_text(json.dumps(data))
        capsys.readouterr()
        assert evaluate(folder, *options, "--calibrate", "--kinds", "bbox") == 0
        assert f"calibrated: {weights} keeps the temperature" in capsys.readouterr().out
        kept = load(weights).config.box_head
        assert kept.temperature != 1
        assert kept.nms_threshold == 0.5  # the run's own, not the command line's
        before = json.loads((folder / "found.json").read_text())
        assert evaluate(folder, *options, "--save-results", folder / "found.json") == 0
        after = json.loads((folder / "found.json").read_text())
        assert [r["bbox"] for r in after] == [r["bbox"] for r in before]
        scores, raw = (np.array([r["score"] for r in found]) for found in (after, before))
        assert scores == pytest.approx(tempered(raw, kept.temperature), abs=1e-5)

    def test_a_published_model_by_name_cannot_keep_it(self, folder: Path, capsys: Captured) -> None:
        options = ("--images", folder / "images", "--model", "mask_rcnn_R_50_FPN_3x", "--calibrate")
        assert evaluate(folder, *options) == 2
        assert "expected a run's folder or a safetensors file of ours" in one_line(capsys)
