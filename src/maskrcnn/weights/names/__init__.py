"""Parameter names of the published files, a publisher a file, all with one interface, `Names`."""

from maskrcnn.weights.names.caffe2 import BARE, CAFFE2
from maskrcnn.weights.names.detectron2 import DETECTRON2
from maskrcnn.weights.names.mmdetection import MMDETECTION
from maskrcnn.weights.names.ours import OURS
from maskrcnn.weights.names.pretrained import PRETRAINED
from maskrcnn.weights.names.protocol import Kind, Names, Renamed
from maskrcnn.weights.names.torchvision import DETECTOR, MOBILENET, RESNET

# A file's names are those of one of these at most: their order does not matter (a test holds it).
FORMATS: tuple[Names, ...] = (
    OURS,
    DETECTRON2,
    MMDETECTION,
    DETECTOR,
    RESNET,
    MOBILENET,
    CAFFE2,
    BARE,
    PRETRAINED,
)

__all__ = ["FORMATS", "Kind", "Names", "Renamed"]
