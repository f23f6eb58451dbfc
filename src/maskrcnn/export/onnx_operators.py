"""Operators that PyTorch's exporter does not know, written with ONNX's own.

RoIAlign; `suppress` as NonMaxSuppression, whose list of survivors marks places of a map of fixed size, of which TopK
chooses; `decode_heatmaps` as a Scan over the boxes, as every box enlarges its maps to a size of its own.

Shape letters: B images, N boxes of an image, G groups, R RoIs over the batch, P key points, M heat-map cells a side.
"""

from __future__ import annotations

from typing import Any

import torch

from maskrcnn.ops import heatmaps, roi_align, suppression  # noqa: F401, which register the operators

LOWEST = -3.4e38
INT64 = 7  # of onnx.TensorProto
# One box: its maps (P, M, M) and size (2,), width and height, to the best value of each and its place, row by row: (P,
# 2), as the exporter's Scan has one output; float32 counts to 2^24 exactly. What enlarges the identity enlarges maps.
ENLARGED = """
enlarged (float[P, M, M] maps, int64[2] size) => (float[P, 2] best_and_place) {
  zero = Constant<value_ints = [0]>()
  one = Constant<value_ints = [1]>()
  first = Constant<value_ints = [0, 1]>()
  flat = Constant<value_ints = [0, -1]>()
  cells = Shape<start = 1, end = 3>(maps)
  side = Shape<start = 2, end = 3>(maps)
  nothing = ConstantOfShape(cells)
  identity = EyeLike(nothing)
  eye = Unsqueeze(identity, first)
  ones = Constant<value_ints = [1, 1]>()
  width = Gather(size, zero)
  height = Gather(size, one)
  row_shape = Concat<axis = 0>(ones, height, side)
  column_shape = Concat<axis = 0>(ones, width, side)
  tall = Resize<mode = "cubic", coordinate_transformation_mode = "half_pixel", cubic_coeff_a = -0.75>(
    eye, , , row_shape)
  wide = Resize<mode = "cubic", coordinate_transformation_mode = "half_pixel", cubic_coeff_a = -0.75>(
    eye, , , column_shape)
  rows = Squeeze(tall, first)
  columns = Squeeze(wide, first)
  turned = Transpose<perm = [1, 0]>(columns)
  taller = MatMul(rows, maps)
  enlarged = MatMul(taller, turned)
  values = Reshape(enlarged, flat)
  best = ReduceMax(values, one)
  place = ArgMax<axis = 1>(values)
  number = Cast<to = 1>(place)
  best_and_place = Concat<axis = 1>(best, number)
}
"""


def translations() -> dict[Any, Any]:
    """Make the table of operators and their ONNX forms, for `torch.onnx.export`."""
    operators = torch.ops.maskrcnn
    return {
        operators.roi_align.default: _roi_align,
        operators.suppress.default: _suppress,
        operators.decode_heatmaps.default: _decode_heatmaps,
    }


def _ops() -> Any:
    import onnxscript

    return onnxscript.opset20


def _ints(*values: int) -> Any:
    return _ops().Constant(value_ints=list(values))


def _floats(*values: float) -> Any:
    return _ops().Constant(value_floats=list(values))


def _roi_align(
    input: Any, boxes: Any, P: int, Q: int, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Any:
    op = _ops()
    image = op.Slice(boxes, _ints(0), _ints(1), _ints(1))
    return op.RoiAlign(
        input,
        op.Slice(boxes, _ints(1), _ints(5), _ints(1)),
        op.Cast(op.Squeeze(image, _ints(1)), to=INT64),
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        output_height=P,
        output_width=Q,
        sampling_ratio=max(sampling_ratio, 0),
        spatial_scale=spatial_scale,
    )


def _suppress(boxes: Any, scores: Any, groups: Any, num_groups: int, threshold: float, limit: int) -> Any:
    op, lowest = _ops(), _floats(LOWEST)
    own = op.Equal(op.Unsqueeze(groups, _ints(1)), op.Unsqueeze(_ints(*range(num_groups)), _ints(1)))
    kept = op.NonMaxSuppression(
        boxes,
        op.Where(own, op.Unsqueeze(scores, _ints(1)), lowest),  # (B, G, N)
        _ints(2**31 - 1),
        _floats(threshold),
        lowest,
    )
    index = op.Gather(kept, _ints(0, 2), axis=1)
    count = op.Slice(op.Shape(kept), _ints(0), _ints(1))
    ones = op.Expand(_floats(1.0), count)
    nothing = op.Expand(_floats(0.0), op.Shape(scores))
    marked = op.Greater(op.ScatterND(nothing, index, ones), _floats(0.5))
    score = op.Pad(op.Where(marked, scores, lowest), _ints(0, 0, 0, limit), op.Squeeze(lowest))
    best, place = op.TopK(score, _ints(limit))
    return op.Where(op.Greater(best, lowest), place, _ints(-1))


def _decode_heatmaps(logits: Any, boxes: Any) -> Any:
    import onnx
    import onnx_ir

    op = _ops()
    low, high = (op.Slice(boxes, _ints(i), _ints(i + 2), _ints(1)) for i in (0, 2))
    extent = op.Max(op.Sub(high, low), _floats(1.0))  # (R, 2)
    pixels = op.Ceil(extent)
    sizes = op.Cast(pixels, to=INT64)
    body = onnx_ir.serde.deserialize_graph(onnx.parser.parse_graph(ENLARGED))
    found = op.Scan(logits, sizes, body=body, num_scan_inputs=2)  # (R, P, 2)
    best, place = (op.Squeeze(op.Slice(found, _ints(i), _ints(i + 1), _ints(2)), _ints(2)) for i in (0, 1))
    place = op.Cast(place, to=INT64)
    columns = op.Slice(sizes, _ints(0), _ints(1), _ints(1))  # (R, 1)
    xy = [op.Unsqueeze(x, _ints(2)) for x in (op.Mod(place, columns), op.Div(place, columns))]
    cell = op.Add(op.Cast(op.Concat(*xy, axis=2), to=onnx.TensorProto.FLOAT), _floats(0.5))
    scale = op.Unsqueeze(op.Div(extent, pixels), _ints(1))
    xy = op.Add(op.Mul(cell, scale), op.Unsqueeze(low, _ints(1)))
    score = op.Exp(op.Sub(best, op.ReduceLogSumExp(logits, _ints(2, 3), keepdims=0)))
    score = op.Min(score, _floats(torch.finfo(torch.float32).max))
    return op.Concat(xy, op.Unsqueeze(score, _ints(2)), axis=2)
