"""ONNX Runtime as the runtime of a model's graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn.engines.seams import Run
from maskrcnn.errors import UserError, one_line

EXTRA = "Run: pip install 'maskrcnn[onnx]'"


def import_onnxruntime(what: str) -> Any:
    """ONNX Runtime's module.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{what}: expected ONNX Runtime, got none. {EXTRA}") from None
    return onnxruntime


class ONNXRuntime:
    """Runtime of graphs (`engines.graphs.Runtime`)."""

    name = "onnx"
    suffix = ".onnx"

    def __init__(self) -> None:
        self.version = str(import_onnxruntime("engine: onnx").__version__)

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        try:
            onnx_program = torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False)
        except ImportError:
            raise UserError(f"engine: onnx: expected onnxscript to write graphs, got none. {EXTRA}") from None
        except Exception as e:  # of kinds of its own
            raise UserError(
                f"engine: onnx: expected a graph that it knows, got one of other operators "
                f"({one_line(str(e))[-200:]}). Use --engine cpu."
            ) from None
        assert onnx_program is not None
        onnx_program.save(path)

    def open(self, path: Path, precision: str) -> Run:
        session = open_session(path)
        names = [one.name for one in session.get_inputs()]

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            feeds = {name: np.ascontiguousarray(x.numpy()) for name, x in zip(names, inputs, strict=True)}
            return tuple(torch.from_numpy(array) for array in session.run(None, feeds))

        return run


def open_session(path: Path) -> Any:
    """Session over an ONNX file on the CPU, with as many threads as PyTorch uses."""
    onnxruntime = import_onnxruntime(str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
