"""Prediction over many images: from paths to files of results and pictures, in memory that does not grow."""

from maskrcnn.evaluation.inference import predict_stream
from maskrcnn.predict.formats import FORMATS
from maskrcnn.predict.formats.results import PREDICTIONS
from maskrcnn.predict.inputs import find_images, not_read, read_shard, sharded
from maskrcnn.predict.write import check_outputs, write_predictions
from maskrcnn.tiles.tiled import TiledInstances, predict_tiled

__all__ = [
    "FORMATS",
    "PREDICTIONS",
    "TiledInstances",
    "check_outputs",
    "find_images",
    "not_read",
    "predict_stream",
    "predict_tiled",
    "read_shard",
    "sharded",
    "write_predictions",
]
