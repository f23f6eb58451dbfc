"""Operators: boxes, matching, masks, images, and sampling of feature maps."""

from maskrcnn.ops.sampling import roi_align

__all__ = ["roi_align"]
