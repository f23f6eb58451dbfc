"""Every stage of inference against what MMDetection computed with the same weights and image.

Both ran in float32, in which the original is itself only as exact as its rounding: features agree to 1e-4 of their
spread, what is decided from them (proposals, detections) is matched one to one by class and box.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from maskrcnn.config import SwinConfig, ViTConfig
from maskrcnn.models.box_head import BoxHead, Detections
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.places import RoIs, of_image
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.models.rpn import Proposals
from maskrcnn.structures import ImageBatch, Instances
from tests.models.test_reference_inference import matched, worst
from tests.parity import Parity
from tests.references import filled_mmdetection_model, image_tensor, read_npz

NAMES = (
    "mask_rcnn_internimage_t_fpn_1x_coco",
    "mask_rcnn_internimage_s_fpn_1x_coco",
    "mask_rcnn_deit_tiny_fpn_3x_coco",
    "mask_rcnn_deit_adapter_tiny_fpn_3x_coco",
    "mask_rcnn_deit_adapter_small_3x_coco",
    "mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco",
    "mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco",
    "mask_rcnn_convnext_tiny_1k_3x",
    "mask_rcnn_dinov2_adapter_small_fpn_3x_coco",
)
# Where the published file's name is not the config's.
FILES = {
    "cascade_mask_rcnn_convnext_tiny_1k_3x": "cascade_mask_rcnn_convnext_tiny_patch4_window7_"
    "mstrain_480-800_giou_4conv1f_adamw_3x_coco_in1k",
    "mask_rcnn_convnext_tiny_1k_3x": "mask_rcnn_convnext_tiny_patch4_window7_mstrain_480-800_adamw_3x_coco_in1k",
}
CASE = "astronaut, fp32"  # as `make parity` calls it

FEATURE = 1e-4  # of the level's standard deviation
LOGIT = 5e-4
BOX = 0.01  # pixels
SCORE = 2e-4
MASK = 2e-3  # probability
MASK_AREA = 5.0  # pixels


class Stages(NamedTuple):
    batch: ImageBatch
    taps: dict[str, Tensor]
    body: list[Tensor]
    neck: list[Tensor]
    rpn: tuple[list[Tensor], list[Tensor]]
    proposals: Proposals
    features: RoIFeatures
    detections: Detections
    instances: Instances
    order: list[int]  # where the original's detections are among ours


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def case(shared: Path, name: str) -> dict[str, np.ndarray]:
    return read_npz(shared / "reference" / "mmdetection" / f"{FILES.get(name, name)}.npz")


@pytest.fixture(scope="module")
def model(shared: Path, case: dict[str, np.ndarray], name: str) -> MaskRCNN:
    model, state, sha256 = filled_mmdetection_model(shared / "reference" / "mmdetection", name, case)
    shapes = zip(case["state_dict_names"].tolist(), case["state_dict_shapes"].tolist(), strict=True)
    assert {k: list(v.shape) for k, v in state.items()} == {
        k: list(ast.literal_eval(shape)) for k, shape in shapes
    }
    assert sha256 == str(case["filled_sha256"])
    return model.eval()


@pytest.fixture(scope="module")
def stages(shared: Path, model: MaskRCNN, case: dict[str, np.ndarray]) -> Stages:
    with Image.open(shared / "reference" / "mmdetection" / "input_a_rgb.png") as image:
        rgb = np.asarray(image.convert("RGB"))
    height, width, _ = case["a/ori_shape"].tolist()
    batch = model.preprocess([image_tensor(rgb)], [(height, width)])
    taps: dict[str, Tensor] = {}
    body: list[Tensor] = []
    wanted = {key.split("/")[2] for key in case if key.startswith("a/tap/")}
    if "dinov2" in model.config.name:
        wanted.discard("up")  # a rewrite for CPUs calls it in pieces; what comes of it is in the first map
    if isinstance(
        model.config.backbone, SwinConfig
    ):  # there of windows, here of maps; the blocks' are compared
        wanted = {tap for tap in wanted if not tap.endswith(".attn")}

    def keep(tap: str, index: int | None) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            # A copy: what follows may overwrite it in inference.
            taps[tap] = (output if index is None else output[index]).clone()

        return hook

    places = {tap: tap_place(tap, model) for tap in wanted}
    hooks = [
        model.backbone.body.get_submodule(module).register_forward_hook(keep(tap, index))
        for tap, (module, index) in places.items()
    ]
    hooks.append(
        model.backbone.body.register_forward_hook(lambda module, inputs, output: body.extend(output.values()))
    )
    with torch.inference_mode():
        neck = model.backbone(batch.pixels)
        for hook in hooks:
            hook.remove()
        rpn = model.rpn.head(neck)
        proposals = model.rpn(neck, batch.sizes)
        features = model.roi_features(neck)
        detections = model.box_head(
            features, proposals, batch.sizes, original_sizes=torch.tensor(batch.original_sizes)
        )
        instances = model.describe(features, detections, batch)[0]
    found = detections._replace(
        boxes=instances.boxes, scores=instances.scores, labels=instances.labels, valid=instances.labels >= 0
    )
    order = matched(found, case["a/det_boxes"], case["a/det_labels"])
    return Stages(
        batch,
        taps,
        body,
        neck,
        rpn,
        of_image(proposals, 0),
        features,
        of_image(detections, 0),
        instances,
        order,
    )


def tap_place(tap: str, model: MaskRCNN) -> tuple[str, int | None]:
    """Module whose output a tap is, and which one of its outputs."""
    if isinstance(model.config.backbone, ViTConfig):
        tap = tap.replace("layers.", "blocks.")  # Uni-Perceiver's
    part, dot, index = tap.rpartition(".out")
    if not dot:
        return tap, None
    if not part.startswith("interactions."):
        return part, int(index) if part == "spm" else None
    # An interaction's outputs are those of the last block and of the last extractor in it.
    backbone = model.config.backbone
    assert isinstance(backbone, ViTConfig)
    assert backbone.adapter is not None
    k = int(part.split(".")[1])
    if index == "0":
        return f"blocks.{backbone.adapter.interactions[k][1]}", None
    is_last = k == len(backbone.adapter.interactions) - 1
    return f"{part}.extra_extractors.1" if is_last else f"{part}.extractor", None


def as_theirs(x: Tensor, shape: list[int]) -> Tensor:
    """Lay out a map (B, H, W, C) as the original does: as tokens (B, H W, C), or (B, C, H, W)."""
    if list(x.shape) != shape and x.dim() == 4:
        x = x.flatten(1, 2) if len(shape) == 3 else x.permute(0, 3, 1, 2)
    assert list(x.shape) == shape
    return x


def as_map(logits: Tensor, shape: list[int]) -> Tensor:
    """Reshape (1, H W A) or (1, H W A, 4) to the original's map (1, A or 4 A, H, W)."""
    _, channels, height, width = shape
    return logits.reshape(1, height, width, channels).permute(0, 3, 1, 2)


