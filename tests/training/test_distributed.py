"""Two processes, as `torchrun` starts them, do what one process does with the same batch."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from maskrcnn import presets
from maskrcnn.config import Config, ViTConfig
from maskrcnn.data.synthetic import make_synthetic
from maskrcnn.errors import UserError
from maskrcnn.training import checkpoint as disk
from maskrcnn.training import distributed
from maskrcnn.training.distributed import Process
from maskrcnn.training.runlog import Display, read_log
from maskrcnn.training.trainer import Trainer
from tests.training.kills import cut_back, differences
from tests.training.ranks import run_ranks
from tests.training.small_run import SmallModel, batches, small_config, validate

# Sums in another order: float32's rounding, through a few steps.
TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}


def test_one_process_needs_no_group():
    assert distributed.join("cpu") == Process(torch.device("cpu"))
    assert distributed.gather(3) == [3]
    assert distributed.on_main(lambda: 4) == 4


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="expected cpu, cuda"):
        distributed.join("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no 'cuda"):
            distributed.join("cuda")


@pytest.mark.slow
def test_two_processes_make_the_losses_and_weights_of_one(tmp_path):
    """With accumulation, averaged weights and clipping; evaluation agrees on every rank."""
    config = parallel_config()
    train_small(tmp_path / "one", config, distributed.join("cpu"))
    run_ranks(small_rank, tmp_path / "two", config)
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"ema_decay": 0.9}, {"precise_norm_batches": 2}])
def test_a_resumed_run_of_three_processes_ends_with_the_same_bits(tmp_path, settings):
    """With dropout, of which every process draws its own, accumulation and clipping."""
    config = small_config(keep_checkpoints=9, **settings)
    config.data.batch_size, config.optim.accumulation_steps, config.optim.clip_grad_norm = 6, 2, 1.0
    run_ranks(dropping_rank, tmp_path / "whole", config, count=3)
    cut_back(tmp_path / "whole", tmp_path / "parts", 6)
    run_ranks(dropping_rank, tmp_path / "parts", config, count=3)
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.slow
def test_two_processes_stop_together_at_a_loss_that_is_not_finite(tmp_path):
    run_ranks(small_rank, tmp_path, parallel_config(), bad=(5,), expected_exit=7)
    details = json.loads((tmp_path / "nonfinite.json").read_text())
    assert details["image_ids"] == [505, 507]  # rank 1's micro-batch
    assert disk.iteration_of(disk.checkpoints(tmp_path)[-1]) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "federated_classes"),
    [
        ("mask_rcnn_R_50_FPN_1x", 0),
        ("cascade_mask_rcnn_R_50_FPN_1x", 0),
        ("cascade_mask_rcnn_R_50_FPN_1x", 3),  # of three and background, which each image draws
        ("mask_rcnn_deit_adapter_tiny_fpn_1x_coco", 0),  # batch norms over both
    ],
)
def test_two_processes_train_mask_rcnn_like_one(tmp_path, preset, federated_classes):
    """All images have one size: a rank pads its own images only, and padding is part of what the model sees."""
    make_synthetic(tmp_path / "data", num_train=8, num_val=1, size=(96, 96), seed=1)
    config = presets.get(preset, tiny=True)
    config.data.train, config.data.batch_size, config.data.num_workers = str(tmp_path / "data"), 4, 0
    config.data.val = ""
    config.data.augment.min_sizes = (96,)
    config.optim.warmup_iterations, config.optim.clip_grad_norm = (
        2,
        1.0,
    )  # random weights: steps would be wild
    config.train.iterations, config.train.log_every, config.train.evaluate_every = 3, 1, 0
    # AdamW's first steps are of one size however small a gradient is, and make much of its rounding.
    config.optim.optimizer, config.optim.layer_decay = "sgd", 1.0
    if isinstance(config.model.backbone, ViTConfig):
        config.model.backbone.drop_path = 0.0  # each process draws its own
    if federated_classes:
        config.model.box_head.scores = "sigmoid"
        config.model.box_head.federated_classes = federated_classes
    torch.set_num_threads(1)
    train_mask_rcnn(tmp_path / "one", copy.deepcopy(config))
    run_ranks(mask_rcnn_rank, tmp_path / "two", config)
    assert_same_run(tmp_path / "one", tmp_path / "two")


def parallel_config() -> Config:
    config = small_config(iterations=6, ema_decay=0.9, log_every=1)
    config.data.batch_size = 8
    config.optim.accumulation_steps, config.optim.clip_grad_norm = 2, 1.0
    return config


def assert_same_run(one: Path, two: Path) -> None:
    left, right = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    for name in left:
        torch.testing.assert_close(
            left[name],
            right[name],
            **TOLERANCE,
            msg=lambda m, name=name: f"{name}: {m}",
        )
    left, right = (
        [e for e in read_log(x / "log.jsonl") if e["kind"] in ("train", "eval")] for x in (one, two)
    )
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert (a["kind"], a["iteration"], a.get("lr")) == (b["kind"], b["iteration"], b.get("lr"))
        assert a.get("losses", {}) == pytest.approx(b.get("losses", {}), rel=1e-4)


def train_small(
    out: Path, config: Config, process: Process, bad: tuple[int, ...] = (), dropout: float = 0.0
) -> None:
    """Train a small model in one process of several. Ranks take interleaved shares, so that the micro-batches of all
    ranks together are those of one process.
    """
    start = distributed.on_main(lambda: disk.claim(out, resume=bool(dropout)))
    torch.manual_seed(7)
    whole = batches(config.data.batch_size, bad=bad)

    def share(iteration: int) -> Any:
        for parts in whole(iteration):
            # micro-batches of one process: 0-3 and 4-7; of rank r: r, r + 2 and r + 4, r + 6
            yield tuple(part[process.rank :: process.world_size] for part in parts)

    quiet = Display(active=process.is_main, stream=io.StringIO())
    model = SmallModel(dropout, config.train.precise_norm_batches > 0)
    Trainer(
        model, config, out, batches=share, validate=validate, process=process,
        resume_from=start, display=quiet,
    ).run()  # fmt: skip


def train_mask_rcnn(out: Path, config: Config) -> None:
    from maskrcnn.training.train import train

    train(config, out, device="cpu")


def small_rank(out: Path, config: Config, bad: tuple[int, ...]) -> None:
    try:
        train_small(out, config, distributed.join("cpu"), bad)
    finally:
        distributed.leave()


def dropping_rank(out: Path, config: Config, bad: tuple[int, ...]) -> None:
    try:
        train_small(out, config, distributed.join("cpu"), dropout=0.5)
    finally:
        distributed.leave()


def mask_rcnn_rank(out: Path, config: Config, bad: tuple[int, ...]) -> None:
    train_mask_rcnn(out, config)
