"""Prediction for pictures as people have them: read, resized as the original does it, detected, one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from maskrcnn.config import InputConfig, TTAConfig
from maskrcnn.errors import UserError, check_number, described
from maskrcnn.images.bands import for_people, refuse_bands, shown
from maskrcnn.images.pictures import Picture, input_of, is_picture
from maskrcnn.images.resize import resize_image, resize_size
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.tta import detect_in_views
from maskrcnn.processor import let_forks_compute
from maskrcnn.structures import Instances

if TYPE_CHECKING:
    from maskrcnn.tiles.tiled import TiledInstances


class Predictor(MaskRCNN):
    """Mask R-CNN that takes pictures. Build one with `maskrcnn.build` or `maskrcnn.load`."""

    @overload
    def predict(
        self,
        images: Picture,
        *,
        min_size: int | None = ...,
        max_size: int | None = ...,
        score_threshold: float | None = ...,
        tta: TTAConfig | None = ...,
    ) -> Instances: ...
    @overload
    def predict(
        self,
        images: Sequence[Picture],
        *,
        min_size: int | None = ...,
        max_size: int | None = ...,
        score_threshold: float | None = ...,
        tta: TTAConfig | None = ...,
    ) -> list[Instances]: ...
    @overload
    def predict(
        self,
        images: str | Path | np.ndarray,
        *,
        min_size: int | None = ...,
        max_size: int | None = ...,
        score_threshold: float | None = ...,
        tile: int,
        overlap: int | None = ...,
    ) -> TiledInstances: ...
    def predict(
        self,
        images: Any,
        *,
        min_size: int | None = None,
        max_size: int | None = None,
        score_threshold: float | None = None,
        tta: TTAConfig | None = None,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> Instances | list[Instances] | TiledInstances:
        """Detect the objects of a picture, or of each of several.

        images: a path, a file opened for reading bytes, an (H, W, 3) uint8 RGB array or a Pillow image, whose pixels
        are taken as they are, without its EXIF orientation; for a model of bands a path, an open file or an (H, W, C)
        array of them; a list of these gives a list.
        min_size, max_size: shortest and longest side that the network sees, by default the model's own.
        score_threshold: only detections of a score above it; by default the model's own threshold, 0.05.
        tta: look at each picture in these sizes and mirrored, instead of once, and merge what is found.
        tile, overlap: look at one picture, a path or an array of any size, in tiles of so many pixels that share
        `overlap` with their neighbours, by default an eighth of a tile, and put together what seams cut: see
        `tiles.tiled.predict_tiled`.

        What else a model goes by is in its config, to be changed before: `config.box_head` (nms_threshold,
        class_agnostic_nms, detections_per_image) and `config.mask_head` (threshold).

        A process that is forked after this, as `multiprocessing.Pool` does on Linux, computes with one thread:
        OpenMP's do not survive a fork. It must not ask Torch for more.

        Raises:
            UserError: a file that cannot be read, an array of another shape or type, anything else for a picture, a
                size below 1, a threshold outside 0 to 1, sizes given in both ways; with a tile, several pictures, an
                overlap below 16 or above half the tile.
        """
        sizes: dict[str, Any] = {
            "min_size": min_size,
            "max_size": max_size,
            "score_threshold": score_threshold,
        }
        if tile is None:
            if overlap is not None:
                raise UserError("predict: overlap: expected a tile with it, got none. Give tile.")
            return predict(self, images, tta=tta, **sizes)
        if tta is not None or not isinstance(images, str | Path | np.ndarray):
            raise UserError("predict: tile: expected one path or array and no tta with it.")
        refuse_bands(self.config.input, "predict: tile")
        from maskrcnn.tiles.tiled import predict_tiled, usual_overlap

        shared = usual_overlap(tile) if overlap is None else overlap
        return predict_tiled(_Sized(self, sizes), images, tile, shared)


class _Sized:
    """A network that sees each picture in the sizes given."""

    def __init__(self, network: MaskRCNN, sizes: Mapping[str, Any]) -> None:
        self.network, self.sizes = network, sizes

    def predict(self, images: Any, /) -> Instances:
        return predict(self.network, images, **self.sizes)


def predict(
    network: MaskRCNN,
    images: Picture | Sequence[Picture],
    *,
    min_size: int | None = None,
    max_size: int | None = None,
    score_threshold: float | None = None,
    tta: TTAConfig | None = None,
) -> Any:
    """Detect the objects of a picture, or of each of several: see `Predictor.predict`.

    Raises:
        UserError: a file that cannot be read, an array of another shape or type, anything else for a picture, a
            size below 1, a threshold outside 0 to 1, sizes given in both ways.
    """
    if min_size is not None:
        min_size = check_number(min_size, "predict: min_size", 1, whole=True)
    if max_size is not None:
        max_size = check_number(max_size, "predict: max_size", 1, whole=True)
    if score_threshold is not None:
        score_threshold = check_number(score_threshold, "predict: score_threshold", 0, 1)
    if tta is not None:
        _check_views(tta)
        if min_size is not None or max_size is not None:
            raise UserError("predict: expected sizes in tta or as min_size and max_size, got both.")

    def one(picture: Picture, where: str) -> Instances:
        image = input_of(picture, where, network.config.input)
        let_forks_compute()
        was_training = network.training
        network.train(False)
        try:
            if tta is None:
                instances = _seen_once(network, image, min_size, max_size, score_threshold)
            else:
                instances = detect_in_views(network, image, tta, score_threshold)
        finally:
            network.train(was_training)
        instances.image = _picture_of(picture, image, network.config.input)
        return instances

    given: Any = images
    if not _are_several(given):
        return one(given, "predict")
    return [one(image, f"predict: images[{i}]") for i, image in enumerate(given)]


def _seen_once(
    network: MaskRCNN,
    image: np.ndarray,
    min_size: int | None,
    max_size: int | None,
    score_threshold: float | None,
) -> Instances:
    original, c = (image.shape[0], image.shape[1]), network.config.input
    size = resize_size(*original, min_size or c.min_size, max_size or c.max_size, c.resize)
    resized = torch.from_numpy(np.ascontiguousarray(resize_image(image, size, c.resize))).permute(2, 0, 1)
    return network.detect(network.preprocess([resized], [original]), score_threshold)[0]


def _picture_of(given: Picture, pixels: np.ndarray, config: InputConfig) -> Picture:
    """Picture for people, a path where one was given: it waits in less memory than pixels."""
    if isinstance(given, str | Path):
        return for_people(given, config)
    return shown(pixels, config) if config.channels else pixels


def _are_several(images: object) -> bool:
    """Return True for an iterable of pictures, False for a single picture and for containers that hold none."""
    none = Tensor | Mapping | AbstractSet | bytes | bytearray | memoryview
    return isinstance(images, Iterable) and not is_picture(images) and not isinstance(images, none)


def _check_views(tta: TTAConfig) -> None:
    if not isinstance(tta, TTAConfig):
        raise UserError(f"predict: tta: expected a TTAConfig, got {described(tta)}.")
    if not tta.min_sizes:
        raise UserError("predict: tta.min_sizes: expected one size or more, got none.")
    for size in (*tta.min_sizes, tta.max_size):
        check_number(size, "predict: a size of tta", 1, whole=True)
