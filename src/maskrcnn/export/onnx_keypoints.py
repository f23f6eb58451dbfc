"""`ops.heatmaps.decode_heatmaps` in ONNX's operators: a loop over the RoIs, as each enlarges its maps to its own size.

Imported where it is used: it is written in onnxscript, which reads the source of the function.
"""

from typing import Any

import onnxscript

op: Any = onnxscript.opset18


@onnxscript.script(default_opset=onnxscript.opset18)
def decode_heatmaps(logits: onnxscript.FLOAT, boxes: onnxscript.FLOAT) -> onnxscript.FLOAT:
    """Decode heat maps (R, P, M, M) over boxes (R, 4) to the most probable place of each point, (R, P, 3)."""
    low = op.Slice(
        boxes, op.Constant(value_ints=[0]), op.Constant(value_ints=[2]), op.Constant(value_ints=[1])
    )
    high = op.Slice(
        boxes, op.Constant(value_ints=[2]), op.Constant(value_ints=[4]), op.Constant(value_ints=[1])
    )
    extent = op.Max(op.Sub(high, low), op.Constant(value_float=1.0))
    pixels = op.Ceil(extent)  # (R, 2), width and height
    points = op.Shape(logits, start=1, end=2)
    count = op.Squeeze(op.Shape(logits, start=0, end=1))
    nothing = op.Concat(op.Constant(value_ints=[0]), points, op.Constant(value_ints=[3]), axis=0)
    found = op.ConstantOfShape(nothing)
    for i in range(count):
        size = op.Gather(pixels, i, axis=0)
        width = op.Slice(size, op.Constant(value_ints=[0]), op.Constant(value_ints=[1]))
        height_width = op.Cast(op.Gather(size, op.Constant(value_ints=[1, 0]), axis=0), to=7)
        maps = op.Gather(logits, i, axis=0)  # (P, M, M)
        one = op.Unsqueeze(maps, op.Constant(value_ints=[0]))
        sizes = op.Concat(op.Constant(value_ints=[1]), points, height_width, axis=0)
        large = op.Resize(one, None, None, sizes, mode="cubic", coordinate_transformation_mode="half_pixel")
        flat = op.Reshape(large, op.Concat(points, op.Constant(value_ints=[-1]), axis=0))
        best = op.ReduceMax(flat, op.Constant(value_ints=[1]), keepdims=1)  # (P, 1)
        place = op.Cast(op.ArgMax(flat, axis=1, keepdims=1), to=1)
        y = op.Floor(op.Div(place, width))
        x = op.Sub(place, op.Mul(y, width))
        middle = op.Add(op.Concat(x, y, axis=1), op.Constant(value_float=0.5))
        xy = op.Add(op.Mul(middle, op.Div(op.Gather(extent, i, axis=0), size)), op.Gather(low, i, axis=0))
        cells = op.Reshape(maps, op.Concat(points, op.Constant(value_ints=[-1]), axis=0))
        total = op.ReduceLogSumExp(cells, op.Constant(value_ints=[1]), keepdims=1)
        score = op.Min(op.Exp(op.Sub(best, total)), op.Constant(value_float=3.4028234e38))
        row = op.Unsqueeze(op.Concat(xy, score, axis=1), op.Constant(value_ints=[0]))
        found = op.Concat(found, row, axis=0)
    return found
