"""Predictions of the RPN's head at some anchors only.

The RPN's loss touches a few hundred of some 200,000 anchors, so the gradient of the dense maps is zero nearly
everywhere; going backward through their convolutions would be a seventh of a training step on a CPU. So the dense maps
are made without a gradient, for the proposals, and the head runs once more where the loss looks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import Conv


def predict_at(
    convs: nn.Module, objectness: Conv, deltas: Conv, features: list[Tensor], index: Tensor
) -> tuple[Tensor, Tensor]:
    """Predict at S sampled anchors of each image: logits (B, S) and deltas (B, S, 4), float32 at least.

    convs: the head's 3x3 convolution, or several; features: L maps (B, C, H, W); index: (B, S) among the anchors of
    an image's levels.
    """
    if isinstance(convs, nn.Sequential):  # only the last can do with a few places
        features = [convs[:-1](feature) for feature in features]
    conv = convs[-1] if isinstance(convs, nn.Sequential) else convs
    assert isinstance(conv, Conv)
    num_anchors = len(objectness.weight)
    place, anchor = index.div(num_anchors, rounding_mode="floor"), (index % num_anchors).flatten()
    image = torch.arange(index.shape[0], device=index.device)[:, None].expand_as(index)
    rows, first = [], 0
    for feature in features:
        count = feature.shape[2] * feature.shape[3]
        here = (place >= first) & (place < first + count)
        around = _neighbourhoods(feature, image.flatten(), (place - first).clamp(0, count - 1).flatten())
        rows.append(torch.where(here.view(-1, 1), around, 0))  # the other levels' are zero
        first += count
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)  # (C, 3 * 3 * C)
    x = F.relu_(F.linear(torch.stack(rows).sum(0), weight, conv.bias))
    logit = _own(x, objectness, anchor, num_anchors)[:, 0]
    return logit.view_as(index), _own(x, deltas, anchor, num_anchors).view(*index.shape, 4)


def _own(x: Tensor, predictor: Conv, anchor: Tensor, num_anchors: int) -> Tensor:
    """Numbers that a 1x1 convolution predicts for one anchor of each place (S, C): (S, numbers of an anchor)."""
    assert predictor.bias is not None
    weight = predictor.weight.view(num_anchors, -1, x.shape[1])[anchor].to(x.dtype)
    out = torch.einsum("sc,skc->sk", x, weight) + predictor.bias.view(num_anchors, -1)[anchor]
    return out.to(torch.promote_types(x.dtype, torch.float32))


def _neighbourhoods(feature: Tensor, image: Tensor, place: Tensor) -> Tensor:
    """Gather the inputs of a 3x3 convolution at S places of maps (B, C, H, W): (S, 3 * 3 * C), zero outside the map."""
    channels, height, width = feature.shape[1:]
    step = torch.arange(-1, 2, device=place.device)
    y = (place.div(width, rounding_mode="floor")[:, None] + step)[:, :, None]  # (S, 3, 1)
    x = (place % width)[:, None, None] + step  # (S, 1, 3)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    index = (image[:, None, None] * height + y.clamp(0, height - 1)) * width + x.clamp(0, width - 1)
    rows = feature.permute(0, 2, 3, 1).flatten(0, 2)[index.flatten()]
    return (rows * inside.flatten()[:, None]).view(len(place), 9 * channels)
