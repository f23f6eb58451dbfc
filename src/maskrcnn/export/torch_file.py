"""A model as a PyTorch file, NAME.pt2: the graph as `torch.export` has it, or machine code that AOTInductor makes of
it, for programs that have PyTorch.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from maskrcnn.engines.pt2 import FACTS
from maskrcnn.errors import UserError, one_line
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


def write_compiled(
    model: MaskRCNN, path: Path, *, size: tuple[int, int] | None = None, batch: int | None = None
) -> None:
    """Write a model to a .pt2 package of AOTInductor: compiled for this kind of processor, for PyTorch of this version.

    Raises:
        UserError: there is no C++ compiler, or it fails.
    """
    program = exported(model, size=size, batch=batch)
    settings = {"aot_inductor.metadata": facts_of(model.config, size, batch)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch._inductor.aoti_compile_and_package(  # type: ignore[attr-defined]
                program, package_path=str(path), inductor_configs=settings
            )
    except Exception as e:  # the compiler's, and Inductor's own
        reason = one_line(str(e).strip())[:200] or type(e).__name__
        raise UserError(
            f"export: aot: expected a C++ compiler that works, got: {reason}. Install g++, or take --format torch."
        ) from None
