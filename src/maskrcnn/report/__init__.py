"""HTML pages about a run, about a data set, and about the defects of a data set."""

from maskrcnn.report.page import data_uri
from maskrcnn.report.run import Panel, Scores, write_report

__all__ = ["Panel", "Scores", "data_uri", "write_report"]
