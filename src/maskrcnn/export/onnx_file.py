"""A model as an ONNX file: one graph, batches of any number of pictures of any size in, detections out."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from maskrcnn.config import ModelConfig, to_dict
from maskrcnn.engines.seams import picture_sides, without_graph
from maskrcnn.errors import UserError
from maskrcnn.export.graph import Graph
from maskrcnn.export.onnx_operators import translations
from maskrcnn.images.bands import refuse_bands
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.runtime.sessions import FORM

OPSET = 20
INPUTS = ("images", "image_sizes")


def write_onnx(
    model: MaskRCNN, path: str | Path, *, size: tuple[int, int] | None = None, batch: int | None = None
) -> None:
    """Write a model to an ONNX file: see `graph.Graph` for what goes in and comes out.

    size: fixes the pictures' padded (H, W); by default any multiples of the model's `size_divisor`. batch: fixes the
    number of pictures.

    Raises:
        UserError: the packages for it are not installed, or a part of the model has no ONNX form.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError(
            "export: expected the packages onnx and onnxscript, got none. Run: pip install 'maskrcnn[onnx]'"
        ) from None
    check_exportable(model.config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter itself
            onnx_program = torch.onnx.export(
                exported(model, size=size, batch=batch),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(INPUTS),
                output_names=outputs_of(model.config),
                custom_translation_table=translations(),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as e:
        missing = re.search(r"maskrcnn::(\w+)|maskrcnn\.(\w+)", str(e.__cause__ or e))
        what = f"its operator {missing[1] or missing[2]}" if missing else "an operator of it"
        raise UserError(f"export: {model.config.name}: {what} has no ONNX form.") from None
    assert onnx_program is not None
    onnx_program.model.metadata_props.update(facts_of(model.config, size, batch))
    onnx_program.save(path, external_data=False)


def facts_of(config: ModelConfig, size: tuple[int, int] | None, batch: int | None) -> dict[str, str]:
    """Metadata of an exported file: the form of its inputs and outputs, the model's settings, what is fixed."""
    fixed = {k: v for k, v in (("size", size), ("batch", batch)) if v is not None}
    return {"maskrcnn": FORM, "config": json.dumps(to_dict(config)), "fixed": json.dumps(fixed)}


def outputs_of(config: ModelConfig) -> list[str]:
    """Names of the graph's outputs, in order."""
    names = ["boxes", "scores", "labels"]
    names += ["masks"] if config.mask_head is not None else []
    names += ["keypoints"] if config.keypoint_head is not None else []
    return [*names, "counts"]


def check_exportable(config: ModelConfig) -> None:
    """Refuse a model with a part that has no ONNX form here.

    Raises:
        UserError: it has such a part, which is named.
    """
    refuse_bands(config.input, "export")
    if what := without_graph(config):
        raise UserError(f"export: {config.name}: {what} has no ONNX form here. Take a model without.")


def check_sizes(config: ModelConfig, size: tuple[int, int] | None, batch: int | None) -> None:
    """Check a fixed size and batch.

    Raises:
        UserError: a size that the network does not take, a batch below 1.
    """
    divisor = config.input.size_divisor
    if size is not None and (min(size) < divisor or any(side % divisor for side in size)):
        raise UserError(f"--size: expected multiples of {divisor}, got {size[0]} {size[1]}.")
    if batch is not None and batch < 1:
        raise UserError(f"--batch: expected at least 1, got {batch}.")


def exported(
    model: MaskRCNN, *, size: tuple[int, int] | None = None, batch: int | None = None
) -> torch.export.ExportedProgram:
    """Trace a model's graph."""
    example, free = picture_sides(model.config.input.size_divisor)
    height, width = size or example
    images = torch.rand(batch or 2, 3, height, width) * 255
    sizes = torch.tensor([[height, width]] * (batch or 2))
    dims: dict[int, Any] = {} if batch else {0: torch.export.Dim("batch", min=1, max=1024)}
    sides: dict[int, Any] = {} if size else {2: free[0], 3: free[1]}
    shapes = {"images": {**dims, **sides}, "image_sizes": dims}
    return torch.export.export(Graph(model).eval(), (images, sizes), dynamic_shapes=shapes, strict=False)
