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
from maskrcnn.ops.sampling import gather_sum

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
    """The core of DCNv3: each group of channels sums kh * kw samples around each place, weighted by `mask`.

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
    real = _place_dtype(input)
    device = input.device
    # The centre of the kernel at each place, and the kernel's points about it: half a kernel rounds down.
    y = torch.arange(Ho, device=device, dtype=real) * sh + (dh * (kh - 1) // 2 - ph)
    x = torch.arange(Wo, device=device, dtype=real) * sw + (dw * (kw - 1) // 2 - pw)
    ky = (torch.arange(kh, device=device, dtype=real) * dh - dh * (kh - 1) // 2).repeat(kw)
    kx = (torch.arange(kw, device=device, dtype=real) * dw - dw * (kw - 1) // 2).repeat_interleave(kh)
    offset = offset.reshape(N, Ho, Wo, groups, K, 2).to(real)
    x = x[:, None, None] + (kx + offset[..., 0]) * offset_scale
    y = y[:, None, None, None] + (ky + offset[..., 1]) * offset_scale
    out = _bilinear_sum(
        input.reshape(N, H * W, groups, C // groups),
        x.reshape(N, Ho * Wo, groups, K),
        y.reshape(N, Ho * Wo, groups, K),
        mask.reshape(N, Ho * Wo, groups, K),
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
    N, S, M, D = value.shape
    if sum(h * w for h, w in shapes) != S:
        raise UserError(
            f"ms_deform_attn: expected value with the {sum(h * w for h, w in shapes)} places of maps {shapes}, "
            f"got {S}. Concatenate the flattened maps in the order of spatial_shapes."
        )
    Q, P = attention_weights.shape[1], attention_weights.shape[-1]
    L = len(shapes)
    _check("ms_deform_attn", "sampling_locations", sampling_locations, (N, Q, M, L, P, 2))
    _check("ms_deform_attn", "attention_weights", attention_weights, (N, Q, M, L, P))
    real = _place_dtype(value)
    size = torch.tensor(shapes, device=value.device, dtype=real).flip(1)  # (L, 2): W, H
    places = sampling_locations.to(real) * size[:, None] - 0.5
    x, y = places.reshape(N, Q, M, L * P, 2).unbind(-1)
    return _bilinear_sum(value, x, y, attention_weights.reshape(N, Q, M, L * P), shapes).view(N, Q, M * D)


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
    real = _place_dtype(input)
    device = input.device
    y = torch.arange(Ho, device=device, dtype=real) * sh - ph
    x = torch.arange(Wo, device=device, dtype=real) * sw - pw
    ky = (torch.arange(kh, device=device, dtype=real) * dh).repeat_interleave(kw)
    kx = (torch.arange(kw, device=device, dtype=real) * dw).repeat(kh)
    offset = offset.to(real).reshape(N, G, K, 2, Ho, Wo).permute(0, 4, 5, 2, 1, 3)  # (N, Ho, Wo, K, G, 2)
    y = y[:, None, None, None] + ky[:, None] + offset[..., 0]
    x = x[:, None, None] + kx[:, None] + offset[..., 1]
    if mask is None:
        share = input.new_ones(()).expand(N, Ho, Wo, K, G)
    else:
        share = mask.reshape(N, G, K, Ho, Wo).permute(0, 3, 4, 2, 1)
    rows = input.permute(0, 2, 3, 1).reshape(N, H * W, G, C // G)
    flat = (N, Ho * Wo * K, G, 1)
    columns = _bilinear_sum(rows, x.reshape(flat), y.reshape(flat), share.reshape(flat), [(H, W)])
    groups = C // per_group
    columns = columns.view(N * Ho * Wo, K, groups, per_group)
    kernel = weight.reshape(groups, out_channels // groups, per_group, K)
    out = torch.einsum("nkgc,gock->ngo", columns, kernel.to(columns.dtype))
    out = out.reshape(N, Ho, Wo, out_channels).permute(0, 3, 1, 2)
    return out if bias is None else out + bias[:, None, None].to(out.dtype)


def _bilinear_sum(
    rows: Tensor, x: Tensor, y: Tensor, weight: Tensor, shapes: list[tuple[int, int]]
) -> Tensor:
    """Weighted sums of bilinear samples: (N, Q, G * D) of rows (N, S, G, D), places and weights (N, Q, G, K).

    The K points are those of each map in turn, equally many a map.
    """
    (N, S, G, D), (_, Q, _, K) = rows.shape, weight.shape
    each = K // len(shapes)
    device = rows.device
    size = torch.tensor(shapes, device=device)
    first = (size.prod(1).cumsum(0) - size.prod(1)).repeat_interleave(each)
    height, width = size.repeat_interleave(each, dim=0).unbind(1)
    base = torch.arange(N, device=device)[:, None, None, None] * S + first
    group = torch.arange(G, device=device)[:, None]
    index, share = [], []
    low_y, low_x = y.detach().floor(), x.detach().floor()
    for dy in (0, 1):
        at_y = low_y + dy
        for dx in (0, 1):
            at_x = low_x + dx
            w = (1 - (y - at_y).abs()) * (1 - (x - at_x).abs())
            inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
            place = torch.where(inside, at_y, 0).long() * width + torch.where(inside, at_x, 0).long()
            index.append((base + place) * G + group)
            share.append(torch.where(inside, w, 0) * weight)
    table = rows.reshape(N * S * G, D)
    index, share = torch.stack(index, -1), torch.stack(share, -1)
    out = gather_sum(table, index.reshape(-1, K * 4), share.reshape(-1, K * 4).to(table.dtype))
    return out.view(N, Q, G * D)


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
