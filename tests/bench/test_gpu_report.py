"""`maskrcnn bench --gpu-report`: the whole path on a CPU with a tiny model; page, charts and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn.bench import gpu_page, gpu_report
from maskrcnn.bench.card_file import file_name, read_report
from maskrcnn.bench.published import INFERENCE, SOURCES, TRAINING
from maskrcnn.cli.main import main
from maskrcnn.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TINY = ["bench", "--gpu-report", "--device", "cpu", "--tiny", "--models", "mask_rcnn_mobilenet_v2_FPN"]


@pytest.mark.slow
def test_whole_path_on_a_cpu_is_marked_as_a_trial_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*TINY, "--precisions", "bf16", "--out", str(tmp_path)]
    assert main(command) == 0
    (path,) = tmp_path.glob("*.json")
    report = read_report(path)
    assert (report["device"], report["tiny"]) == ("cpu", True)
    (row,) = report["rows"]
    assert (row["largest_batch"], row["largest_is_the_limit"]) == (3, True)
    assert [one["batch"] for one in row["training"]] == [1, 3]
    assert all(one["images_a_second"] > 0 for one in (*row["training"], *row["inference"]))
    assert row["training_from_files"]["images_a_second"] > 0
    assert row["inference"][0]["latency_ms"] > 0
    page = (tmp_path / "index.html").read_text()
    assert "Trial of the page" in page
    assert "at least 3" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing to fetch
    for chart in ("throughput.svg", "largest_batch.svg"):
        text = (tmp_path / chart).read_text()
        assert "(trial): maskrcnn" in text
        assert "prefers-color-scheme:dark" in text

    real, asked = gpu_report.in_process, []

    def facts_only(module: str, question: dict[str, Any], *rest: Any) -> Any:
        asked.append(question)
        return real(module, question, *rest)

    monkeypatch.setattr(gpu_report, "in_process", facts_only)
    assert main(command) == 0
    assert asked == [{"facts": "cpu"}]


def a_report(**row: Any) -> dict[str, Any]:
    task = {
        "size": [800, 1333],
        "workers": 8,
        "warm_up": 5,
        "iterations": 50,
        "seconds": 5.0,
        "engine": "eager",
    }
    return {
        "format": 1,
        "card": "NVIDIA <H100>",
        "device": "cuda",
        "memory_gib": 79.1,
        "driver": "580.1",
        "torch": "2.14.1",
        "cuda": "13.0",
        "tiny": False,
        "date": "2026-12-01",
        "rows": [{"model": "mask_rcnn_R_50_FPN_1x", "precision": "fp16", "error": None, "task": task, **row}],
    }


MEASURED = {
    "largest_batch": 57,
    "largest_is_the_limit": False,
    "training": [
        {"batch": 1, "images_a_second": 31.5, "iterations": 50, "peak_mib": 2100},
        {"batch": 57, "images_a_second": 88.25, "iterations": 50, "peak_mib": 79000},
    ],
    "training_from_files": {"batch": 16, "images_a_second": 61.0, "iterations": 40, "peak_mib": 30000},
    "inference": [
        {"batch": 1, "images_a_second": 95.0, "latency_ms": 10.25, "iterations": 50, "peak_mib": 900},
        {"batch": 8, "images_a_second": 205.0, "iterations": 50, "peak_mib": 5000},
    ],
}


def test_the_table_says_the_best_of_each() -> None:
    heads, (row,) = gpu_page.summary(a_report(**MEASURED))
    assert dict(zip(heads, row, strict=True)) == {
        "model": "R_50_FPN_1x",
        "precision": "fp16",
        "largest batch": "57",
        "training, images/s": "88.2",
        "from files, images/s": "61",
        "inference, images/s": "205",
        "latency, ms": "10.2",
        "training memory at the largest batch, MiB": "79,000",
    }


def test_a_measured_card_is_no_trial_and_its_name_is_escaped() -> None:
    page = gpu_page.page(a_report(**MEASURED))
    assert "Trial of the page" not in page
    assert "NVIDIA &lt;H100&gt;" in page
    assert "<H100>" not in page
    assert page.count("88.2") == 3  # table, chart, every batch


def test_a_precision_that_failed_is_told_with_its_reason() -> None:
    report = a_report(error="not one image of 800x1333 fits in 2.0 GiB of a card in fp16")
    assert "not measured: fp16, R_50_FPN_1x: not one image" in gpu_page.page(report)
    assert gpu_page.summary(report)[1] == [["R_50_FPN_1x", "fp16", "-", "-", "-", "-", "-", "-"]]


def test_published_figures_have_their_sources() -> None:
    assert {p.source for p in (*TRAINING, *INFERENCE)} == set(SOURCES)
    assert all(2018 < s.year < 2026 for s in SOURCES.values())
    chart = gpu_page.throughput_chart([]).content
    assert "8 x H100 SXM: MLPerf Training v3.0, 2023" in chart
    assert "RTX 2080 Ti: Lambda" in gpu_page.batch_chart([]).content


def test_the_manuals_page_is_what_the_results_make() -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "gpu_docs.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "88.2" in gpu_page.docs_page([a_report(**MEASURED)])
    assert "not measured" not in gpu_page.docs_page([a_report(**MEASURED)])


def test_files_are_named_after_the_card() -> None:
    assert file_name("NVIDIA H100 80GB HBM3", tiny=False) == "nvidia_h100_80gb_hbm3"
    assert file_name("NVIDIA H100 80GB HBM3", tiny=True) == "nvidia_h100_80gb_hbm3_tiny"


def test_another_file_is_not_taken_for_a_report(tmp_path: Path) -> None:
    for text in ('{"a": 1}', "[]", "{", json.dumps({"format": 1, "rows": [{}]})):
        (tmp_path / "card.json").write_text(text)
        with pytest.raises(UserError, match="expected a report of `bench --gpu-report`"):
            read_report(tmp_path / "card.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cpu"], "--gpu-report measures a GPU, got --device cpu"),
        (["--device", "cpu", "--tiny", "--max-batch", "0"], "--max-batch must be at least 1"),
        (["--device", "cpu", "--tiny", "--models", "mask_rcnn_R_50_FPN_2x"], "mask_rcnn_R_50_FPN_1x"),
    ],
)
def test_mistakes(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--gpu-report", *options, "--out", str(tmp_path / "new")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_gpu_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--gpu-report", "--out", str(tmp_path / "new")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no 'cuda' on this machine" in line
    assert not (tmp_path / "new").exists()


def test_a_card_too_small_for_one_image_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {k: v for k, v in a_report().items() if k not in ("format", "rows", "tiny", "date")}

    def too_small(module: str, question: dict[str, Any], *rest: Any) -> Any:
        return (facts if "facts" in question else {"error": "not one image of 800x1333 fits"}), None

    monkeypatch.setattr(gpu_report, "in_process", too_small)
    assert main(["bench", "--gpu-report", "--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "expected a GPU that the model fits, got none: not one image" in capsys.readouterr().err
