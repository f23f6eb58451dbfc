"""Prediction over many images: from paths to `predictions.json` and pictures, in memory that does not grow."""

from maskrcnn.predict.stream import (
    PREDICTIONS,
    check_outputs,
    find_images,
    not_read,
    predict_stream,
    write_predictions,
)

__all__ = ["PREDICTIONS", "check_outputs", "find_images", "not_read", "predict_stream", "write_predictions"]
