"""Data sets: COCO JSON to samples, what is wrong with them, transforms and batches."""

from maskrcnn.data.check import check, checked
from maskrcnn.data.coco import CocoData, read_coco
from maskrcnn.data.defects import Finding, Report
from maskrcnn.data.find import CocoSource, CocoSources, find_coco

__all__ = [
    "CocoData",
    "CocoSource",
    "CocoSources",
    "Finding",
    "Report",
    "check",
    "checked",
    "find_coco",
    "read_coco",
]
