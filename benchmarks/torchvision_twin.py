"""torchvision's Mask R-CNN R50-FPN and ours with the very same weights, for paired measurements.

The weights are random, scaled layer by layer so that the signal keeps its size and both models find 100 objects on a
photograph-like image: a network of plain random weights finds none, which would spare it the mask head.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from maskrcnn import presets
from maskrcnn.config import ResNetConfig
from maskrcnn.masks import InstanceMasks
from maskrcnn.models.build import build_model
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.structures import GroundTruth

NUM_CLASSES = 90  # torchvision's 91 hold the background

# Ours -> torchvision's, by regular expression.
_BODY = r"^backbone\.body\.res(\d)\.(\d+)\."
NAMES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"^backbone\.body\.stem\.conv\.norm\.", lambda m: "backbone.body.bn1."),
    (r"^backbone\.body\.stem\.conv\.", lambda m: "backbone.body.conv1."),
    (_BODY + r"conv(\d)\.norm\.", lambda m: f"{_block(m)}bn{m[3]}."),
    (_BODY + r"conv(\d)\.", lambda m: f"{_block(m)}conv{m[3]}."),
    (_BODY + r"shortcut\.norm\.", lambda m: f"{_block(m)}downsample.1."),
    (_BODY + r"shortcut\.", lambda m: f"{_block(m)}downsample.0."),
    (r"^backbone\.fpn\.lateral\.(\d)\.", lambda m: f"backbone.fpn.inner_blocks.{m[1]}.0."),
    (r"^backbone\.fpn\.output\.(\d)\.", lambda m: f"backbone.fpn.layer_blocks.{m[1]}.0."),
    (r"^rpn\.head\.conv\.", lambda m: "rpn.head.conv.0.0."),
    (r"^rpn\.head\.objectness\.", lambda m: "rpn.head.cls_logits."),
    (r"^rpn\.head\.deltas\.", lambda m: "rpn.head.bbox_pred."),
    (r"^box_head\.fcs\.(\d)\.", lambda m: f"roi_heads.box_head.fc{int(m[1]) + 6}."),
    (r"^box_head\.class_predictor\.", lambda m: "roi_heads.box_predictor.cls_score."),
    (r"^box_head\.box_predictor\.", lambda m: "roi_heads.box_predictor.bbox_pred."),
    (r"^mask_head\.convs\.(\d)\.", lambda m: f"roi_heads.mask_head.{m[1]}.0."),
    (r"^mask_head\.deconv\.", lambda m: "roi_heads.mask_predictor.conv5_mask."),
    (r"^mask_head\.predictor\.", lambda m: "roi_heads.mask_predictor.mask_fcn_logits."),
)


def _block(m: re.Match[str]) -> str:
    return f"backbone.body.layer{int(m[1]) - 1}.{m[2]}."


def torchvision_name(name: str) -> str:
    for pattern, rename in NAMES:
        renamed, count = re.subn(pattern, rename, name)
        if count:
            return renamed
    raise KeyError(name)


def make_twins(
    min_size: int = 800, max_size: int = 1333, seed: int = 0
) -> tuple[MaskRCNN, torchvision.models.detection.MaskRCNN]:
    """Ours and torchvision's, with equal weights and settings; norms, stem and first stage are frozen in both."""
    config = presets.get("mask_rcnn_R_50_FPN_1x").model
    config.num_classes = NUM_CLASSES
    config.rpn.post_nms_topk_train = 2000
    assert isinstance(config.backbone, ResNetConfig)
    config.backbone.stride_in_1x1 = False
    config.input.channel_order = "RGB"
    config.input.pixel_mean = (123.675, 116.28, 103.53)
    config.input.pixel_std = (58.395, 57.12, 57.375)
    config.input.min_size, config.input.max_size = min_size, max_size
    ours = build_model(config)
    fill(ours, seed)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    theirs = torchvision.models.detection.MaskRCNN(
        backbone, num_classes=NUM_CLASSES + 1, min_size=min_size, max_size=max_size
    )
    state = {torchvision_name(k): v.clone() for k, v in ours.state_dict().items()}
    for predictor, rows in (("box_predictor.cls_score", 1), ("box_predictor.bbox_pred", 4)):
        for kind in ("weight", "bias"):
            key = f"roi_heads.{predictor}.{kind}"
            state[key] = _background_first(state[key], rows, has_background="cls_score" in predictor)
    for kind in ("weight", "bias"):
        key = f"roi_heads.mask_predictor.mask_fcn_logits.{kind}"
        state[key] = _background_first(state[key], 1, has_background=False)
    theirs.load_state_dict(state)
    return ours, theirs


