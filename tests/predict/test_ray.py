"""Prediction with Ray Data on a cluster of this machine: what each picture holds is written once, whatever dies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn import zoo
from maskrcnn.weights.write import write_weights
from tests.predict.formats.test_parquet import table

pytest.importorskip("ray", reason="extra ray")
pytestmark = pytest.mark.slow

# In a process of its own: Ray's threads and warnings stay out of the other tests.
JOB = """
import json, os, sys, threading, time
import psutil, ray
from maskrcnn.errors import UserError
from maskrcnn.predict.formats import parquet
from maskrcnn.predict.ray import ModelSpec, predict_dataset

folder = sys.argv[1]
how = {"include_dashboard": False, "logging_level": "error", "log_to_driver": False}
ray.init(num_cpus=2, object_store_memory=100 << 20, **how)
ray.data.DataContext.get_current().enable_progress_bars = False
paths = json.load(open(folder + "/paths.json"))
spec = ModelSpec(folder + "/model.safetensors", device="cpu", engine="eager", min_size=64, max_size=64)
killed = []

def kill_one():
    while not list(parquet.Path(folder, "out", parquet.FOLDER).glob("*.parquet")):
        time.sleep(0.01)
    for process in psutil.process_iter(["name", "cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::MapWorker"):
            process.kill()
            killed.append(process.pid)
            return

def job(source, out, **how):
    counts = predict_dataset(source, folder + out, spec, actors=2, rows_per_part=5, batch_size=2, **how)
    return [counts.images, counts.failed, counts.before]

threading.Thread(target=kill_one, daemon=True).start()
first = job(paths, "/out")
again = job(paths, "/out")
rows = [{"content": open(path, "rb").read(), "key": os.path.basename(path)} for path in paths[:12]]
of_bytes = job(ray.data.from_items(rows), "/bytes", image="content", name="key")
os.utime(folder + "/model.safetensors", (0, 0))
try:
    refused = str(job(paths, "/out"))
except UserError as e:
    refused = str(e)
told = {"killed": len(killed), "first": first, "again": again, "bytes": of_bytes, "another model": refused}
json.dump(told, open(folder + "/told.json", "w"))
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a tiny model and 60 pictures, the seventh of which is broken."""
    folder = tmp_path_factory.mktemp("ray")
    torch.manual_seed(0)
    model = zoo.build("mask_rcnn_R_50_FPN_1x", num_classes=3, tiny=True)
    model.config.class_names = ("a", "b", "c")
    model.config.box_head.score_threshold = 0.0
    model.config.box_head.detections_per_image = 7
    write_weights(folder / "model.safetensors", model.state_dict(), model.config)
    rng = np.random.default_rng(0)
    paths = [folder / "in" / f"{k:02}.png" for k in range(60)]
    (folder / "in").mkdir()
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(path)
    paths[7].write_bytes(b"no picture")
    (folder / "paths.json").write_text(json.dumps([*map(str, paths)]))
    return folder


def test_each_picture_once_whatever_dies_and_nothing_twice(job: Path) -> None:
    paths = json.loads((job / "paths.json").read_text())
    done = subprocess.run([sys.executable, "-c", JOB, job], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((job / "told.json").read_text())
    assert told["killed"] == 1
    assert told["first"][2] == 0
    assert told["again"] == [0, 0, 60]
    assert told["bytes"] == [11, 1, 0]
    assert "was written by another version or with other settings" in told["another model"]
    rows = table(job / "out")
    assert sorted(row["image"] for row in rows) == paths
    by_name = {row["image"]: row for row in rows}
    assert by_name[paths[7]]["error"].startswith(f"{paths[7]}: cannot read the image")
    model = zoo.load(job / "model.safetensors", device="cpu", engine="eager")
    for path in (paths[0], paths[59]):
        alone: Any = model.predict(path, min_size=64, max_size=64)
        row = by_name[path]
        assert len(alone) > 0
        assert np.array(row["boxes"]) == pytest.approx(alone.boxes.numpy(), abs=0.01)
        assert row["categories"] == [alone.class_names[k] for k in alone.labels.tolist()]
        assert len(row["rle_counts"]) == len(alone)
    of_bytes = {row["image"]: row for row in table(job / "bytes")}
    assert sorted(of_bytes) == [f"{k:02}.png" for k in range(12)]
    assert of_bytes["00.png"]["rle_counts"] == by_name[paths[0]]["rle_counts"]
