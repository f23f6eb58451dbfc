"""Multiply-adds of a model, counted part by part; one multiply-add is one.

The rules are those of the originals' own counts (fvcore's for detectron2, MMDetection's `get_flops` for the
transformers and InternImage): convolutions, matrix products and attention count; normalisation, activations,
interpolation, RoIAlign and the sampling of deformable attention do not. 1000 proposals go through the box head and
100 detections through the mask and key-point heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn.backbones.internimage import DCNv3
from maskrcnn.backbones.layers import Conv
from maskrcnn.backbones.swin import WindowAttention
from maskrcnn.backbones.vit import Attention
from maskrcnn.backbones.vitdet import RelativeAttention
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.point_rend import PointRend

PROPOSALS, DETECTIONS = 1000, 100


def count_macs(model: MaskRCNN, size: tuple[int, int] = (800, 1280)) -> dict[str, int]:
    """Count the multiply-adds of `backbone`, `neck`, `rpn`, `res5`, `box_head`, `mask_head`, `keypoint_head` for one
    image.

    size: (H, W) of the image, padded as the model asks; a model that pads to a square sees that.
    Nothing is computed: the model is moved to the meta device, and is of no use after.
    """
    model = model.to("meta").eval()
    multiple = model.config.input.size_divisor
    height, width = (-(-side // multiple) * multiple for side in size)
    if multiple == model.config.input.max_size:
        height = width = multiple
    macs = {}
    with torch.inference_mode():
        body = getattr(model.backbone, "body", model.backbone)
        with _counting(body) as in_body, _counting(model.backbone) as in_all:
            features = model.backbone(
                torch.empty(
                    1, model.config.input.num_channels, height, width, device="meta", dtype=model.dtype
                )
            )
        macs["backbone"] = sum(in_body)
        macs["neck"] = sum(in_all) - sum(in_body)
        places = sum(f.shape[2] * f.shape[3] for f in features)
        macs["rpn"] = places * _weights(model.rpn.head)
    pool_size = model.config.box_head.pool_size
    macs["box_head"] = PROPOSALS * _in_convs_and_fcs(model.get_submodule("box_head"), pool_size)
    if model.res5 is not None:
        with torch.inference_mode(), _counting(model.res5) as in_res5:
            shape = (1, features[0].shape[1], 2 * pool_size, 2 * pool_size)
            model.res5(torch.empty(shape, device="meta", dtype=model.dtype))
        again = DETECTIONS if model.mask_head is not None else 0  # their boxes are new ones
        macs["res5"] = (PROPOSALS + again) * sum(in_res5)
    for name in ("mask_head", "keypoint_head"):
        head, config = getattr(model, name), getattr(model.config, name)
        if isinstance(head, PointRend):
            macs[name] = DETECTIONS * _in_point_rend(head)
        elif head is not None:
            stages = getattr(head, "stages", [head])  # of a cascade's mask heads each
            macs[name] = DETECTIONS * sum(_in_tower(stage, config.pool_size) for stage in stages)
    return macs


def _in_convs_and_fcs(head: nn.Module, pool_size: int) -> int:
    """Multiply-adds for one RoI, in all stages of a box head: convolutions read every cell, fully connected layers
    all at once.
    """
    layers = [m for m in head.modules() if isinstance(m, Conv | nn.Linear)]
    return sum(m.weight.numel() * (pool_size**2 if isinstance(m, Conv) else 1) for m in layers)


def _in_tower(head: nn.Module, pool_size: int) -> int:
    """Multiply-adds for one RoI in a mask or key-point head: convolutions, a transposed one, and those after it at
    twice the size.
    """
    total, cells = 0, pool_size**2
    for m in head.modules():
        if isinstance(m, Conv | nn.ConvTranspose2d | nn.Conv2d):
            total += m.weight.numel() * cells
        if isinstance(m, nn.ConvTranspose2d):
            cells *= 4
    return total


def _in_point_rend(head: PointRend) -> int:
    """Multiply-adds for one RoI: the coarse head once, the point head at every point that is computed."""
    coarse, c = head.coarse_head, head.points
    sides = [c.start_size * 2**k for k in range(1, c.num_subdivisions + 1)]
    points = c.start_size**2 + sum(min(c.num_points, side**2) for side in sides)
    in_conv = coarse.conv.weight.numel() * coarse.size**2
    return in_conv + _in_convs_and_fcs(coarse, coarse.size) + _weights(head.point_head) * points


def _weights(module: nn.Module) -> int:
    """Multiply-adds at one place of a map: all weights of the module, without biases and norms."""
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)


@contextmanager
def _counting(module: nn.Module) -> Iterator[list[int]]:
    """Collect the multiply-adds of every layer inside `module` that runs within the block."""
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        counts.append(_macs(layer, inputs, output))

    hooks = [m.register_forward_hook(count) for m in module.modules() if _counts(m)]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _counts(layer: nn.Module) -> bool:
    kinds = (
        Conv
        | nn.Conv2d
        | nn.ConvTranspose2d
        | nn.Linear
        | DCNv3
        | Attention
        | RelativeAttention
        | WindowAttention
    )
    return isinstance(layer, kinds)


def _macs(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return layer.weight.numel() * (output.numel() // layer.out_features)
    if isinstance(layer, Conv | nn.Conv2d):
        return layer.weight.numel() * (output.numel() // output.shape[1])
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.weight.numel() * (inputs[0].numel() // inputs[0].shape[1])
    if isinstance(layer, Attention | RelativeAttention):  # beyond the layers inside it: logits, weighted sums
        num_keys = output.shape[1] if layer.window is None else layer.window**2
        return 2 * num_keys * output.numel()
    if isinstance(layer, WindowAttention):  # likewise, of windows with what fills them up
        B, H, W, C = output.shape
        T = layer.window
        return 2 * T**2 * B * (-(-H // T) * T) * (-(-W // T) * T) * C
    assert isinstance(layer, DCNv3)  # likewise: 9 samples of 5 products each
    return 5 * 9 * output.numel()
