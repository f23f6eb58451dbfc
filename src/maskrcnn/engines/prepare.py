"""Choice of an engine, and the preparation of a model for inference or training with it."""

from __future__ import annotations

import os
import shutil
from typing import TypeVar

import torch
from torch import nn

from maskrcnn.config import ModelConfig
from maskrcnn.engines.cuda_graphs import run_as_cuda_graphs
from maskrcnn.engines.graphs import Runtime, run_as_graphs
from maskrcnn.engines.norms import fold_norms
from maskrcnn.engines.rewrites import plain, rewrite
from maskrcnn.engines.seams import seams_of, without_graph
from maskrcnn.engines.table import REWRITES, SMALL_MEMORY
from maskrcnn.errors import UserError, described, did_you_mean
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.processor import DTYPES

Model = TypeVar("Model", bound=MaskRCNN)
Module = TypeVar("Module", bound=nn.Module)

ENGINES = {
    "eager": "the network as it is written, in plain PyTorch",
    "cpu": "rewrites of single methods that are faster on this kind of processor",
    "openvino": "OpenVINO's graphs of the dense parts",
    "onnx": "ONNX Runtime's graphs of the dense parts",
    "compile": "the dense parts by torch.compile",
    "cuda-graph": "the dense parts as recorded CUDA graphs",
}
PRECISIONS = {"openvino": ("fp32", "bf16"), "onnx": ("fp32",)}  # of the graphs' runtimes
PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime"}


def choose_engine(name: str | None, device: torch.device, precision: str, config: ModelConfig) -> str:
    """Name of the engine to use: the one asked for, or of None the fastest for the device that makes no files.

    Raises:
        UserError: no such engine, or one that has no form for the device, the precision or the model.
    """
    if name is None:  # by `benchmarks/engines.py`; what OpenVINO gains in bf16 with AMX must be asked for
        return "cpu" if device.type == "cpu" else "eager"
    check_engine(name)
    if name in ("cpu", *PACKAGES) and device.type != "cpu":
        raise UserError(f"engine: {name} is for the device cpu, got {device}. Use eager, or --device cpu.")
    if name == "cuda-graph" and device.type != "cuda":
        raise UserError(
            f"engine: cuda-graph is for CUDA devices, got {device}. Leave it out, or take --device cuda."
        )
    if name in PACKAGES:
        if precision not in PRECISIONS[name]:
            raise UserError(
                f"engine: {name}: expected precision {' or '.join(PRECISIONS[name])}, got {precision}."
            )
        if part := without_graph(config):
            raise UserError(f"engine: {name}: {config.name}: {part} has no form there. Use cpu or eager.")
    if name == "compile" and device.type == "cpu" and not has_compiler():
        raise UserError(
            "engine: compile: expected a C++ compiler, got none. Install g++ or clang++, or use --engine cpu."
        )
    return name


def check_engine(name: object) -> None:
    """Check that there is an engine of this name.

    Raises:
        UserError: there is none.
    """
    if not isinstance(name, str) or name not in ENGINES:
        near = did_you_mean(name, ENGINES) if isinstance(name, str) else ""
        raise UserError(f"engine: expected {' or '.join(ENGINES)}, got {described(name)}. {near}".rstrip())


def has_compiler() -> bool:
    """Return True if a C++ compiler is at hand, as torch.compile needs one for CPUs."""
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "g++", "clang++"))


def prepare(model: Model, precision: str = "fp32", engine: str | None = None) -> Model:
    """Make a model ready for fast inference, for good: batch norms folded, channels-last, cast, with its engine.

    precision: fp32, bf16 or fp16. Boxes, scores and mask probabilities are computed in float32 in any of them.
    engine: one of `ENGINES`, by default the fastest for the device that the model is on. `openvino` and `onnx` make
    their graphs once for a model, in ten seconds or so, and keep them in the user's cache.

    Raises:
        UserError: as `choose_engine`; a graph that cannot be made.
    """
    device = next(model.parameters()).device
    engine = choose_engine(engine, device, precision, model.config)
    model.eval().requires_grad_(False)
    fold_norms(model)
    if engine in PACKAGES:  # their precision is their own; what lies between the graphs is float32
        plain(model)
        run_as_graphs(model, _runtime(engine), precision)
        rewrite(model, SMALL_MEMORY)
    else:
        model.to(dtype=DTYPES[precision])
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if engine == "cpu":
        rewrite(model, REWRITES)
    if engine == "cuda-graph":
        run_as_cuda_graphs(model)
    if engine == "compile":
        for seam in list(seams_of(model)):
            seam.put(torch.compile(seam.network, dynamic=True))
    model.engine = engine
    return model


def _runtime(engine: str) -> Runtime:
    if engine == "openvino":
        from maskrcnn.engines.openvino import OpenVINO

        return OpenVINO()
    from maskrcnn.engines.onnxruntime import ONNXRuntime

    return ONNXRuntime()


def for_training(model: Module) -> Module:
    """Put on a model what is faster on this processor in training too. It is undone by nothing and harms nothing: on
    another device, and while a graph is traced, the plain methods run.
    """
    rewrite(model, (r for r in REWRITES if r.in_training))
    return model
