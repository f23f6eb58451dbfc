"""A model from an ONNX file that `maskrcnn export` wrote, run by ONNX Runtime and used like any other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn.config import ModelConfig, from_dict
from maskrcnn.errors import UserError, one_line
from maskrcnn.images.pictures import Picture
from maskrcnn.masks import PredictedMasks, whole_pixel_boxes
from maskrcnn.models.predictor import predict
from maskrcnn.ops.boxes import clip_boxes, nonempty, scale_boxes
from maskrcnn.structures import ImageBatch, Instances

VERSION = "1"  # of the graph's inputs and outputs, in the file's metadata under "maskrcnn"
EXTRA = "Run: pip install 'maskrcnn[onnx]'"


class OnnxModel:
    """Exported model with the interface of `models.predictor.Predictor`, as far as predicting goes.

    Raises:
        UserError: ONNX Runtime is not installed; no such file, a damaged one, or one that `maskrcnn export` did not
            write.
    """

    training = False
    engine = "onnx"
    device = torch.device("cpu")

    def __init__(self, path: str | Path, num_threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UserError(f"{path}: expected ONNX Runtime to read it, got none. {EXTRA}") from None
        if not Path(path).is_file():
            raise UserError(f"{path}: no such model file.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
            facts = self._session.get_modelmeta().custom_metadata_map
        except Exception as e:  # of kinds of its own
            raise UserError(
                f"{path}: expected an ONNX model, got a damaged file ({one_line(str(e))[:120]})."
            ) from None
        if facts.get("maskrcnn") != VERSION:
            got = facts.get("maskrcnn", "none")
            raise UserError(
                f"{path}: expected a model that this version of `maskrcnn export` wrote (form {VERSION}), "
                f"got form {got}."
            )
        self.config = from_dict(ModelConfig, json.loads(facts["config"]), f"{path}: config")
        self._fixed = json.loads(facts.get("fixed", "{}"))

    def eval(self) -> OnnxModel:
        return self

    def train(self, mode: bool = True) -> OnnxModel:
        return self

    def preprocess(
        self, images: Sequence[Tensor], original_sizes: Sequence[tuple[int, int]] | None = None
    ) -> ImageBatch:
        """Pad uint8 RGB images (3, h, w), already at the network's size, to one size: pixels (B, 3, H, W), 0..255.

        Raises:
            UserError: more or larger pictures than the file was made for.
        """
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        divisor = self.config.input.size_divisor
        height, width = (-(-max(side) // divisor) * divisor for side in zip(*sizes, strict=True))
        if fixed := self._fixed.get("size"):
            if height > fixed[0] or width > fixed[1]:
                raise UserError(
                    f"the exported model takes pictures of up to {fixed[0]} x {fixed[1]} pixels, "
                    f"got {height} x {width}. "
                    "Give smaller --min-size and --max-size, or export it without --size."
                )
            height, width = fixed
        count = len(images)
        if batch := self._fixed.get("batch"):
            if count > batch:
                raise UserError(f"the exported model takes {batch} pictures at a time, got {count}.")
            count = batch
        pixels = torch.zeros(count, 3, height, width)
        for image, (h, w), out in zip(images, sizes, pixels):
            out[:, :h, :w] = image
        return ImageBatch(pixels, sizes, list(original_sizes or sizes))

    def detect(self, batch: ImageBatch, score_threshold: float | None = None) -> list[Instances]:
        """Detections of each image in its original pixels: of scores above `score_threshold`, and above the one that
        the file was written with.
        """
        sizes = batch.image_sizes + [(1, 1)] * (len(batch.pixels) - len(batch.image_sizes))
        inputs = {"images": batch.pixels.numpy(), "image_sizes": np.array(sizes, np.int64)}
        names = [one.name for one in self._session.get_outputs()]
        out: dict[str, Any] = dict(zip(names, self._session.run(None, inputs), strict=True))
        found = zip(batch.image_sizes, batch.original_sizes, strict=True)
        return [self._finish(out, i, *of_one, score_threshold) for i, of_one in enumerate(found)]

    def _finish(
        self,
        out: dict[str, Any],
        i: int,
        size: tuple[int, int],
        original: tuple[int, int],
        threshold: float | None,
    ) -> Instances:
        n = int(out["counts"][i])
        boxes, scores = (torch.from_numpy(np.array(out[name][i, :n])) for name in ("boxes", "scores"))
        boxes = clip_boxes(scale_boxes(boxes, size, original), original)
        keep = nonempty(boxes) if threshold is None else nonempty(boxes) & (scores > threshold)
        boxes, masks, head = boxes[keep], None, self.config.mask_head
        if head is not None:
            probs = torch.from_numpy(np.array(out["masks"][i, :n]))[keep]
            at_pixels = self.config.rules.paste == "torchvision"
            where = whole_pixel_boxes(boxes, probs.shape[-1]) if at_pixels else boxes
            masks = PredictedMasks(probs, where, original, head.threshold)
        labels = torch.from_numpy(np.array(out["labels"][i, :n]))[keep]
        return Instances(original, boxes, scores[keep], labels, masks, class_names=self.config.class_names)

    def predict(self, images: Picture | Sequence[Picture], **how: Any) -> Any:
        """Detect the objects of a picture, or of each of several: see `Predictor.predict`; without `tta`."""
        if how.get("tta") is not None:
            raise UserError(
                "predict: expected no test-time augmentation for an exported model. Leave out tta."
            )
        return predict(self, images, **how)  # pyright: ignore[reportArgumentType]
