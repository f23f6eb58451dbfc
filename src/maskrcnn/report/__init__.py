"""HTML pages about a run, about a data set, and about the defects of a data set."""

from maskrcnn.report.page import data_uri
from maskrcnn.report.run import Curve, Panel, Scores, line_chart, ticks, write_report

__all__ = ["Curve", "Panel", "Scores", "data_uri", "line_chart", "ticks", "write_report"]
