"""`maskrcnn predict`: the outside contract, exit statuses, mistakes found before the model is loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn import zoo
from maskrcnn.cli.main import main


@pytest.fixture
def model(monkeypatch):
    """Tiny random model that `zoo.load` gives for the name `tiny`; it finds things everywhere."""
    torch.manual_seed(0)
    model = zoo.build("mask_rcnn_R_50_FPN_1x", num_classes=3, tiny=True).eval()
    model.config.box_head.score_threshold = 0.0
    model.config.box_head.detections_per_image = 7
    calls = []

    def load(name, weights=None, device=None, precision="fp32", engine=None):
        calls.append((name, weights, device, precision))
        return model

    monkeypatch.setattr(zoo, "load", load)
    model.calls = calls  # pyright: ignore[reportArgumentType]
    return model


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("one.png", "two.jpg"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (50, 60, 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def predict(*words: object) -> int:
    return main(["predict", *map(str, words), "--model", "tiny", "--min-size", "64", "--max-size", "64"])


def test_a_folder_is_predicted_and_drawn(model, photos, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert predict(photos, "--out", out, "--weights", "w.pkl", "--precision", "bf16", "--device", "cpu") == 0
    assert model.calls == [("tiny", "w.pkl", "cpu", "bf16")]
    entries = json.loads((out / "predictions.json").read_text())
    assert [e["image_id"] for e in entries] == ["one"] * 7 + ["two"] * 7
    assert {e["category_id"] for e in entries} <= {0, 1, 2}
    assert all(e["segmentation"]["size"] == [50, 60] for e in entries)
    assert {p.name for p in out.iterdir()} == {"one.jpg", "two.jpg", "predictions.json"}
    captured = capsys.readouterr()
    assert "2 images, 14 detections" in captured.out
    assert captured.err == ""


def test_a_broken_file_is_reported_skipped_and_told_by_the_status(model, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    assert predict(photos, "--out", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "skipped:" in captured.err
    assert "broken.jpg" in captured.err
    assert "1 of 3 files skipped" in captured.out
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 14


def test_no_draw_and_the_score_threshold(model, photos, tmp_path):
    assert (
        predict(photos / "one.png", "--out", tmp_path / "out", "--no-draw", "--score-threshold", "0.999") == 0
    )
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["predictions.json"]


def test_the_data_set_gives_ids(model, photos, tmp_path):
    model.config.class_names = ("a", "b", "c")
    categories = [{"id": i, "name": name} for i, name in zip((90, 5, 61), "abc", strict=True)]
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    assert predict(photos, "--out", tmp_path / "out", "--data", data) == 0
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {e["category_id"] for e in entries} <= {5, 61, 90}
    assert (model.config.class_names, model.config.category_ids) == (("a", "b", "c"), (90, 5, 61))


def test_the_data_set_gives_names_to_a_model_without(model, photos, tmp_path):
    categories = [{"id": i, "name": f"thing {i}"} for i in (90, 5, 61)]
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    assert predict(photos, "--out", tmp_path / "out", "--data", data) == 0
    assert model.config.class_names == ("thing 5", "thing 61", "thing 90")
    assert model.config.category_ids == (5, 61, 90)


def test_a_data_set_of_other_classes_is_refused(model, photos, tmp_path, capsys):
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}))
    assert predict(photos, "--out", tmp_path / "out", "--data", data) == 2
    assert "expected the model's 3 classes, got 1" in capsys.readouterr().err
    model.config.class_names = ("a", "b", "c")
    assert predict(photos, "--out", tmp_path / "out", "--data", data) == 2
    assert "expected classes that the model knows (a, b, c), got 'x'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["PHOTOS/on.png", "--out", "OUT"], "Did you mean 'one.png'"),
        (["PHOTOS/*.webp", "--out", "OUT"], "got no match"),
        (["PHOTOS", "--out", "PHOTOS/one.png"], "expected a folder to write in, got a file"),
        (["PHOTOS", "--out", "PHOTOS"], "would replace an input"),
        (["PHOTOS", "--out", "OUT", "--data", "OUT/none.json"], "no such file"),
        (["PHOTOS", "--out", "OUT", "--batch-size", "0"], "expected a whole number from 1"),
        (["PHOTOS", "--out", "OUT", "--score-threshold", "50"], "expected a number from 0 to 1"),
        (["PHOTOS", "--out", "OUT", "--num-thread", "2"], "Did you mean '--num-threads'"),
        (["PHOTOS"], "required: --out"),
    ],
)
def test_mistakes_are_one_line_and_found_before_the_model_is_loaded(
    model, photos, tmp_path, capsys, words, message
):
    words = [w.replace("PHOTOS", str(photos)).replace("OUT", str(tmp_path / "out")) for w in words]
    assert predict(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert model.calls == []
    assert not (tmp_path / "out" / "predictions.json").exists()
    assert sorted(p.name for p in photos.iterdir()) == ["one.png", "two.jpg"]


def test_threads_are_set(model, photos, tmp_path):
    before = torch.get_num_threads()
    try:
        assert predict(photos, "--out", tmp_path / "out", "--num-threads", "1", "--batch-size", "2") == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_tiles_are_put_together_and_leave_nothing_behind(model, photos, tmp_path, capsys):
    out = tmp_path / "out"
    (photos / "broken.png").write_bytes(b"no picture")
    assert predict(photos, "--out", out, "--tile", 40, "--overlap", 16) == 1
    captured = capsys.readouterr()
    assert "skipped: " in captured.err
    assert "broken.png" in captured.err
    assert "2 images" in captured.out
    first = json.loads((out / "predictions.json").read_text())
    assert {e["image_id"] for e in first} == {"one", "two"}
    assert all(e["segmentation"]["size"] == [50, 60] for e in first)
    (photos / "broken.png").unlink()
    assert predict(photos, "--out", out, "--tile", 40, "--overlap", 16, "--resume") == 0
    assert json.loads((out / "predictions.json").read_text()) == first
    assert [p.name for p in out.iterdir()] == ["predictions.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--overlap", 32], "expected --tile SIZE"),
        (["--tile", 64, "--overlap", 40], "overlap: expected 16 to 32 pixels"),
    ],
)
def test_tiles_that_cannot_be_are_refused_before_the_model_is_loaded(
    model, photos, tmp_path, words, message, capsys
):
    assert predict(photos, "--out", tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not model.calls


def georeferenced(path, crs: str | None = "EPSG:32633"):
    """Write a GeoTIFF of noise, 50 x 60 pixels of half a metre, whose right half has no data."""
    rasterio = pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).integers(1, 255, (3, 50, 60), dtype=np.uint8)
    pixels[..., 30:] = 0
    options = {"transform": rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000), "nodata": 0}
    with rasterio.open(
        path, "w", driver="GTiff", height=50, width=60, count=3, dtype="uint8", crs=crs, **options
    ) as file:
        file.write(pixels)
    return path


def test_a_raster_gives_geojson_where_it_lies(model, tmp_path):
    path, out = georeferenced(tmp_path / "ortho.tif"), tmp_path / "out"
    words = ["--format", "geojson,coco", "--crs", "raster", "--tile", 40, "--overlap", 16]
    assert predict(path, "--out", out, *words) == 0
    found = json.loads((out / "ortho.geojson").read_text())
    assert len(found["features"]) == len(json.loads((out / "predictions.json").read_text())) > 0
    assert found["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    places = np.concatenate([ring for f in found["features"] for ring in rings(f["geometry"])])
    assert (places.min(0) >= [500_000, 4_999_975]).all()
    assert (places.max(0) <= [500_015, 5_000_000]).all()  # the half with data


def rings(geometry):
    parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    return [ring for part in parts for ring in part]


def test_geojson_of_photographs_is_in_pixels(model, photos, tmp_path):
    pytest.importorskip("rasterio")
    assert predict(photos, "--out", tmp_path / "out", "--format", "geojson", "--no-draw") == 0
    for name in ("one", "two"):
        found = json.loads((tmp_path / "out" / f"{name}.geojson").read_text())
        places = np.concatenate([ring for f in found["features"] for ring in rings(f["geometry"])])
        assert (places >= 0).all()
        assert (places <= [60, 50]).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "geojson", "--crs", "wgs84"], "ortho.tif: expected a CRS, to tell places in WGS 84"),
        (["--crs", "raster"], "--crs: expected --format geojson with it"),
        (["--level", 1], "expected --tile SIZE with them"),
        (["--level", -1, "--tile", 64], "--level: expected a whole number from 0, got -1"),
        (["--level", 1, "--tile", 64, "--format", "labelme"], "--format labelme: expected --level 0 with it"),
    ],
)
def test_places_that_cannot_be_told_are_refused_before_the_model_is_loaded(
    model, tmp_path, words, message, capsys
):
    path = georeferenced(tmp_path / "ortho.tif", crs=None)
    assert predict(path, "--out", tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not model.calls


def test_zarr_is_looked_at_in_tiles(model, tmp_path, capsys):
    zarr = pytest.importorskip("zarr")
    pixels = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)
    zarr.create_array(tmp_path / "cells.zarr", data=pixels, chunks=(32, 32, 3))
    assert predict(tmp_path / "cells.zarr", "--out", tmp_path / "out") == 2
    assert "cells.zarr: expected --tile SIZE with Zarr, got none. Add it." in capsys.readouterr().err
    assert predict(tmp_path / "cells.zarr", "--out", tmp_path / "out", "--tile", 40, "--overlap", 16) == 0
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {e["image_id"] for e in entries} == {"cells"}
    assert predict(tmp_path / "cells.zarr", "--out", tmp_path / "out", "--tile", 40, "--level", 1) == 1
    assert "cells.zarr: expected a level from 0 to 0, got 1." in capsys.readouterr().err
