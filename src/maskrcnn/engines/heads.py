"""The RPN's and the heads' dense parts on CPUs, in strips that stay in the cache and chunks that keep memory small."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn import processor
from maskrcnn.backbones.layers import Conv
from maskrcnn.engines import winograd
from maskrcnn.models.box_head import BoxHead
from maskrcnn.models.mask_head import MaskHead
from maskrcnn.models.places import RoIs
from maskrcnn.models.point_rend import PointRend
from maskrcnn.models.pooling import RoIFeatures, assign_levels
from maskrcnn.models.rpn import RPNHead
from maskrcnn.ops.roi_align import roi_align

# RoIs that go through C4's last stage at a time: all 1,000 would take gigabytes.
C4_CHUNK = 64
# Numbers pooled at a time otherwise: 128 MiB in float32. A pyramid's 1,000 RoIs are one chunk, DC5's are four.
CHUNK_NUMBERS = 1 << 25
# RoIs whose upsampled features exist at a time: those of 300 would take 0.25 GB.
MASK_CHUNK = 32


def rpn_head(self: RPNHead, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """`RPNHead.forward` with both predictions from one pass over the map, strip by strip where Winograd makes it."""
    num_anchors = len(self.objectness.weight)
    weight = torch.cat([self.objectness.weight, self.deltas.weight])
    bias = torch.cat([self.objectness.get_parameter("bias"), self.deltas.get_parameter("bias")])
    logits, deltas = [], []
    for feature in features:
        x = _predict(self.conv, feature, weight, bias)  # (B, H, W, 5 A)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        logits.append(x[..., :num_anchors].flatten(1))
        deltas.append(x[..., num_anchors:].reshape(len(x), -1, 4))
    return logits, deltas


def _predict(conv: nn.Module, feature: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    strips = (
        isinstance(conv, Conv)
        and winograd.wide_enough(conv.weight)
        and winograd.applies(feature, conv.weight)
    )
    if not strips:
        return F.conv2d(conv(feature), weight, bias).permute(0, 2, 3, 1)
    assert isinstance(conv, Conv)
    out = feature.new_empty(len(feature), *feature.shape[2:], len(weight))
    for where, x in winograd.strips(feature, conv.weight, conv.bias, relu=True):
        out[where] = F.conv2d(x.permute(0, 3, 1, 2), weight, bias).permute(0, 2, 3, 1)
    return out


def chunks(features: RoIFeatures, rois: RoIs, size: int) -> Iterator[Tensor]:
    """Yield the pooled features of RoIs as `RoIFeatures.pool` gives them, some RoIs at a time where
    all would take gigabytes. Yields one chunk at least, if of no RoI; in training the only one.
    """
    if torch.is_grad_enabled():
        yield features.pool(rois, size)
        return
    numbers = features.maps[0].shape[1] * size**2
    length = C4_CHUNK if features.res5 is not None else max(1, CHUNK_NUMBERS // numbers)
    for some in rois.with_image_index().split(length):
        yield _pool(features, some, size) if features.res5 is None else features.pool_rois(some, size)


def _pool(features: RoIFeatures, rois: Tensor, size: int) -> Tensor:
    """`RoIFeatures.pool_rois` from a pyramid, each level's RoIs written to their places at once."""
    if len(features.maps) == 1 or features.fixed_size:
        return features.pool_rois(rois, size)
    finest, coarsest = (int(math.log2(stride)) for stride in (features.strides[0], features.strides[-1]))
    levels = assign_levels(rois[:, 1:], finest, coarsest, features.level_epsilon) - finest
    shape, dtype = (len(rois), features.maps[0].shape[1], size, size), features.maps[0].dtype
    out = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
    for level, (feature, stride) in enumerate(zip(features.maps, features.strides, strict=True)):
        if len(place := (levels == level).nonzero()[:, 0]):
            how = (size, 1 / stride, features.sampling_ratio, features.aligned)
            out[place] = roi_align(feature, rois[place], *how)
    return out


def predict_rois(self: BoxHead, features: RoIFeatures, rois: RoIs) -> tuple[Tensor, Tensor]:
    """`BoxHead.predict_rois`, chunk by chunk."""
    parts = [self.predict_pooled(x) for x in chunks(features, rois, self.config.pool_size)]
    logits, deltas = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(deltas)


