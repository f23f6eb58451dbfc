"""Parquet: whole parts, a row a picture, runs that go on, and shares of a list."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn.errors import UserError
from maskrcnn.masks import rle_decode
from maskrcnn.predict import read_shard, sharded, write_predictions
from maskrcnn.predict.formats import parquet as form
from tests.predict.formats.test_labelling_tools import H, W, found

parquet = pytest.importorskip("pyarrow.parquet", reason="extra parquet")
dataset = pytest.importorskip("pyarrow.dataset")


def table(out: Path) -> list[dict[str, Any]]:
    return dataset.dataset(out / form.FOLDER).to_table().to_pylist()


def test_a_row_a_picture_also_of_an_empty_or_a_failed_one(tmp_path: Path) -> None:
    some = found([0.9, 0.5])
    results = [
        (Path("a/x.png"), some),
        (Path("b/x.png"), found([])),
        (Path("c.png"), UserError("c.png: cannot read the image: cut off.")),
    ]
    written = write_predictions(
        results, tmp_path, formats=("parquet",), class_names=("cat", "dog"), draw=False
    )
    assert (written.num_images, written.num_failed, written.num_detections) == (2, 1, 2)
    first, empty, failed = table(tmp_path)
    assert (first["image"], first["image_id"], first["height"], first["width"]) == ("a/x.png", "x", H, W)
    assert first["error"] is None
    assert np.array(first["boxes"]) == pytest.approx(some.boxes.numpy())
    assert first["scores"] == pytest.approx([0.9, 0.5])
    assert (first["labels"], first["categories"]) == ([0, 1], ["cat", "dog"])
    masks = [rle_decode({"size": [H, W], "counts": counts}) for counts in first["rle_counts"]]
    assert np.array_equal(masks, np.asarray(some.masks))
    assert (empty["boxes"], empty["rle_counts"], empty["error"]) == ([], [], None)
    assert failed["error"] == "c.png: cannot read the image: cut off."
    assert failed["height"] is failed["boxes"] is failed["rle_counts"] is None


def test_parts_are_whole_and_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "ROWS", 3)
    paths = [Path(f"{k}.png") for k in range(8)]

    def until(number: int) -> Any:
        for k, path in enumerate(paths):
            if k == number:
                raise KeyboardInterrupt
            yield path, UserError("2.png: broken.") if k == 2 else found([0.5])

    how: dict[str, Any] = {"formats": ("parquet",), "settings": "these", "shard": (1, 2), "draw": False}
    with pytest.raises(KeyboardInterrupt):
        write_predictions(until(7), tmp_path, **how, num_threads=1)
    folder = tmp_path / form.FOLDER
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert sorted(before)[0] == "part-1-of-2-00000.parquet"
    done = form.done(tmp_path, "these")
    assert {f"{k}.png" for k in range(4)} <= done < {str(p) for p in paths}
    left = [(p, found([0.5])) for p in paths if str(p) not in done]
    write_predictions(left, tmp_path, **how)
    assert sorted(row["image"] for row in table(tmp_path)) == [str(p) for p in paths]
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    (folder / ".part-00002.123.abc.tmp.parquet").write_bytes(before["part-1-of-2-00000.parquet"])
    (folder / "part-1-of-2-00000.parquet").rename(tmp_path / "away")
    assert not {"0.png", "1.png"} & form.done(tmp_path, "these")  # a killed run's leftover does not count
    (tmp_path / "away").rename(folder / "part-1-of-2-00000.parquet")
    with pytest.raises(UserError, match="with other settings"):
        form.done(tmp_path, "others")
    (folder / "part-1-of-2-00000.parquet").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"00000\.parquet: cannot read: .* Remove it"):
        form.done(tmp_path, "these")


def test_shares_are_of_paths_alone() -> None:
    paths = [Path(f"photos/{k:05}.jpg") for k in range(10_000)]
    shares = [sharded(paths, (i, 4)) for i in range(1, 5)]
    assert sorted(p for share in shares for p in share) == paths
    assert all(2300 < len(share) < 2700 for share in shares)
    assert sharded(paths[1::2], (2, 4)) == [p for p in shares[1] if p in set(paths[1::2])]
    assert sharded(paths, (1, 1)) == paths


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b", "1/0", "-1/3", "1/2/3", ""])
def test_other_shares_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected I/N with I from 1 to N"):
        read_shard(text)


RUN = """
import sys, torch
from maskrcnn import zoo
from maskrcnn.cli.main import main
torch.manual_seed(0)
model = zoo.build("mask_rcnn_R_50_FPN_1x", num_classes=3, tiny=True).eval()
model.config.box_head.score_threshold = 0.3
zoo.load = lambda *args, **how: model
sys.exit(main(["predict", *sys.argv[1:], "--model", "tiny", "--min-size", "32", "--max-size", "32"]))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_and_started_again_loses_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = []
    for k in range(300):
        folder = tmp_path / "in" / str(k % 3)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{k // 3:03}.png"  # the same names in each folder
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
        if k % 100 == 7:
            path.write_bytes(b"no picture")
        names.append(str(path))
    words = [str(tmp_path / "in" / "*" / "*.png"), "--out", str(tmp_path / "out"), "--format", "parquet"]
    command = [
        sys.executable,
        "-c",
        "from maskrcnn.predict.formats import parquet\nparquet.ROWS = 20\n" + RUN,
    ]
    command += [*words, "--no-draw"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    parts = tmp_path / "out" / form.FOLDER
    until = time.monotonic() + 60
    while len(list(parts.glob("*.parquet"))) < 2 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = len(list(parts.glob("*.parquet")))
    assert 2 <= before < 15
    again = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 1, again.stderr
    assert "of 300 images are done" in again.stderr
    rows = table(tmp_path / "out")
    assert sorted(r["image"] for r in rows) == sorted(names)
    assert sorted(r["image"] for r in rows if r["error"]) == sorted(names[7::100])
