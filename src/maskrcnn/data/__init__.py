"""Data sets of several formats: reading, checks, transforms and batches."""

from maskrcnn.data.coco import CocoData, read_coco
from maskrcnn.data.export import to_coco
from maskrcnn.data.find import find_data, read_data
from maskrcnn.data.quality.advice import advise, compare
from maskrcnn.data.quality.check import check, checked
from maskrcnn.data.quality.defects import Finding, Report
from maskrcnn.data.readers import FORMATS
from maskrcnn.data.readers.coco import find_coco
from maskrcnn.data.source import Source, Sources

__all__ = [
    "FORMATS",
    "CocoData",
    "Finding",
    "Report",
    "Source",
    "Sources",
    "advise",
    "check",
    "checked",
    "compare",
    "find_coco",
    "find_data",
    "read_coco",
    "read_data",
    "to_coco",
]
