"""Choice of an engine, and the preparation of a model for inference or training with it."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from maskrcnn.engines.norms import fold_norms
from maskrcnn.engines.rewrites import rewrite
from maskrcnn.engines.table import REWRITES
from maskrcnn.errors import UserError, described, did_you_mean
from maskrcnn.processor import DTYPES

Model = TypeVar("Model", bound=nn.Module)

ENGINES = {
    "eager": "the network as it is written, in plain PyTorch",
    "cpu": "rewrites of single methods that are faster on this kind of processor",
}


def check_engine(name: str | None, device: torch.device) -> str:
    """Name of the engine to use: the one asked for, or of None the fastest that is at hand for the device.

    Raises:
        UserError: no such engine, or one for another device.
    """
    if name is None:
        return "cpu" if device.type == "cpu" else "eager"
    if not isinstance(name, str) or name not in ENGINES:
        near = did_you_mean(name, ENGINES) if isinstance(name, str) else ""
        raise UserError(f"engine: expected {' or '.join(ENGINES)}, got {described(name)}. {near}".rstrip())
    if name == "cpu" and device.type != "cpu":
        raise UserError(f"engine: cpu is for the device cpu, got {device}. Use eager, or --device cpu.")
    return name


def prepare(model: Model, precision: str = "fp32", engine: str | None = None) -> Model:
    """Make a model ready for fast inference, for good: batch norms folded, channels-last, cast, with its engine.

    precision: fp32, bf16 or fp16. Boxes, scores and mask probabilities are computed in float32 in any of them.
    engine: one of `ENGINES`, by default the fastest for the device that the model is on.
    """
    device = next(model.parameters()).device
    engine = check_engine(engine, device)
    model.eval().requires_grad_(False)
    fold_norms(model)
    model.to(dtype=DTYPES[precision])
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if engine == "cpu":
        rewrite(model, REWRITES)
    model.engine = engine  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return model


def for_training(model: Model) -> Model:
    """Put on a model what is faster on this processor in training too. It is undone by nothing and harms nothing: on
    another device, and while a graph is traced, the plain methods run.
    """
    rewrite(model, (r for r in REWRITES if r.in_training))
    return model
