"""Masks of objects: ground truth as it was drawn, predictions as small as they come, COCO's RLE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskrcnn.masks.ground_truth import InstanceMasks
    from maskrcnn.masks.paste import whole_pixel_boxes
    from maskrcnn.masks.predicted import PredictedMasks
    from maskrcnn.masks.rle import rle_area, rle_decode, rle_encode

__all__ = ["InstanceMasks", "PredictedMasks", "rle_area", "rle_decode", "rle_encode", "whole_pixel_boxes"]

_HOME = {"InstanceMasks": "ground_truth", "PredictedMasks": "predicted", "whole_pixel_boxes": "paste"}


def __getattr__(name: str) -> Any:
    # Lazy, so that what needs no torch, `maskrcnn.runtime`, gets at pasting and RLE without it.
    if name not in __all__:
        raise AttributeError(f"module 'maskrcnn.masks' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"maskrcnn.masks.{_HOME.get(name, 'rle')}"), name)
