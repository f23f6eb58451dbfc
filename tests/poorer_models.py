"""Results of one small model of each family, in two precisions, on the processor at hand; `main` writes them.

`python -m tests.poorer_models FILE [NAME ...]`: see `tests/test_processor.py`.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import torch

from maskrcnn import presets
from maskrcnn.backbones.resnet import BottleneckBlock
from maskrcnn.engines.prepare import prepare
from maskrcnn.models.box_head import BoxHead
from maskrcnn.models.build import build_model
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.places import RoIs
from tests.poorer import take_away

FAMILIES = (
    "mask_rcnn_R_50_FPN_1x",
    "mask_rcnn_R_50_C4_1x",
    "mask_rcnn_R_50_DC5_1x",
    "mask_rcnn_R_50_FPN_3x_gn",
    "mask_rcnn_R_50_FPN_1x_dconv_c3-c5",
    "cascade_mask_rcnn_R_50_FPN_3x",
    "keypoint_rcnn_R_50_FPN_3x",
    "mask_rcnn_internimage_t_fpn_1x_coco",
    "mask_rcnn_deit_small_fpn_3x_coco",
    "mask_rcnn_deit_adapter_small_fpn_3x_coco",
    "maskrcnn_resnet50_fpn_v2",
    "mask_rcnn_mobilenet_v2_FPN",
)
# Each of the operators that a processor may lack or be slow in is in one of these.
EACH_OPERATOR = (FAMILIES[0], FAMILIES[1], FAMILIES[4], FAMILIES[7], FAMILIES[9])
IN_FP16 = (FAMILIES[0], FAMILIES[9])
ROIS = torch.tensor([[8.0, 10.0, 90.0, 120.0], [100.0, 20.0, 180.0, 60.0], [30.0, 30.0, 50.0, 70.0]])


def build(name: str) -> MaskRCNN:
    """Build a tiny model whose norms do something; the first has a pyramid wide enough for Winograd's convolutions."""
    torch.manual_seed(0)
    config = presets.get(name, tiny=True).model
    if name == FAMILIES[0] and config.fpn is not None:
        config.fpn.out_channels = 128
    model = build_model(config)
    generator = torch.Generator().manual_seed(1)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.4 + 0.8)
    for block in model.modules():
        if isinstance(block, BottleneckBlock) and block.conv3.norm is not None:
            # As training does: random residual blocks alone would double signal and noise at each.
            torch.nn.init.constant_(block.conv3.norm.weight, 0.2)  # pyright: ignore[reportArgumentType]
    return model


@torch.inference_mode()
def say(name: str, precision: str) -> dict[str, np.ndarray]:
    """Run a prepared model on one picture: its maps, its heads' logits for given RoIs, its detections."""
    model = prepare(build(name), precision)
    image = np.random.default_rng(0).integers(0, 256, (192, 256, 3), dtype=np.uint8)
    batch = model.preprocess([torch.from_numpy(image).permute(2, 0, 1)])
    maps = model.backbone(batch.pixels)
    found = {f"map{i}": m.float().numpy() for i, m in enumerate(maps)}
    features = model.roi_features(maps)
    if isinstance(model.box_head, BoxHead):
        logits, deltas = model.box_head.predict_rois(features, RoIs.of([ROIS]))
        found |= {"class_logits": logits.numpy(), "box_deltas": deltas.numpy()}
    if model.mask_head is not None:
        found["mask_logits"] = model.mask_head(features, RoIs.of([ROIS]), torch.tensor([0, 1, 2])).numpy()
    if model.keypoint_head is not None:
        found["heatmap_logits"] = model.keypoint_head(features, RoIs.of([ROIS])).numpy()
    model.box_head.config.score_threshold = 0.0
    (result,) = model.detect(batch)
    return found | {
        "boxes": result.boxes.numpy(),
        "scores": result.scores.numpy(),
        "labels": result.labels.numpy(),
    }


def main(path: str, *names: str) -> None:
    if "POORER" in os.environ:
        take_away(os.environ["POORER"])
    found = {
        f"{name} {precision} {key}": value
        for name in names or FAMILIES
        for precision in ("fp32", "bf16", "fp16")[: 3 if name in IN_FP16 else 2]
        for key, value in say(name, precision).items()
    }
    with open(path, "wb") as file:
        np.savez(file, **found)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main(*sys.argv[1:])
