"""Masks of objects: ground truth as it was drawn, predictions as small as they come, COCO's RLE."""

from maskrcnn.masks.ground_truth import InstanceMasks
from maskrcnn.masks.predicted import PredictedMasks, whole_pixel_boxes
from maskrcnn.masks.rle import rle_area, rle_decode, rle_encode

__all__ = ["InstanceMasks", "PredictedMasks", "rle_area", "rle_decode", "rle_encode", "whole_pixel_boxes"]
