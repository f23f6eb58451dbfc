"""Models of detectron2's PointRend project, by its names (Kirillov et al. 2020, arXiv 1912.08193).

Each is the Mask R-CNN of its backbone with PointRend as its mask head, and is trained by the same command (see
`presets.detectron2`). AP is of masks, on COCO val2017 and, in brackets, against the finer masks that LVIS has of it.
The head on any other model: `--model.mask_head.point_rend '{}'`.
"""

from __future__ import annotations

from collections.abc import Callable

from maskrcnn.config import Config, PointRendConfig
from maskrcnn.presets import detectron2


def pointrend_rcnn_R_50_FPN_1x_coco() -> Config:
    """R-50.pkl. Published: 36.2 (39.7)."""
    return _rendered("pointrend_rcnn_R_50_FPN_1x_coco", detectron2.mask_rcnn_R_50_FPN_1x())


def pointrend_rcnn_R_50_FPN_3x_coco() -> Config:
    """R-50.pkl. Published: 38.3 (41.6)."""
    return _rendered("pointrend_rcnn_R_50_FPN_3x_coco", detectron2.mask_rcnn_R_50_FPN_3x())


def pointrend_rcnn_R_101_FPN_3x_coco() -> Config:
    """R-101.pkl. Published: 40.1 (43.8)."""
    return _rendered("pointrend_rcnn_R_101_FPN_3x_coco", detectron2.mask_rcnn_R_101_FPN_3x())


def pointrend_rcnn_X_101_32x8d_FPN_3x_coco() -> Config:
    """X-101-32x8d.pkl. Published: 41.1 (44.7)."""
    return _rendered("pointrend_rcnn_X_101_32x8d_FPN_3x_coco", detectron2.mask_rcnn_X_101_32x8d_FPN_3x())


def pointrend_rcnn_R_50_FPN_1x_cityscapes() -> Config:
    """Cityscapes: 24,000 iterations of 8 images, shortest side 800 to 1024, at test time 1024.

    R-50.pkl. Published: 35.9 on Cityscapes' validation part, by its own evaluation.
    """
    config = _rendered("pointrend_rcnn_R_50_FPN_1x_cityscapes", detectron2.mask_rcnn_R_50_FPN_1x())
    config.model.num_classes, config.model.class_names = len(CITYSCAPES), CITYSCAPES
    config.model.input.min_size, config.model.input.max_size = 1024, 2048
    augment = config.data.augment
    augment.min_sizes, augment.max_size = tuple(range(800, 1025, 32)), 2048
    config.data.batch_size = 8
    config.optim.lr, config.optim.reference_batch_size = 0.01, 8
    config.optim.milestones, config.train.iterations = (18_000,), 24_000
    return config


def _rendered(name: str, config: Config) -> Config:
    """Set PointRend as the mask head. It learns on predicted boxes, and from bitmaps."""
    config.model.name = name
    assert config.model.mask_head is not None
    config.model.mask_head.point_rend = PointRendConfig()
    config.model.box_head.train_on_pred_boxes = True
    config.model.rules.mask_targets = "bitmaps"
    return config


CITYSCAPES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")

PRESETS: dict[str, Callable[[], Config]] = {
    f.__name__: f
    for f in (
        pointrend_rcnn_R_50_FPN_1x_coco,
        pointrend_rcnn_R_50_FPN_3x_coco,
        pointrend_rcnn_R_101_FPN_3x_coco,
        pointrend_rcnn_X_101_32x8d_FPN_3x_coco,
        pointrend_rcnn_R_50_FPN_1x_cityscapes,
    )
}
