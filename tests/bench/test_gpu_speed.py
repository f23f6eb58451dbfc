"""Measurements beside torchvision's model on a GPU, where memory runs out: the row says so, and the run goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import gpu_speed  # pyright: ignore[reportMissingImports]

    yield gpu_speed
    sys.modules.pop("gpu_speed")


class Runner:
    """Stand-in whose model is the number of calls that end well, after which memory runs out."""

    def __init__(self, model: Any, *_: Any) -> None:
        self.left = model

    def train(self) -> None:
        if self.left <= 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.left -= 1

    def detect(self, paste: bool = False) -> None:
        self.train()


@pytest.mark.parametrize(
    ("ours", "theirs", "fits"),
    [(99, 0, (True, False)), (0, 99, (False, True)), (99, 1, (True, False)), (0, 0, (False, False))],
)
def test_a_model_that_does_not_fit_ends_no_row(
    script: Any, monkeypatch: pytest.MonkeyPatch, ours: int, theirs: int, fits: tuple[bool, bool]
) -> None:
    monkeypatch.setattr(script, "Runner", Runner)
    row = script.measure_pair("training", "fp32", 4, (ours, theirs), script.SMOKE, CPU)
    for name, there in zip(("ours", "torchvision"), fits, strict=True):
        assert isinstance(row[f"{name}_images_a_second"], float if there else str), row


def test_other_errors_end_the_run(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "Runner", Runner)

    def broken(_: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(Runner, "train", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        script.measure_pair("training", "fp32", 4, (9, 9), script.SMOKE, CPU)


def test_rows_are_kept_as_they_come(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(*_: Any) -> Any:
        yield {"kind": "training", "precision": "bf16", "batch": 1, "ours_images_a_second": 7.5}
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "measure_models", rows)
    monkeypatch.setattr(
        sys, "argv", ["gpu_speed", "--device", "cpu", "--smoke", "--only", "models", "--out", str(tmp_path)]
    )
    with pytest.raises(KeyboardInterrupt):
        script.main()
    text = (tmp_path / "gpu_speed_models.md").read_text()
    assert "| bf16 | 1 | 7.5 | not measured |" in text
