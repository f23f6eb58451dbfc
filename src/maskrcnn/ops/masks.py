"""Masks of objects: ground truth as it was drawn, predictions as small as they come, COCO's RLE."""

from maskrcnn.ops.instance_masks import InstanceMasks
from maskrcnn.ops.predicted_masks import PredictedMasks, whole_pixel_boxes
from maskrcnn.ops.rle import rle_area, rle_decode, rle_encode

__all__ = ["InstanceMasks", "PredictedMasks", "rle_area", "rle_decode", "rle_encode", "whole_pixel_boxes"]
