"""Prediction over many images: from paths to `predictions.json` and pictures, in memory that does not grow."""

from maskrcnn.predict.stream import (
    PREDICTIONS,
    check_outputs,
    find_images,
    not_read,
    predict_stream,
    write_predictions,
    write_results,
)
from maskrcnn.predict.tiled import TiledInstances, check_overlap, predict_tiled

__all__ = [
    "PREDICTIONS",
    "TiledInstances",
    "check_outputs",
    "check_overlap",
    "find_images",
    "not_read",
    "predict_stream",
    "predict_tiled",
    "write_predictions",
    "write_results",
]
