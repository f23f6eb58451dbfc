"""Small models, pictures and objects for tests."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import torch

from maskrcnn import presets
from maskrcnn.config import ResNetConfig
from maskrcnn.masks import InstanceMasks
from maskrcnn.models.build import build_model
from maskrcnn.models.places import RoIs
from maskrcnn.models.predictor import Predictor
from maskrcnn.models.rpn import Proposals
from maskrcnn.structures import GroundTruth


def distinct_structures() -> list[str]:
    """List one preset for each tiny model that there is: schedules, depths and drop paths leave no difference."""
    first: dict[str, str] = {}
    for name in presets.PRESETS:
        model = dataclasses.replace(presets.get(name, tiny=True).model, name="")
        first.setdefault(re.sub(r"drop_path=[\d.]+", "", repr(model)), name)
    return list(first.values())


def tiny(name: str = "mask_rcnn_R_50_FPN_1x", depth: int | None = None) -> Predictor:
    """Build a preset's tiny model, of three classes, on its ResNet or one of `depth`: 18 has fewest nodes to trace."""
    torch.manual_seed(0)
    config = presets.get(name, tiny=True).model
    if depth is not None:
        assert isinstance(config.backbone, ResNetConfig)
        config.backbone.depth = depth  # pyright: ignore[reportAttributeAccessIssue]
    config.num_classes = 3
    config.class_names, config.category_ids = ("a", "b", "c"), ()
    return build_model(config)


def objects(boxes: list[list[float]], size: tuple[int, int], seed: int = 0) -> GroundTruth:
    """Make rectangles of classes 0, 1, 2, 0, ... with 17 visible points each."""
    polygons = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes]
    corners = torch.tensor(boxes).reshape(-1, 2, 2)
    share = torch.rand(len(boxes), 17, 2, generator=torch.Generator().manual_seed(0))
    points = torch.lerp(corners[:, :1], corners[:, 1:], share)
    return GroundTruth(
        corners.flatten(1),
        torch.arange(len(boxes)) % 3,
        InstanceMasks.from_coco(polygons, size),
        seed=seed,
        keypoints=torch.cat([points, torch.full((len(boxes), 17, 1), 2.0)], dim=2),
    )


def proposals(*boxes: torch.Tensor) -> Proposals:
    """Make every image's boxes (N_i, 4) its proposals."""
    rois = RoIs.of(list(boxes))
    valid = rois.spread(torch.ones(len(rois.rows), dtype=torch.bool))
    return Proposals(rois.boxes, rois.boxes[..., 0], valid)


def pictures(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def random_boxes(count: int, size: tuple[int, int]) -> list[list[float]]:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.8, (count, 2)) * size[::-1]
    end = np.minimum(corner + rng.uniform(2, 20, (count, 2)), size[::-1])
    return np.concatenate([corner, end], axis=1).tolist()
