"""Calls in a training step that would make the host wait for a GPU: none but the one with a reason here.

The step is the loop's own, in the fixed-size form that it takes on a GPU, run on the CPU.
"""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch

from maskrcnn import presets
from maskrcnn.models.build import build_model
from maskrcnn.training import trainer as loop
from maskrcnn.training.runlog import Display
from maskrcnn.training.trainer import Trainer
from tests.training.test_golden_losses import batches
from tests.waits import Waits

REASONS = {
    (
        "masks/ground_truth.py:rasterize",
        "rasterize",
    ): "what a CPU does; a GPU has kernels for polygons and bitmaps (tests/masks/test_*_triton.py)",
}


def trainer(out: Path, name: str, fixed_size: bool, precision: str = "fp32") -> Trainer:
    config = presets.get(name, tiny=True)
    config.train.precision = precision  # pyright: ignore[reportAttributeAccessIssue]
    config.model.num_classes, config.data.batch_size = 2, 2
    config.optim.clip_grad_norm, config.optim.lr = 1.0, 0.01
    torch.manual_seed(0)
    made = Trainer(
        build_model(config.model), config, out, batches=batches, display=Display(stream=io.StringIO())
    )
    made.model.fixed_size = fixed_size
    return made


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("mask_rcnn_R_50_FPN_1x", "fp32"),
        ("mask_rcnn_R_50_FPN_1x", "fp16"),  # with a gradient scaler
        ("cascade_mask_rcnn_R_50_FPN_1x", "fp32"),
    ],
)
def test_a_step_waits_for_nothing_but_what_has_a_reason(
    name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "check_settings", lambda *_: None)  # which refuses fp16 on a CPU
    run = trainer(tmp_path, name, fixed_size=True, precision=precision)
    batch = next(batches(0))
    run._step(*copy.deepcopy(batch), lr=0.01)  # what is made once is made
    with Waits() as waits:
        step = run._step(*batch, lr=0.01)
        step.any_not_finite()
    assert set(waits.found) == set(REASONS), waits.found


def test_the_finder_finds() -> None:
    x = torch.arange(4.0)
    with Waits() as waits:
        x.sum().item()
        x.tolist()
        x[x > 1]
        x.nonzero()
        bool(x.sum() > 1)
        torch.tensor([1.0], device="cpu")
        x.new_tensor([1.0])
        x.cpu().numpy()
        x.repeat_interleave(torch.tensor([1, 0, 2, 1]))
    kinds = {kind for _, kind in waits.found}
    assert kinds >= {
        "item",
        "tolist",
        "boolean index",
        "nonzero",
        "torch.tensor on the device",
        "new_tensor",
        "cpu",
        "numpy",
    }
    with Waits() as waits:
        (x[torch.tensor([0, 1])] + x[:2]).sum().to("cpu", non_blocking=True)
        x.repeat_interleave(2)
        torch.full((), 3.0).isfinite().all().float()
    assert not waits.found
