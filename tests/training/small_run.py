"""A model of a few numbers with the interface of `MaskRCNN`, so that the loop's own behaviour is tested in
milliseconds; importable by child processes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn.config import Config, ModelConfig, OptimConfig, TrainConfig
from maskrcnn.ops.processes import mean_over_processes
from maskrcnn.structures import GroundTruth, ImageBatch
from maskrcnn.training import checkpoint as disk
from maskrcnn.training.distributed import Process
from maskrcnn.training.runlog import Display
from maskrcnn.training.trainer import Trainer, TrainResult

# What a child process would take seconds to import. torch._dynamo: any optimiser imports it.
PRELOAD = ["maskrcnn.training.train", "torch._dynamo", "rich.progress", "safetensors.torch", "pydantic"]


class SmallModel(nn.Module):
    """Model of a convolution, a norm and a linear layer; one loss over images, one normalised by objects, and
    dropout.
    """

    def __init__(self, dropout: float = 0.5, batch_norm: bool = False) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if batch_norm else nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 1)
        self.dropout = nn.Dropout(dropout)

    def preprocess(self, images: list[Tensor]) -> ImageBatch:
        sizes = [(i.shape[1], i.shape[2]) for i in images]
        return ImageBatch(torch.stack(images).float() / 255, sizes, sizes)

    def forward(self, batch: ImageBatch, targets: list[GroundTruth]) -> dict[str, Tensor]:
        features = self.dropout(self.norm(self.backbone(batch.pixels)).relu().mean((2, 3)))
        found = self.head(features)[:, 0]  # (B,)
        counts = torch.tensor([len(t) for t in targets], dtype=torch.float32)
        areas = torch.stack([t.boxes.sum() for t in targets])
        total = mean_over_processes(float(counts.sum()), counts.device)
        return {
            "loss_count": (found - counts).square().mean(),
            "loss_area": (counts * (found - areas).abs()).sum() / total,
        }


def batches(batch_size: int = 4, rank: int = 0, world_size: int = 1, bad: tuple[int, ...] = ()) -> Any:
    """Batches that are a function of their number. From the iterations in `bad` on, one image of each has a box of
    NaN.
    """

    def stream(iteration: int) -> Iterator[Any]:
        while True:
            generator = torch.Generator().manual_seed(1000 + iteration)
            images = list(
                torch.randint(0, 256, (batch_size, 3, 8, 8), generator=generator, dtype=torch.uint8)
            )
            targets = []
            for k in range(batch_size):
                n = 1 + (iteration + k) % 3
                boxes = torch.rand((n, 4), generator=generator)
                if iteration in bad and k == batch_size - 1:
                    boxes += float("nan")
                targets.append(GroundTruth(boxes, torch.zeros(n, dtype=torch.int64), seed=k))
            share = batch_size // world_size
            mine = slice(rank * share, (rank + 1) * share)
            yield images[mine], targets[mine], [iteration * 100 + k for k in range(batch_size)][mine]
            iteration += 1

    return stream


def small_config(**train: Any) -> Config:
    settings: dict[str, Any] = {"iterations": 12, "checkpoint_every": 3, "evaluate_every": 4, "log_every": 2}
    config = Config(
        model=ModelConfig(name="small"),
        optim=OptimConfig(lr=0.05, reference_batch_size=4, warmup_iterations=4, milestones=(8,)),
        train=TrainConfig(**settings | train),
    )
    config.data.batch_size = 4
    return config


def validate(model: SmallModel) -> dict[str, Any]:
    """Score that depends on the weights; consumes random numbers, as a real one may."""
    torch.rand(3)
    ap = float(model.head.weight.detach().abs().sum().sigmoid())
    return {"bbox": {"AP": ap}, "segm": {"AP": ap}, "validation_losses": {}, "validation_loss": 0.0}


def small_run(
    out: Path, config: Config, *, resume: bool = False, process: Process | None = None, **kwargs: Any
) -> TrainResult:
    process = process or Process(torch.device("cpu"))
    start = disk.claim(out, resume=resume)
    torch.manual_seed(7)
    kwargs.setdefault("batches", batches())
    kwargs.setdefault("validate", validate)
    kwargs.setdefault("display", Display(stream=io.StringIO()))
    model = SmallModel(batch_norm=config.train.precise_norm_batches > 0)
    return Trainer(model, config, out, process=process, resume_from=start, **kwargs).run()
