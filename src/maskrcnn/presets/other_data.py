"""Models of detectron2's zoo for other data than COCO, by its names: LVIS v0.5 and Cityscapes.

Trained like the others of this zoo (`presets.detectron2`). AP is box / mask, on the data's own validation part and by
its own rules.
"""

from __future__ import annotations

from collections.abc import Callable

from maskrcnn.config import Config
from maskrcnn.presets import detectron2

CITYSCAPES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
_LVIS = "LVISv0.5-InstanceSegmentation"


def lvis_mask_rcnn_R_50_FPN_1x() -> Config:
    """LVIS v0.5 with 1,230 classes: 300 detections above 0.0001, images of rare classes seen more often.

    R-50.pkl. Published: 23.6 / 24.4; 0.292 s an iteration, 7.3 hours. Classes go by LVIS's ids, 1 to 1230.
    """
    return _lvis("R_50", detectron2.mask_rcnn_R_50_FPN_1x())


def lvis_mask_rcnn_R_101_FPN_1x() -> Config:
    """R-101.pkl. Published: 25.6 / 25.9; 0.371 s an iteration, 9.3 hours."""
    return _lvis("R_101", detectron2.mask_rcnn_R_101_FPN_3x())


def lvis_mask_rcnn_X_101_32x8d_FPN_1x() -> Config:
    """X-101-32x8d.pkl. Published: 26.7 / 27.1; 0.712 s an iteration, 17.8 hours."""
    return _lvis("X_101_32x8d", detectron2.mask_rcnn_X_101_32x8d_FPN_3x())


def cityscapes_mask_rcnn_R_50_FPN() -> Config:
    """Cityscapes' eight classes, from COCO's weights (`--weights` of mask_rcnn_R_50_FPN_3x); 8 images an iteration.

    Published: mask AP 36.5, by Cityscapes' own evaluation; 0.240 s an iteration, 1.6 hours.
    """
    config = detectron2.mask_rcnn_R_50_FPN_1x()
    config.model.name = "Cityscapes/mask_rcnn_R_50_FPN"
    config.model.num_classes, config.model.class_names = len(CITYSCAPES), CITYSCAPES
    config.model.input.min_size, config.model.input.max_size = 1024, 2048
    config.data.batch_size = 8
    config.data.augment.min_sizes = tuple(range(800, 1025, 32))
    config.data.augment.max_size = 2048
    config.optim.lr, config.optim.reference_batch_size = 0.01, 8
    config.optim.milestones = (18_000,)
    config.train.iterations = 24_000
    return config


def _lvis(body: str, like: Config) -> Config:
    """Set LVIS v0.5 for the network of `like`, with the 1x schedule."""
    config = detectron2.mask_rcnn_R_50_FPN_1x()
    config.model = like.model
    config.model.name = f"{_LVIS}/mask_rcnn_{body}_FPN_1x"
    config.model.num_classes, config.model.category_ids = 1230, tuple(range(1, 1231))
    config.model.box_head.score_threshold = 1e-4
    config.model.box_head.detections_per_image = 300
    config.data.repeat_threshold = 0.001
    config.train.evaluate_max_detections = 300
    return config


PRESETS: dict[str, Callable[[], Config]] = {
    f"{_LVIS}/mask_rcnn_R_50_FPN_1x": lvis_mask_rcnn_R_50_FPN_1x,
    f"{_LVIS}/mask_rcnn_R_101_FPN_1x": lvis_mask_rcnn_R_101_FPN_1x,
    f"{_LVIS}/mask_rcnn_X_101_32x8d_FPN_1x": lvis_mask_rcnn_X_101_32x8d_FPN_1x,
    "Cityscapes/mask_rcnn_R_50_FPN": cityscapes_mask_rcnn_R_50_FPN,
}
