"""A model as a PyTorch file, NAME.pt2: the graph as `torch.export` has it, for programs that have PyTorch."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from maskrcnn.engines.pt2 import FACTS
from maskrcnn.export.onnx_file import exported, facts_of
from maskrcnn.models.mask_rcnn import MaskRCNN


def write_torch(
    model: MaskRCNN, path: Path, *, size: tuple[int, int] | None = None, batch: int | None = None
) -> None:
    """Write a model to a .pt2 file: see `graph.Graph` for what goes in and comes out, and `onnx_file.write_onnx`."""
    program = exported(model, size=size, batch=batch)
    program._example_inputs = None  # they would be stored as a pickle
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of slices of one constant, which lie on the CPU
        torch.export.save(program, path, extra_files={FACTS: json.dumps(facts_of(model.config, size, batch))})