def masks(self: MaskHead, features: RoIFeatures, rois: RoIs, labels: Tensor) -> Tensor:
    """`MaskHead.forward`, chunk by chunk.

    The strides of a 2x2 deconvolution do not overlap, so it is a 1x1 convolution to four times the channels; the
    predictor is applied before the four are interleaved.
    """
    if self.config.class_agnostic:
        labels = torch.zeros_like(labels)
    logits, done = [], 0
    for pooled in chunks(features, rois, self.config.pool_size):
        for x in self.convs(pooled).split(MASK_CHUNK):
            logits.append(_predict_masks(self, x, labels[done : done + len(x)]))
            done += len(x)
    out = torch.cat(logits)
    return out.to(torch.promote_types(out.dtype, torch.float32))


def rendered_masks(self: PointRend, features: RoIFeatures, rois: RoIs, labels: Tensor) -> Tensor:
    """`PointRend.forward`, some RoIs of one image at a time: all points of 100 would take 0.5 GB."""
    image, boxes, out = rois.rows // rois.boxes.shape[1], rois.at(rois.boxes), []
    for i in range(len(rois.boxes)):
        of_image = RoIFeatures([features.maps[0][i : i + 1]], features.strides[:1])
        for some in (image == i).nonzero()[:, 0].split(MASK_CHUNK):
            part = RoIs(boxes[some][None], torch.arange(len(some)))
            out.append(PointRend.forward(self, of_image, part, labels[some]))
    return torch.cat(out) if out else PointRend.forward(self, features, rois, labels)


def _predict_masks(head: MaskHead, x: Tensor, labels: Tensor) -> Tensor:
    """Deconvolutions, ReLU and the predictor's row of each RoI's class: (R, C, S, S) -> (R, M, M)."""
    *first, last = (head.deconv, *cast("Iterable[nn.ConvTranspose2d]", head.finer))
    for deconv in first:
        x = F.relu_(deconv(x))
    size, channels = x.shape[-1], last.out_channels
    weight = last.weight.permute(2, 3, 1, 0).flatten(0, 2)[:, :, None, None]  # (2 * 2 * C, C_in, 1, 1)
    x = F.relu_(F.conv2d(x, weight, last.get_parameter("bias").repeat(4)))
    x = x.permute(0, 2, 3, 1).reshape(len(x), size * size * 4, channels)
    class_weight = head.predictor.weight[:, :, 0, 0][labels]  # (R, C)
    logits = torch.bmm(x, class_weight[:, :, None].to(x.dtype))[..., 0]
    logits = logits + head.predictor.get_parameter("bias")[labels][:, None]
    logits = logits.view(-1, size, size, 2, 2).permute(0, 1, 3, 2, 4)  # y, dy, x, dx
    return logits.reshape(-1, 2 * size, 2 * size)


def predict_pooled(self: BoxHead, x: Tensor) -> tuple[Tensor, Tensor]:
    """`BoxHead.predict_pooled` with convolutions for fully connected layers, which read the RoIs as they lie.

    Faster where oneDNN has AVX-512 and MKL has not: on AMD's processors. On AVX2 a convolution over whole RoIs takes
    five to eight times as long as the matrix product, on Intel's AVX-512 as long, and small layers a third longer. Nor
    in float64, which oneDNN has not.
    """
    if not len(x) or not processor.has_onednn() or x.dtype == torch.float64:
        return BoxHead.predict_pooled(self, x)
    x = self.convs(x)
    if len(self.fcs):
        weight, bias = self.fcs[0].get_parameter("weight"), self.fcs[0].get_parameter("bias")
        x = F.relu_(F.conv2d(x, weight.unflatten(1, x.shape[1:]), bias)).flatten(1)
    else:
        x = x.mean((2, 3))
    for fc in self.fcs[1:]:
        x = F.relu_(_convolved(x, fc))
    logits, deltas = _convolved(x, self.class_predictor), _convolved(x, self.box_predictor)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype), deltas.to(dtype).unflatten(1, (-1, 4))


def _convolved(x: Tensor, layer: nn.Module) -> Tensor:
    """Linear layer of (R, C) rows as a 1x1 convolution over one map of R places."""
    x = x.t()[None, :, :, None]  # (1, C, R, 1), channels-last without a copy
    weight = layer.get_parameter("weight")[:, :, None, None]
    return F.conv2d(x, weight, layer.get_parameter("bias"))[0, :, :, 0].t()
