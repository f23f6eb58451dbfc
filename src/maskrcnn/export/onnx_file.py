"""A model as an ONNX file: one graph, batches of any number of pictures of any size in, detections out.

The operators that PyTorch's exporter does not know are written with ONNX's own: RoIAlign, and `suppress` as
NonMaxSuppression, whose list of survivors marks places of a map of fixed size, of which TopK chooses. What decodes key
points is in `onnx_keypoints`.
"""

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
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.runtime.sessions import FORM

OPSET = 20
LOWEST = -3.4e38
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
                custom_translation_table=_translations(),
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


def _translations() -> dict[Any, Any]:
    import onnxscript

    from maskrcnn.export.onnx_keypoints import decode_heatmaps

    op: Any = onnxscript.opset20

    def roi_align(
        input: Any, boxes: Any, P: int, Q: int, spatial_scale: float, sampling_ratio: int, aligned: bool
    ) -> Any:
        rois = op.Slice(
            boxes, op.Constant(value_ints=[1]), op.Constant(value_ints=[5]), op.Constant(value_ints=[1])
        )
        image = op.Slice(
            boxes, op.Constant(value_ints=[0]), op.Constant(value_ints=[1]), op.Constant(value_ints=[1])
        )
        image = op.Cast(op.Squeeze(image, op.Constant(value_ints=[1])), to=7)
        return op.RoiAlign(
            input,
            rois,
            image,
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            output_height=P,
            output_width=Q,
            sampling_ratio=max(sampling_ratio, 0),
            spatial_scale=spatial_scale,
        )

    def suppress(boxes: Any, scores: Any, groups: Any, num_groups: int, threshold: float, limit: int) -> Any:
        lowest = op.Constant(value_floats=[LOWEST])
        each = op.Constant(value_ints=list(range(num_groups)))
        own = op.Equal(
            op.Unsqueeze(groups, op.Constant(value_ints=[1])), op.Unsqueeze(each, op.Constant(value_ints=[1]))
        )
        kept = op.NonMaxSuppression(
            boxes,
            op.Where(own, op.Unsqueeze(scores, op.Constant(value_ints=[1])), lowest),  # (B, G, N)
            op.Constant(value_ints=[2**31 - 1]),
            op.Constant(value_floats=[threshold]),
            lowest,
        )
        index = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)
        count = op.Slice(op.Shape(kept), op.Constant(value_ints=[0]), op.Constant(value_ints=[1]))
        ones = op.Expand(op.Constant(value_floats=[1.0]), count)
        nothing = op.Expand(op.Constant(value_floats=[0.0]), op.Shape(scores))
        marked = op.Greater(op.ScatterND(nothing, index, ones), op.Constant(value_floats=[0.5]))
        fillers = op.Constant(value_ints=[0, 0, 0, limit])
        score = op.Pad(op.Where(marked, scores, lowest), fillers, op.Squeeze(lowest))
        best, place = op.TopK(score, op.Constant(value_ints=[limit]))
        return op.Where(op.Greater(best, lowest), place, op.Constant(value_ints=[-1]))

    ours = torch.ops.maskrcnn
    return {
        ours.roi_align.default: roi_align,
        ours.suppress.default: suppress,
        ours.decode_heatmaps.default: decode_heatmaps,
    }
