"""HTML pages about a run, a model's results, a data set, and the defects of a data set."""

from maskrcnn.report.page import Panel, data_uri
from maskrcnn.report.run import Scores, write_report

__all__ = ["Panel", "Scores", "data_uri", "write_report"]
