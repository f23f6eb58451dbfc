"""A model from a file that `maskrcnn export` wrote, run by ONNX Runtime, OpenVINO or PyTorch and used like any other.

`maskrcnn.runtime` does the work; here its arrays become tensors and `Instances`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskrcnn.config import ModelConfig, from_dict
from maskrcnn.engines.pt2 import Pt2Session
from maskrcnn.errors import UserError
from maskrcnn.images.pictures import Picture
from maskrcnn.masks import PredictedMasks
from maskrcnn.models.predictor import predict
from maskrcnn.runtime import ExportedModel, Found
from maskrcnn.runtime.sessions import Session
from maskrcnn.structures import ImageBatch, Instances

PT2 = ".pt2"
ENGINE_OF = {".onnx": "onnx", ".xml": "openvino", PT2: "torch"}  # by a file's ending


class ExportedPredictor:
    """Exported model with the interface of `models.predictor.Predictor`, as far as predicting goes.

    engine: "onnx", "openvino" or "torch", by the file.

    Raises:
        UserError: its runtime is not installed; no such file, a damaged one, or one that `maskrcnn export` did not
            write.
    """

    training = False
    device = torch.device("cpu")

    def __init__(
        self, path: str | Path, num_threads: int | None = None, session: Session | None = None
    ) -> None:
        if session is None and Path(path).suffix == PT2:
            session = Pt2Session(Path(path))
        self._model = ExportedModel(path, num_threads or torch.get_num_threads(), session)
        self.engine = self._model.engine
        self.config = from_dict(ModelConfig, self._model.config, f"{path}: config")

    def eval(self) -> ExportedPredictor:
        return self

    def train(self, mode: bool = True) -> ExportedPredictor:
        return self

    def preprocess(
        self, images: Sequence[Tensor], original_sizes: Sequence[tuple[int, int]] | None = None
    ) -> ImageBatch:
        """Pad uint8 RGB images (3, h, w), already at the network's size, to one size: pixels (B, 3, H, W), 0..255.

        Raises:
            UserError: more or larger pictures than the file was made for.
        """
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        pixels = self._model.padded([image.permute(1, 2, 0).numpy() for image in images])
        return ImageBatch(torch.from_numpy(pixels), sizes, list(original_sizes or sizes))

    def detect(self, batch: ImageBatch, score_threshold: float | None = None) -> list[Instances]:
        """Detections of each image in its original pixels: of scores above `score_threshold`, and above the one that
        the file was written with.
        """
        pixels = batch.pixels.numpy()
        found = self._model.detect(pixels, batch.image_sizes, batch.original_sizes, score_threshold)
        return [self._instances(one) for one in found]

    def _instances(self, found: Found) -> Instances:
        masks, points = None, found.keypoints
        if found.mask_probs is not None and found.mask_boxes is not None:
            probs, boxes = torch.from_numpy(found.mask_probs), torch.from_numpy(found.mask_boxes)
            masks = PredictedMasks(probs, boxes, found.image_size, found.mask_threshold)
        head = self.config.keypoint_head
        return Instances(
            found.image_size,
            torch.from_numpy(found.boxes),
            torch.from_numpy(found.scores),
            torch.from_numpy(found.labels),
            masks,
            None if points is None else torch.from_numpy(points),
            class_names=self.config.class_names,
            skeleton=() if head is None else head.skeleton,
        )

    def predict(self, images: Picture | Sequence[Picture], **how: Any) -> Any:
        """Detect the objects of a picture, or of each of several: see `Predictor.predict`; without `tta`."""
        if how.get("tta") is not None:
            raise UserError(
                "predict: expected no test-time augmentation for an exported model. Leave out tta."
            )
        return predict(self, images, **how)  # pyright: ignore[reportArgumentType]