@pytest.mark.slow
class TestInference:
    def test_parameters(self, model: MaskRCNN, case: dict[str, np.ndarray]) -> None:
        assert sum(p.numel() for p in model.parameters()) == json.loads(str(case["meta"]))["nparam"]

    def test_input(self, stages: Stages, case: dict[str, np.ndarray]) -> None:
        pixels = stages.batch.pixels
        assert list(pixels.shape) == case["a/input/shape"].tolist()
        if "a/input/crop" not in case:  # of the wider zoo, whose files have a digest instead
            digest = hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
            assert digest == str(case["a/input/sha256_f32"])
            return
        assert worst(pixels[0, :, :8, :8], case["a/input/crop"]) < 1e-6
        assert worst(pixels.double().mean((0, 2, 3)), case["a/input/mean_per_channel"]) < 1e-6

    def test_backbone_and_neck(
        self, stages: Stages, case: dict[str, np.ndarray], name: str, parity: Parity
    ) -> None:
        for part, maps in (("backbone", stages.body), ("neck", stages.neck)):
            for i, actual in enumerate(maps):
                key = f"a/{part}.{i}"
                assert list(actual.shape) == case[f"{key}/shape"].tolist()
                spread = float(case[f"{key}/std"])
                crop = case[f"{key}/crop"]
                _, c, h, w = crop.shape
                parity(name, CASE, part, worst(actual[:, :c, :h, :w], crop) / spread, FEATURE, "of spread")
                parity(
                    name,
                    CASE,
                    part,
                    abs(float(actual.double().mean()) - float(case[f"{key}/mean"])) / spread,
                    FEATURE,
                    "of spread",
                )

    def test_taps(self, stages: Stages, case: dict[str, np.ndarray], name: str, parity: Parity) -> None:
        assert stages.taps
        for tap, actual in stages.taps.items():
            actual = as_theirs(actual, case[f"a/tap/{tap}/shape"].tolist())
            crop = case[f"a/tap/{tap}/crop"]
            _, spread, _ = case[f"a/tap/{tap}/stat"].tolist()
            window = tuple(slice(0, n) for n in crop.shape)
            parity(name, CASE, "layers", worst(actual[window], crop) / spread, FEATURE, "of spread")

    def test_rpn(self, stages: Stages, case: dict[str, np.ndarray], name: str, parity: Parity) -> None:
        for i in range(len(stages.neck)):
            for key, values in ((f"a/rpn_cls.{i}", stages.rpn[0][i]), (f"a/rpn_reg.{i}", stages.rpn[1][i])):
                actual = as_map(values, case[f"{key}/shape"].tolist())
                crop = case[f"{key}/crop"]
                window = tuple(slice(0, n) for n in crop.shape)
                parity(name, CASE, "RPN", worst(actual[window], crop), LOGIT, "logits")

    def test_proposals(self, stages: Stages, case: dict[str, np.ndarray], name: str, parity: Parity) -> None:
        proposals, expected = stages.proposals, case["a/proposals_all_f16"]
        assert len(proposals.boxes) == case["a/n_proposals"]
        scores = proposals.objectness_logits.sigmoid()
        parity(name, CASE, "top 50 proposals", worst(proposals.boxes[:50], expected[:50, :4]), BOX, "px")
        parity(name, CASE, "proposal scores", worst(scores, expected[:, 4]), SCORE)
        # Neighbours whose scores agree to the last bits change places: each of the original's is among ours.
        distance = torch.cdist(torch.from_numpy(expected[:, :4]), proposals.boxes, p=float("inf"))
        parity(name, CASE, "proposals", float(distance.min(1).values.max()), BOX, "px")

    def test_roi_predictions(
        self, model: MaskRCNN, stages: Stages, case: dict[str, np.ndarray], name: str, parity: Parity
    ) -> None:
        assert isinstance(model.box_head, BoxHead)
        boxes = torch.from_numpy(case["a/proposals_top50"][:, :4])
        with torch.inference_mode():
            pooled = stages.features.pool(RoIs.of([boxes[:10]]), 7)
            logits, deltas = model.box_head.predict_rois(stages.features, RoIs.of([boxes]))
        parity(name, CASE, "RoI features", worst(pooled[:, :16], case["a/roi_feat_top10"]), LOGIT)
        parity(name, CASE, "RoI logits", worst(logits, case["a/roi_cls_logits_top50"]), 4 * LOGIT)
        parity(name, CASE, "RoI deltas", worst(deltas.flatten(1), case["a/roi_reg_top50"]), LOGIT)

    def test_detections(self, stages: Stages, case: dict[str, np.ndarray], name: str, parity: Parity) -> None:
        found, order = stages.instances, stages.order
        assert found.labels[order].tolist() == case["a/det_labels"].tolist()
        parity(name, CASE, "boxes", worst(found.boxes[order], case["a/det_boxes"]), BOX, "px")
        parity(name, CASE, "scores", worst(found.scores[order], case["a/det_scores"]), SCORE)

    def test_masks(self, stages: Stages, case: dict[str, np.ndarray], name: str, parity: Parity) -> None:
        assert stages.instances.masks is not None
        masks = stages.instances.masks[stages.order]
        with torch.inference_mode():
            first = stages.detections.boxes[stages.order[:5]]
            pooled = stages.features.pool(RoIs.of([first]), 14)
        parity(name, CASE, "mask features", worst(pooled[:, :8], case["a/mask_roi_feat_top5"]), LOGIT)
        parity(name, CASE, "mask probabilities", worst(masks.probs[:10], case["a/mask_prob28_top10"]), MASK)
        parity(name, CASE, "mask areas", worst(masks.areas(), case["a/mask_areas"]), MASK_AREA, "px")
        height, width = masks.image_size
        expected = np.unpackbits(case["a/mask0_packed"])[: height * width].reshape(height, width)
        parity(name, CASE, "first mask", float((masks[0] != expected.astype(bool)).sum()), MASK_AREA, "px")