def _background_first(value: Tensor, rows: int, has_background: bool) -> Tensor:
    if has_background:
        return torch.cat([value[-1:], value[:-1]])
    return torch.cat([torch.zeros_like(value[:rows]), value])


@torch.no_grad()
def fill(model: MaskRCNN, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gains = {"objectness": 0.6, "deltas": 0.1, "class_predictor": 0.6, "box_predictor": 0.3, "predictor": 0.9}
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif ".norm." in name and name.endswith("weight"):
            value.copy_(0.5 + 0.5 * torch.rand(value.shape, generator=generator))
            if ".conv3." in name:
                value.mul_(0.3)
        elif name.endswith(("bias", "running_mean")):
            value.copy_(0.05 * torch.randn(value.shape, generator=generator))
        else:
            fan_in = value[0].numel() if "deconv" not in name else value.shape[0]
            weight = torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5
            if "stem" not in name:
                weight -= weight.mean(dim=tuple(range(1, weight.dim())), keepdim=True)
            gain = next((g for key, g in gains.items() if name.split(".")[-2] == key), 1.0)
            value.copy_(weight * gain * (1.5 if ".res" in name else 1.0))


def photograph(height: int = 480, width: int = 640, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 with structure at all scales, like a photograph's."""
    rng = np.random.default_rng(seed)
    image = torch.zeros(1, 3, height, width)
    for level in range(1, 9):
        noise = torch.from_numpy(
            rng.standard_normal((1, 3, max(2, height >> level), max(2, width >> level)))
        ).float()
        image += nn.functional.interpolate(noise, (height, width), mode="bicubic") * 2.0 ** (level - 6)
    image = (image[0] - image.mean()) / image.std() * 60 + 120
    return image.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def objects(
    height: int, width: int, scale: tuple[float, float] = (1.0, 1.0), count: int = 8, seed: int = 0
) -> tuple[GroundTruth, dict[str, Tensor]]:
    """`count` objects of a picture, large and small: as ours learns from (polygons, scaled by x and y to the
    network's pixels) and as torchvision does (bitmaps, in the picture's own pixels)."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    polygons = []
    for i in range(count):
        radius = min(height, width) * (0.06 + 0.24 * i / max(1, count - 1)) * (1 + 0.2 * np.sin(3 * angle))
        x, y = rng.uniform(0.3, 0.7, 2) * (width, height)
        points = np.stack([x + radius * np.cos(angle), y + 0.7 * radius * np.sin(angle)], axis=1)
        polygons.append([points.clip(0, (width, height)).reshape(-1).tolist()])
    masks = InstanceMasks.from_coco(polygons, (height, width))
    labels = torch.from_numpy(rng.integers(0, NUM_CLASSES, count))
    boxes = torch.as_tensor(masks.tight_boxes((0, 0, width, height)))
    x, y = scale
    ours = GroundTruth(boxes * boxes.new_tensor([x, y, x, y]), labels, masks.resized(x, y))
    bitmaps = torch.from_numpy(masks.to_bitmaps((height, width)))
    return ours, {"boxes": boxes, "labels": labels + 1, "masks": bitmaps}
