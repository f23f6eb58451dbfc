"""`maskrcnn bench`: every measurement in a process of its own, kept and gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskrcnn.bench import measure as bench
from maskrcnn.cli.main import main

MODEL = "mask_rcnn_mobilenet_v2_FPN"
SMALL = ["--tiny", "--size", "64", "96", "--repeats", "1", "--num-threads", "1"]


@pytest.mark.slow
def test_measures_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["bench", "--models", MODEL, "--modes", "inference", "training", *SMALL, "--out", str(tmp_path)]
    assert main(command) == 0
    found = [bench.from_dict(values) for values in json.loads((tmp_path / "bench.json").read_text())]
    assert [m.task.mode for m in found] == ["inference", "training"]
    for m in found:
        assert m.error is None
        assert m.seconds is not None
        assert m.seconds > 0
        assert m.memory_mib is not None
        assert m.memory_mib > 0
    assert MODEL in (tmp_path / "bench.md").read_text()
    assert (tmp_path / "bench.svg").read_text().count("<rect") == 1 + 2 + 2  # background, legend, bars

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(bench, "_in_process", refuse)
    assert main(command) == 0


@pytest.mark.slow
def test_one_that_fails_is_a_row_with_its_reason(tmp_path: Path) -> None:
    command = [
        "bench",
        "--models",
        MODEL,
        "--modes",
        "training",
        "--checkpointing",
        *SMALL,
        "--out",
        str(tmp_path),
    ]
    assert main(command) == 1
    (row,) = json.loads((tmp_path / "bench.json").read_text())
    assert "no gradient checkpointing" in row["error"]
    assert row["seconds"] is None


def test_time_out_is_a_row_too() -> None:
    (found,) = bench.measure_all([bench.Task(model=MODEL, tiny=True)], timeout=0.01)
    assert found.seconds is None
    assert found.error == "took more than 0 s"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "mask_rcnn_R_50_FPN_2x"], "mask_rcnn_R_50_FPN_1x"),
        (["--size", "0", "5"], "--size must be at least 1"),
        (["--device", "tpu"], "expected cpu, cuda"),
    ],
)
def test_mistakes(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options, "--out", str(tmp_path / "new")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_other_file_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bench.json").write_text('{"a": 1}')
    assert main(["bench", "--models", MODEL, "--tiny", "--out", str(tmp_path)]) == 2
    assert "expected the results of an earlier" in capsys.readouterr().err
    assert (tmp_path / "bench.json").read_text() == '{"a": 1}'
