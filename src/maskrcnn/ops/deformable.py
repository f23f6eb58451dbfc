"""DCNv3, multi-scale deformable attention and deformable convolution, on the one sampling primitive.

Each is a weighted sum of bilinear samples at places that the network itself puts out: DCNv3 (Wang et al.
2023, InternImage), multi-scale deformable attention (Zhu et al. 2021, Deformable DETR) and deformable
convolution with or without a mask (Dai et al. 2017, Zhu et al. 2019). Outside of the map is zero; a place
less than a cell outside still takes its share of the border. Places are computed in float32 (float64 for
float64 input), also for half-precision input.

Shape letters: N images, H x W a map, S places of all levels, Q queries, G or M groups (heads) of D channels,
K points of a kernel, L levels, P points a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn.errors import UserError
from maskrcnn.ops.bilinear import Affine, bilinear_sum
from maskrcnn.ops.transfer import small_table

Pair = int | tuple[int, int]


def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    *,
    kernel_size: Pair = 3,
    stride: Pair = 1,
    padding: Pair = 1,
    dilation: Pair = 1,
    groups: int,
    offset_scale: float = 1.0,
) -> Tensor:
    """Core operator of DCNv3: each group of channels sums kh * kw samples around each place, weighted by `mask`.

    input (N, H, W, C); offset (N, Ho, Wo, groups * kh * kw * 2), pairs (x, y) in cells, points x-major
    (index = ix * kh + iy); mask (N, Ho, Wo, groups * kh * kw), already softmaxed. Returns (N, Ho, Wo, C) of the input's
    dtype. Differentiable in input, offset and mask. Pairs of settings are (vertical, horizontal).
    """
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = map(_pair, (kernel_size, stride, padding, dilation))
    N, H, W, C = input.shape
    K = kh * kw
    Ho, Wo = _conv_size(H, kh, sh, ph, dh), _conv_size(W, kw, sw, pw, dw)
    if C % groups:
        raise UserError(f"dcnv3: expected channels divisible by {groups} groups, got {C}. Change groups.")
    _check("dcnv3", "offset", offset, (N, Ho, Wo, groups * K * 2))
    _check("dcnv3", "mask", mask, (N, Ho, Wo, groups * K))
    # The centre of the kernel at each place, and the kernel's points about it: half a kernel rounds down.
    half_h, half_w = dh * (kh - 1) // 2, dw * (kw - 1) // 2
    real = _place_dtype(input)
    at = _grid(Wo, sw, half_w - pw, Ho, sh, half_h - ph, input.device).to(real)
    point = _grid(kw, dw, -half_w, kh, dh, -half_h, input.device).to(real)
    point = point.view(kh, kw, 2).transpose(0, 1).reshape(K, 2) * offset_scale
    out = bilinear_sum(
        input.reshape(N, H * W, groups, C // groups),
        offset.reshape(N, Ho * Wo, groups, K, 2),
        mask.reshape(N, Ho * Wo, groups, K),
        Affine(point.new_full((1, 2), offset_scale), point, at),
        [(H, W)],
    )
    return out.view(N, Ho, Wo, C)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention: each head of each query sums P samples of each of L maps.

    value (N, S, M, D): the maps' places, one map after another; spatial_shapes: their (H, W), with S places
    in all; sampling_locations (N, Q, M, L, P, 2): (x, y), 0..1 from edge to edge of the map;
    attention_weights (N, Q, M, L, P). Returns (N, Q, M * D) of the value's dtype. Differentiable in the
    three tensors.
    """
    shapes = [(int(h), int(w)) for h, w in spatial_shapes]
    if not shapes or any(h < 1 or w < 1 for h, w in shapes):
        raise UserError(
            f"ms_deform_attn: expected maps of at least one place, got {shapes}. Drop empty maps."
        )
    N, S, M = value.shape[:3]
    if sum(h * w for h, w in shapes) != S:
        raise UserError(
            f"ms_deform_attn: expected value with the {sum(h * w for h, w in shapes)} places of maps {shapes}, "
            f"got {S}. Concatenate the flattened maps in the order of spatial_shapes."
        )
    Q, P = attention_weights.shape[1], attention_weights.shape[-1]
    L = len(shapes)
    _check("ms_deform_attn", "sampling_locations", sampling_locations, (N, Q, M, L, P, 2))
    _check("ms_deform_attn", "attention_weights", attention_weights, (N, Q, M, L, P))
    size = small_table(shapes, value.device, _place_dtype(value)).flip(1)  # (L, 2): W, H
    return bilinear_sum(
        value,
        sampling_locations.reshape(N, Q, M, L * P, 2),
        attention_weights.reshape(N, Q, M, L * P),
        Affine(size.repeat_interleave(P, dim=0), size.new_full((1, 2), -0.5)),
        shapes,
    )


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Deformable convolution (v2 with a mask, v1 without): `torchvision.ops.deform_conv2d`.

    input (N, C, H, W); offset (N, 2 * G * kh * kw, Ho, Wo), pairs (y, x) in cells; weight
    (O, C / groups, kh, kw); bias (O,); mask (N, G * kh * kw, Ho, Wo). Returns (N, O, Ho, Wo), laid out
    channels-last. Differentiable in every tensor.
    """
    (sh, sw), (ph, pw), (dh, dw) = map(_pair, (stride, padding, dilation))
    (N, C, H, W), (out_channels, per_group, kh, kw) = input.shape, weight.shape
    K = kh * kw
    Ho, Wo = _conv_size(H, kh, sh, ph, dh), _conv_size(W, kw, sw, pw, dw)
    G = offset.shape[1] // (2 * K)
    if G == 0 or C % G or C % per_group:
        raise UserError(
            f"deform_conv2d: expected an offset of 2 * {K} channels for each group of the {C} channels, "
            f"got {offset.shape[1]}, with weight {tuple(weight.shape)}. Check offset and weight."
        )
    _check("deform_conv2d", "offset", offset, (N, 2 * G * K, Ho, Wo))
    if mask is not None:
        _check("deform_conv2d", "mask", mask, (N, G * K, Ho, Wo))
    # Each point of the kernel is a query of its own, with one sample.
    real = _place_dtype(input)
    centre = _grid(Wo, sw, -pw, Ho, sh, -ph, input.device)
    at = (centre[:, None] + _grid(kw, dw, 0, kh, dh, 0, input.device)).view(-1, 2).to(real)
    offset = offset.reshape(N, G, K, 2, Ho, Wo).flip(3).permute(0, 4, 5, 2, 1, 3)  # (N, Ho, Wo, K, G, 2)
    if mask is None:
        share = input.new_ones(()).expand(N, Ho, Wo, K, G)
    else:
        share = mask.reshape(N, G, K, Ho, Wo).permute(0, 3, 4, 2, 1)
    columns = bilinear_sum(
        input.permute(0, 2, 3, 1).reshape(N, H * W, G, C // G),
        offset.reshape(N, Ho * Wo * K, G, 1, 2),
        share.reshape(N, Ho * Wo * K, G, 1),
        Affine(at.new_ones(1, 2), at.new_zeros(1, 2), at),
        [(H, W)],
    )
    groups = C // per_group
    columns = columns.view(N * Ho * Wo, K, groups, per_group)
    kernel = weight.reshape(groups, out_channels // groups, per_group, K)
    out = torch.einsum("nkgc,gock->ngo", columns, kernel.to(columns.dtype))
    out = out.reshape(N, Ho, Wo, out_channels).permute(0, 3, 1, 2)
    return out if bias is None else out + bias[:, None, None].to(out.dtype)


def _grid(
    nx: int, step_x: int, start_x: int, ny: int, step_y: int, start_y: int, device: torch.device
) -> Tensor:
    """Places (ny * nx, 2) of a regular grid, as (x, y), line by line."""
    x = torch.arange(nx, device=device) * step_x + start_x
    y = torch.arange(ny, device=device) * step_y + start_y
    return torch.stack((x.expand(ny, nx), y[:, None].expand(ny, nx)), -1).view(-1, 2)


def _pair(x: Pair) -> tuple[int, int]:
    return (x, x) if isinstance(x, int) else (int(x[0]), int(x[1]))


def _conv_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _place_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check(where: str, name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape) != shape:
        raise UserError(
            f"{where}: expected {name} of shape {shape}, got {tuple(x.shape)}. "
            "Check the sizes of the other inputs and settings."
        )
