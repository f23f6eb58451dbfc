"""RoIAlign: He et al. 2017 (arXiv 1703.06870), section 3; meaning and rounding as in `torchvision.ops.roi_align`.

On CUDA devices it is the Triton kernel pair of `sampling_triton`, on all others the sums of rows of `sampling`.

Shape letters: B images, C channels, H x W the map; R RoIs of P x Q bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.errors import UserError
from maskrcnn.ops.sampling import RoITaps, use_triton


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """RoIAlign with the signature and the meaning of `torchvision.ops.roi_align`.

    input: (B, C, H, W) of any memory format; channels-last is read without a copy.
    boxes: (R, 5) of image index, x0, y0, x1, y1, or a list of B tensors (N, 4).
    spatial_scale: cells of the map for one unit of the boxes. sampling_ratio: samples a bin along each axis;
    0 or less: one for each cell that a bin spans, rounded up. aligned: shift by half a cell, so that a
    pixel's value sits at its centre.

    Returns (R, C, P, Q) in the input's dtype, laid out channels-last. Differentiable in `input` (twice).
    Box arithmetic is done in float32 (float64 for float64 input), also for half-precision input.
    """
    if isinstance(output_size, int):
        output_size = (output_size, output_size)
    P, Q = output_size
    if not isinstance(boxes, Tensor):
        if len(boxes) != len(input):
            raise UserError(
                f"roi_align: expected one tensor of boxes for each of {len(input)} images, got {len(boxes)}. "
                "Pass an empty (0, 4) tensor for an image without boxes."
            )
        boxes = _with_image_index(boxes, input)
    if boxes.dim() != 2 or boxes.shape[1] != 5:
        raise UserError(
            f"roi_align: expected boxes of shape (R, 5), got {tuple(boxes.shape)}. "
            "Put the image index before x0, y0, x1, y1, or pass a list of (N, 4) tensors."
        )
    boxes = boxes.detach().to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    return _roi_align(input, boxes, P, Q, float(spatial_scale), sampling_ratio, aligned)


def _with_image_index(boxes: Sequence[Tensor], input: Tensor) -> Tensor:
    """Join a list of (N, 4) boxes, one tensor for each image, to one (R, 5) tensor with the image index first."""
    rows = [F.pad(b.reshape(-1, 4), (1, 0), value=float(i)) for i, b in enumerate(boxes)]
    return torch.cat(rows) if rows else input.new_zeros(0, 5)


@torch.library.custom_op("maskrcnn::roi_align", mutates_args=())
def _roi_align(
    input: Tensor, boxes: Tensor, P: int, Q: int, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    if use_triton(input):
        from maskrcnn.ops import sampling_triton

        rows = input.detach().permute(0, 2, 3, 1).contiguous()  # (B, H, W, C)
        out = sampling_triton.roi_align_rows(rows, boxes, (P, Q), spatial_scale, sampling_ratio, aligned)
        return out.view(len(boxes), P, Q, input.shape[1]).permute(0, 3, 1, 2)
    H, W = input.shape[2:]
    return RoITaps.of(boxes, (P, Q), (H, W), spatial_scale, sampling_ratio, aligned).gather(input)


@_roi_align.register_fake
def _(input, boxes, P, Q, spatial_scale, sampling_ratio, aligned):
    return input.new_empty(boxes.shape[0], P, Q, input.shape[1]).permute(0, 3, 1, 2)


@torch.library.custom_op("maskrcnn::roi_align_backward", mutates_args=())
def _roi_align_backward(
    grad: Tensor,
    boxes: Tensor,
    B: int,
    H: int,
    W: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    if use_triton(grad):
        from maskrcnn.ops import sampling_triton

        rows = grad.detach().permute(0, 2, 3, 1).contiguous()  # (R, P, Q, C)
        out = sampling_triton.roi_align_rows_backward(
            rows, boxes, (B, H, W), spatial_scale, sampling_ratio, aligned
        )
        return out.view(B, H, W, grad.shape[1]).permute(0, 3, 1, 2)
    P, Q = grad.shape[2:]
    return RoITaps.of(boxes, (P, Q), (H, W), spatial_scale, sampling_ratio, aligned).scatter(grad, B)


@_roi_align_backward.register_fake
def _(grad, boxes, B, H, W, spatial_scale, sampling_ratio, aligned):
    return grad.new_empty(B, H, W, grad.shape[1]).permute(0, 3, 1, 2)


def _roi_align_setup(ctx, inputs, output) -> None:
    input, boxes, _, _, *ctx.how = inputs
    ctx.save_for_backward(boxes)
    ctx.map_size = (input.shape[0], *input.shape[2:])


def _roi_align_grad(ctx, grad):
    return _roi_align_backward(grad, *ctx.saved_tensors, *ctx.map_size, *ctx.how), *[None] * 6


def _roi_align_backward_setup(ctx, inputs, output) -> None:
    grad, boxes, _, _, _, *ctx.how = inputs
    ctx.save_for_backward(boxes)
    ctx.output_size = grad.shape[2:]


def _roi_align_backward_grad(ctx, grad):
    # RoIAlign is linear in its input, so the transpose of its transpose is itself.
    return _roi_align(grad, *ctx.saved_tensors, *ctx.output_size, *ctx.how), *[None] * 7


_roi_align.register_autograd(_roi_align_grad, setup_context=_roi_align_setup)
_roi_align_backward.register_autograd(_roi_align_backward_grad, setup_context=_roi_align_backward_setup)
