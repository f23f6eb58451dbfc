"""Trackers: each gets the config, numbers and pictures, without a network; one that fails ends no run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from maskrcnn.config import Config, TrainConfig, from_dict, override
from maskrcnn.errors import UserError
from maskrcnn.presets import get
from maskrcnn.training import trackers
from maskrcnn.training.runlog import RunLog
from tests.alone import run_alone

PICTURE = np.full((20, 30, 3), 200, np.uint8)


def fill(run: Path, names: tuple[str, ...]) -> list[str]:
    """Log a run of two lines and a picture, and return what was said."""
    run.mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    log = RunLog(run, resume_at=None, trackers=names, say=said.append)
    log.write("config", 0, config={"optim": {"lr": 0.5}})
    log.write("train", 20, losses={"loss_mask": 1.5}, loss=1.5, lr=0.01)
    log.trackers.pictures({"photo": PICTURE}, 20)
    log.write("train", 40, losses={"loss_mask": 1.0}, loss=1.0, lr=0.01)  # scores may come after later steps
    log.write("eval", 20, segm={"AP": 0.25, "AP75": float("nan")}, best=True)
    log.close()
    return said


def test_tensorboard_gets_numbers_pictures_and_the_config(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run_alone("tests.training.test_trackers", f"check_tensorboard({str(tmp_path)!r})")


def check_tensorboard(folder: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert fill(Path(folder), ("tensorboard",)) == []
    events = EventAccumulator(str(Path(folder) / "tensorboard")).Reload()
    assert events.Scalars("train/losses/loss_mask")[0].value == 1.5
    assert [(e.step, e.value) for e in events.Scalars("eval/segm/AP")] == [(20, 0.25)]
    assert "eval/segm/AP75" not in events.Tags()["scalars"]
    assert events.Images("predictions/photo")[0].width == 30
    assert "config/text_summary" in events.Tags()["tensors"]


def test_mlflow_gets_numbers_pictures_and_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_alone("tests.training.test_trackers", f"check_mlflow({str(tmp_path)!r})")


def check_mlflow(folder: str) -> None:
    import mlflow

    assert fill(Path(folder), ("mlflow",)) == []
    run = mlflow.get_run((Path(folder) / "mlflow_id").read_text())
    assert run.data.params["optim.lr"] == "0.5"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(20, 1.5), (40, 1.0)]
    assert run.data.metrics["eval/segm/AP"] == 0.25
    pictures = list((Path(folder) / "mlruns").rglob("artifacts/predictions/photo/0000020.png"))
    assert len(pictures) == 1
    log = RunLog(Path(folder), resume_at=20, trackers=("mlflow",))  # goes on in the same run
    log.write("train", 60, losses={}, loss=0.5, lr=0.01)
    log.close()
    assert (Path(folder) / "mlflow_id").read_text() == run.info.run_id
    assert mlflow.get_run(run.info.run_id).data.metrics["train/loss"] == 0.5


def test_wandb_offline_gets_numbers_pictures_and_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_alone("tests.training.test_trackers", f"check_wandb({str(tmp_path)!r})")


def check_wandb(folder: str) -> None:
    assert fill(Path(folder), ("wandb",)) == []
    (offline,) = (Path(folder) / "wandb").glob("offline-run-*")
    (record,) = offline.glob("*.wandb")
    # W&B's own process writes the file, and may still be at it when `finish` has returned.
    content, until = b"", time.monotonic() + 60
    missing = {b"train/losses/loss_mask", b"eval/segm/AP", b"optim.lr"}
    while missing and time.monotonic() < until:
        content = record.read_bytes()
        missing = {name for name in missing if name not in content}
        time.sleep(0.05)
    told = offline / "logs" / "debug-internal.log"
    assert not missing, (missing, len(content), told.read_text()[-2000:] if told.is_file() else "no log")
    before = (Path(folder) / "wandb_id").read_text()
    RunLog(Path(folder), resume_at=20, trackers=("wandb",)).close()
    assert (Path(folder) / "wandb_id").read_text() == before
    assert list(offline.rglob("predictions/photo_*.png"))


class Failing:
    def __init__(self, run: Path, resume_at: int | None) -> None: ...

    def config(self, flat: object) -> None: ...

    def numbers(self, values: object, iteration: int) -> None:
        raise ConnectionError("no route\nto host")

    def picture(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        raise AssertionError("left out by then")

    def close(self) -> None:
        raise AssertionError("left out by then")


def test_a_tracker_that_fails_is_told_once_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.KINDS, "wandb", Failing)
    said = fill(tmp_path, ("wandb",))
    assert said == ["tracker wandb: left out from now on: ConnectionError: no route to host"]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4


def test_a_missing_package_is_said_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trackio", None)
    with pytest.raises(UserError, match=r"pip install 'maskrcnn\[trackio\]'"):
        RunLog(tmp_path, resume_at=None, trackers=("trackio",))


def test_trackers_are_named_in_a_list_and_an_unknown_one_is_refused() -> None:
    config = get("mask_rcnn_R_50_FPN_1x", tiny=True)
    override(config, "train.trackers", "tensorboard,wandb")
    assert config.train.trackers == ("tensorboard", "wandb")
    override(config, "train.trackers", "mlflow")
    assert config.train.trackers == ("mlflow",)
    with pytest.raises(UserError, match="tensorboard"):
        override(config, "train.trackers", "neptune")


@pytest.mark.parametrize(("before", "now"), [(True, ("tensorboard",)), (False, ())])
def test_an_earlier_config_with_tensorboard_is_read(before: bool, now: tuple[str, ...]) -> None:
    from maskrcnn.config import to_dict

    values = json.loads(json.dumps(to_dict(get("mask_rcnn_R_50_FPN_1x", tiny=True))))
    del values["train"]["trackers"]
    values["train"]["tensorboard"] = before
    assert from_dict(Config, values, "config.json").train == TrainConfig(
        **{**to_dict(get("mask_rcnn_R_50_FPN_1x", tiny=True).train), "trackers": now}
    )
