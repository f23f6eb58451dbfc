"""Prediction with an exported model where PyTorch is not: numpy, Pillow and ONNX Runtime or OpenVINO alone.

    model = maskrcnn.runtime.ExportedModel("nuclei.onnx")
    found = model.predict("photo.jpg")

`python -m maskrcnn.runtime nuclei.onnx photo.jpg --out out` does what `maskrcnn predict` does with the same file.
docs/howto/export.md tells how to install it without PyTorch.
"""

from maskrcnn.runtime.found import Found
from maskrcnn.runtime.model import ExportedModel

__all__ = ["ExportedModel", "Found"]
