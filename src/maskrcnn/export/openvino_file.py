"""A model as OpenVINO files, NAME.xml and NAME.bin: the ONNX graph, converted; in 8 bits where pictures calibrate."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.config import ModelConfig
from maskrcnn.engines.openvino import import_openvino
from maskrcnn.errors import UserError
from maskrcnn.export.onnx_file import facts_of, write_onnx
from maskrcnn.files import atomic_path
from maskrcnn.images.resize import resize_image, resize_size
from maskrcnn.models.mask_rcnn import MaskRCNN

EXTRA = "Run: pip install 'maskrcnn[int8]'"
Inputs = dict[str, np.ndarray]


def write_openvino(
    model: MaskRCNN,
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    precision: str = "fp32",
    calibration: Iterable[Inputs] = (),
) -> None:
    """Write a model to OpenVINO's files, `path`, which ends in .xml, and its .bin. `graph.Graph` says what goes in and
    comes out.

    size, batch: as `write_onnx`. precision: fp32; fp16, whose weights have half the size; bf16, which computes in
    bfloat16 too, where the processor has it; int8, for which `calibration` gives inputs of the graph, one at a time.

    Raises:
        UserError: the packages for it are not installed, or a part of the model has no form there.
    """
    openvino = import_openvino("export: openvino")
    nncf = _import_nncf() if precision == "int8" else None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(model, file, size=size, batch=batch)
        graph = openvino.convert_model(file)
    if nncf is not None:
        graph = _quantized(nncf, graph, list(calibration))
    graph.set_rt_info(json.dumps({**facts_of(model.config, size, batch), "precision": precision}), "maskrcnn")
    openvino.save_model(graph, path, compress_to_fp16=precision in ("fp16", "bf16"))


@contextlib.contextmanager
def two_files(path: Path) -> Iterator[Path]:
    """Yield a temporary NAME.xml to write, whose .bin lies beside it; both get their names when the block ends well."""
    with atomic_path(path) as graph, atomic_path(path.with_suffix(".bin")) as weights:
        written = graph.with_suffix(".bin")
        try:
            yield graph
            written.replace(weights)
        finally:
            written.unlink(missing_ok=True)


def _quantized(nncf: Any, graph: Any, inputs: list[Inputs]) -> Any:
    """Quantise the network of a graph to 8 bits, with the ranges that its tensors have on the inputs.

    What decodes boxes, suppresses and pools stays in float32: a step of 1/256 of a picture's side would move boxes by
    pixels. That is all that follows the choice of the best anchors but convolutions and matrix products.
    """
    names = [
        node.get_friendly_name()
        for node in _after(graph, "TopK")
        if node.get_type_name()
        not in ("Convolution", "ConvolutionBackpropData", "GroupConvolution", "MatMul")
    ]
    return nncf.quantize(
        graph,
        nncf.Dataset(inputs),
        subset_size=len(inputs),
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=names, validate=False),
    )


def _after(graph: Any, kind: str) -> list[Any]:
    """Nodes of a graph that depend on one of a kind."""
    found: dict[str, Any] = {}
    todo = [node for node in graph.get_ops() if node.get_type_name() == kind]
    while todo:
        for output in todo.pop().outputs():
            for node in (port.get_node() for port in output.get_target_inputs()):
                if node.get_friendly_name() not in found:
                    found[node.get_friendly_name()] = node
                    todo.append(node)
    return list(found.values())


def _import_nncf() -> Any:
    try:
        logging.getLogger("nncf").setLevel(logging.ERROR)
        import nncf
    except ImportError:
        raise UserError(f"export: int8: expected the package nncf, got none. {EXTRA}") from None
    return nncf


def calibration_inputs(
    pictures: Iterable[np.ndarray], config: ModelConfig, size: tuple[int, int] | None, batch: int | None
) -> list[Inputs]:
    """Make inputs of the graph from RGB pictures (h, w, 3) uint8 as they are."""
    c, inputs = config.input, []
    for picture in pictures:
        to = resize_size(picture.shape[0], picture.shape[1], c.min_size, c.max_size, c.resize)
        if size is not None:  # as large as fits
            shrink = min(1.0, size[0] / to[0], size[1] / to[1])
            to = (max(1, int(to[0] * shrink)), max(1, int(to[1] * shrink)))
        resized = resize_image(picture, to, c.resize)
        height, width = size or (-(-side // c.size_divisor) * c.size_divisor for side in to)
        images = np.zeros((batch or 1, 3, height, width), np.float32)
        images[:, :, : to[0], : to[1]] = resized.transpose(2, 0, 1)
        inputs.append({"images": images, "image_sizes": np.array([to] * (batch or 1), np.int64)})
    return inputs
