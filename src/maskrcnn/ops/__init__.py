"""Operators: boxes, matching, masks, images, and sampling of feature maps."""

from maskrcnn.ops.deformable import dcnv3, deform_conv2d, ms_deform_attn
from maskrcnn.ops.roi_align import roi_align
from maskrcnn.ops.suppression import suppress

__all__ = ["dcnv3", "deform_conv2d", "ms_deform_attn", "roi_align", "suppress"]
