"""Anchors that take no part in the RPN's losses: rules in which the originals differ."""

from __future__ import annotations

from torch import Tensor

from maskrcnn.config import RulesConfig


def in_the_loss(anchors: Tensor, size: Tensor, strides: tuple[int, ...], rules: RulesConfig) -> Tensor | None:
    """Mask (A,) of the anchors (A, 4) of an image of `size`, (H, W), that its loss is of; None for all of them.

    ignore_padding: those count that are centred on the image, padded to the stride of a pyramid's last but one level.
    ignore_crossing: those count that lie within the image.
    """
    there = None
    if rules.ignore_padding:
        multiple = strides[max(0, len(strides) - 2)]
        height, width = (-(-side // multiple) * multiple for side in size)
        x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(1)
        there = (x < width - 0.5) & (y < height - 0.5)  # centres are whole numbers but for rounding
    if rules.ignore_crossing:
        inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2:] < size.flip(0)).all(1)
        there = inside if there is None else there & inside
    return there
