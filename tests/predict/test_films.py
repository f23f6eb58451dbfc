"""Films: every frame in its order, tracks, broken frames, and files that are whole."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn.cli.main import main
from maskrcnn.errors import UserError
from maskrcnn.masks import PredictedMasks
from maskrcnn.predict.films import is_film, is_live, name_of, predict_film
from maskrcnn.structures import Instances

av: Any = pytest.importorskip("av", reason="extra video")
H, W = 96, 128


def make_film(path: Path, frames: int = 20, size: tuple[int, int] = (H, W)) -> Path:
    """Film of two bright squares on black: one goes right, one down; they do not meet."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"g": "5", "crf": "10"}
        for k in range(frames):
            pixels = np.zeros((*size, 3), np.uint8)
            pixels[10:26, 4 + 4 * k : 20 + 4 * k] = 250
            pixels[30 + 2 * k : 46 + 2 * k, 100:116] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


class Squares:
    """Model that finds connected bright places, in no particular order."""

    def __init__(self, hide: tuple[int, ...] = ()) -> None:
        self.hide, self.calls = hide, 0

    def predict(self, images: Any, /) -> Instances:
        from scipy import ndimage

        labelled: Any = ndimage.label(images.max(2) > 120)[0]  # pyright: ignore[reportGeneralTypeIssues, reportIndexIssue]
        boxes = [
            [s[1].start, s[0].start, s[1].stop, s[0].stop]
            for s in ndimage.find_objects(labelled)
            if s is not None
        ]
        boxes = [b for b in boxes if b[2] - b[0] > 8][:: -1 if self.calls % 2 else 1]
        if self.calls in self.hide:
            boxes = boxes[:1]
        self.calls += 1
        count = len(boxes)
        size = (images.shape[0], images.shape[1])
        tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        masks = PredictedMasks(torch.ones(count, 28, 28), tensor, size)
        return Instances(
            size,
            tensor,
            torch.full((count,), 0.9),
            torch.zeros(count, dtype=torch.int64),
            masks,
            class_names=("x",),
        )


def rows(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "predictions.json").read_text())


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]


def test_every_frame_is_looked_at_and_drawn(tmp_path: Path) -> None:
    film = make_film(tmp_path / "clip.mp4")
    told: list[tuple[int, int]] = []
    done = predict_film(Squares(), str(film), tmp_path / "out", progress=lambda *n: told.append(n))
    assert (done.frames, done.detections, done.broken, done.film) == (
        20,
        40,
        [],
        tmp_path / "out" / "clip.mp4",
    )
    assert told[-1] == (20, 20)
    assert [r["image_id"] for r in rows(tmp_path / "out")][::2] == [f"clip/{k:06d}" for k in range(20)]
    drawn, plain = frames_of(tmp_path / "out" / "clip.mp4"), frames_of(film)
    assert len(drawn) == 20
    assert drawn[0].shape == (H, W, 3)
    assert all(np.abs(a.astype(int) - b).max() > 60 for a, b in zip(drawn, plain, strict=True))
    with av.open(str(tmp_path / "out" / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 10)


def test_each_object_keeps_its_number_also_when_it_is_hidden_for_a_while(tmp_path: Path) -> None:
    film = make_film(tmp_path / "clip.mp4")
    done = predict_film(Squares(hide=(6, 7, 8)), str(film), tmp_path / "out", track=True)
    assert done.tracks == 2
    upper = {r["track_id"] for r in rows(tmp_path / "out") if r["bbox"][1] < 27 and r["bbox"][0] < 90}
    right = {r["track_id"] for r in rows(tmp_path / "out") if r["bbox"][1] > 28}
    assert len(upper) == len(right) == 1
    assert upper != right


def test_some_frames_and_odd_sides(tmp_path: Path) -> None:
    film = make_film(tmp_path / "clip.mp4")
    done = predict_film(Squares(), str(film), tmp_path / "out", every=6)
    assert done.frames == 4
    assert [r["image_id"] for r in rows(tmp_path / "out")][::2] == [f"clip/{k:06d}" for k in (0, 6, 12, 18)]
    with av.open(str(tmp_path / "out" / "clip.mp4")) as container:
        assert container.streams.video[0].duration * container.streams.video[0].time_base == pytest.approx(
            2.4
        )


def test_a_broken_frame_is_told_and_left_out(tmp_path: Path) -> None:
    film = make_film(tmp_path / "clip.ts", frames=40)
    content = bytearray(film.read_bytes())
    for packet in range(40, 60):  # of the transport stream, 188 bytes each: all but their heads
        content[188 * packet + 12 : 188 * (packet + 1)] = bytes([0xFF]) * 176
    film.write_bytes(content)
    told: list[int] = []
    done = predict_film(Squares(), str(film), tmp_path / "out", progress=lambda n, _: told.append(n))
    assert done.frames < 40
    assert done.broken
    assert all(line.startswith(f"{film}: frame ") for line in done.broken)
    assert told[-1] == 40  # frames keep their numbers
    assert len(frames_of(tmp_path / "out" / "clip.mp4")) == done.frames


def test_ctrl_c_closes_the_film(tmp_path: Path) -> None:
    class Interrupted(Squares):
        def predict(self, images: Any, /) -> Instances:
            if self.calls == 7:
                raise KeyboardInterrupt
            return super().predict(images)

    done = predict_film(Interrupted(), str(make_film(tmp_path / "clip.mp4")), tmp_path / "out")
    assert done.interrupted
    assert done.frames == len(frames_of(tmp_path / "out" / "clip.mp4")) == 7
    assert len(rows(tmp_path / "out")) == 14


def test_what_is_no_film_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film" * 100)
    with pytest.raises(UserError, match=r"broken\.mp4: cannot open the film"):
        predict_film(Squares(), str(broken), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for words, said in (
        (["clip.mp4", "a.jpg"], "expected films or pictures, got both"),
        (["clip.mp4", "--tile", "512"], "expected no --tile"),
        (["clip.mp4", "--format", "labelme"], "expected coco or parquet of a film"),
        (["a.jpg", "--track"], "expected a film with them"),
        (["x/clip.mp4", "y/clip.mov"], "expected films whose names differ"),
    ):
        assert main(["predict", *words, "--model", "m", "--out", str(tmp_path / "o")]) == 2
        assert said in capsys.readouterr().err


def test_names_of_films_cameras_and_streams() -> None:
    assert [is_film(s) for s in ("a.MP4", "0", "rtsp://host/live", "a.jpg", "photos/")] == [True] * 3 + [
        False
    ] * 2
    assert [is_live(s) for s in ("0", "http://host/cam.mjpg", "a.mp4")] == [True, True, False]
    assert [name_of(s) for s in ("in/a b.mp4", "0", "rtsp://host/live?x=1")] == ["a b", "camera-0", "live"]


def test_frames_that_were_looked_at_are_let_go(tmp_path: Path) -> None:
    seen: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    class Watching(Squares):
        def predict(self, images: Any, /) -> Instances:
            seen.append(weakref.ref(images))
            alive.append(sum(frame() is not None for frame in seen))
            return super().predict(images)

    predict_film(Watching(), str(make_film(tmp_path / "clip.mp4", frames=30)), tmp_path / "out")
    assert len(seen) == 30
    assert max(alive) <= 3
