"""OpenVINO as the runtime of a model's graphs: Intel's and ARM's CPUs, in float32, or bfloat16 where they have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn.engines.graphs import per_thread
from maskrcnn.engines.seams import Run
from maskrcnn.errors import UserError, one_line

EXTRA = "Run: pip install 'maskrcnn[openvino]'"
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def import_openvino(what: str) -> Any:
    """OpenVINO's module.

    Raises:
        UserError: it is not installed.
    """
    try:
        import openvino
    except ImportError:
        raise UserError(f"{what}: expected OpenVINO, got none. {EXTRA}") from None
    return openvino


class OpenVINO:
    """Runtime of graphs (`engines.graphs.Runtime`)."""

    name = "openvino"
    suffix = ".xml"

    def __init__(self) -> None:
        self._openvino = import_openvino("engine: openvino")
        self.version = str(self._openvino.__version__)

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        try:
            graph = self._openvino.convert_model(program)
        except Exception as e:  # of kinds of its own
            raise UserError(
                f"engine: openvino: expected a graph that it knows, got one of other operators "
                f"({one_line(str(e))[-200:]}). Use --engine cpu."
            ) from None
        self._openvino.save_model(graph, path, compress_to_fp16=False)

    def open(self, path: Path, precision: str) -> Run:
        compiled = compile_file(path, precision)

        def make() -> Run:
            request = compiled.create_infer_request()

            def run(*inputs: Tensor) -> tuple[Tensor, ...]:
                arrays = [np.ascontiguousarray(x.numpy()) for x in inputs]
                found = request.infer(
                    arrays
                )  # not shared: OpenVINO's threads may let go of them, without the GIL
                return tuple(torch.from_numpy(found[i]) for i in range(len(found)))

            return run

        return per_thread(make)


def compile_file(path: Path, precision: str = "fp32") -> Any:
    """Compile a graph of OpenVINO's for this processor, for as many threads as PyTorch uses."""
    core = import_openvino(str(path)).Core()
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    return core.compile_model(core.read_model(path), "CPU", settings)
