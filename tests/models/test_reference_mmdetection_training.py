"""Losses and the gradient norm of every parameter against a training step of MMDetection's code.

Sampling is taken out by sampling everything; the objects are ellipses, as bitmaps. In evaluation mode: no drop path,
batch norms with their running statistics.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn.images.resize import resize_image
from maskrcnn.masks import InstanceMasks
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.structures import GroundTruth, ImageBatch
from tests.parity import Parity
from tests.references import filled_mmdetection_model, image_tensor, read_npz

SWIN = "cascade_mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco"
NAMES = ("mask_rcnn_internimage_t_fpn_1x_coco", "mask_rcnn_deit_adapter_tiny_fpn_3x_coco", SWIN)
CASE = "coffee, fp32"
LOSS = 2e-5  # relative
GRADIENT = 2e-3  # relative, of a parameter's norm


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def case(shared: Path, name: str) -> dict[str, np.ndarray]:
    return read_npz(shared / "reference" / "mmdetection" / f"loss_{name}.npz")


@pytest.fixture(scope="module")
def filled(shared: Path, name: str) -> tuple[MaskRCNN, dict[str, torch.Tensor]]:
    folder = shared / "reference" / "mmdetection"
    model, state, _ = filled_mmdetection_model(folder, name, read_npz(folder / f"{name}.npz"))
    model.rpn.config.num_samples = model.box_head.config.num_samples = 1_000_000
    if name == SWIN:
        model.rpn.config.post_nms_topk_train = 200  # as the original ran
    # Two proposals of InternImage-T overlap by 0.7 to the last bits, and the original keeps both.
    model.rpn.config.nms_threshold += 1e-6
    return model.eval(), state


@pytest.fixture(scope="module")
def batch(filled: tuple[MaskRCNN, dict[str, torch.Tensor]], case: dict[str, np.ndarray]) -> ImageBatch:
    data = pytest.importorskip("skimage.data", reason="scikit-image has the picture of the case")
    model, _ = filled
    batch = model.preprocess([image_tensor(resize_image(data.coffee(), (230, 345), "opencv"))])
    assert list(batch.pixels.shape) == case["input_shape"].tolist()
    return batch


@pytest.fixture(scope="module")
def target(case: dict[str, np.ndarray]) -> GroundTruth:
    shape = case["gt_masks_shape"].tolist()
    bitmaps = np.unpackbits(case["gt_masks_packed"])[: np.prod(shape)].reshape(shape)
    boxes, labels = torch.from_numpy(case["gt_bboxes"]), torch.from_numpy(case["gt_labels"])
    return GroundTruth(boxes, labels, InstanceMasks.from_bitmaps(bitmaps))


@pytest.mark.slow
def test_training_step(
    filled: tuple[MaskRCNN, dict[str, torch.Tensor]],
    case: dict[str, np.ndarray],
    batch: ImageBatch,
    target: GroundTruth,
    name: str,
    parity: Parity,
) -> None:
    model, _ = filled
    losses = model(batch, [target])
    theirs = {
        "loss_rpn_cls": "loss_rpn_cls",
        "loss_rpn_loc": "loss_rpn_bbox",
        "loss_cls": "loss_cls",
        "loss_box_reg": "loss_bbox",
        "loss_mask": "loss_mask",
    }
    if name == SWIN:
        heads = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox", "loss_mask": "loss_mask"}
        theirs = {k: theirs[k] for k in ("loss_rpn_cls", "loss_rpn_loc")} | {
            f"{ours}_stage{k}": f"s{k}.{name}" for k in range(3) for ours, name in heads.items()
        }
    assert losses.keys() == theirs.keys()
    for key, loss in losses.items():
        expected = float(case[f"loss/{theirs[key]}"].sum())
        parity(name, CASE, key, abs(loss.item() / expected - 1), LOSS, "relative")
    total = torch.stack(list(losses.values())).sum()
    parity(name, CASE, "total loss", abs(total.item() / float(case["loss/total"]) - 1), LOSS, "relative")

    model.zero_grad()
    total.backward()
    _check_gradients(model, case, name, parity)


def _check_gradients(model: MaskRCNN, case: dict[str, np.ndarray], name: str, parity: Parity) -> None:
    from maskrcnn.weights.names.mmdetection import to_mmdetection

    fpn = model.config.fpn
    assert fpn is not None
    gradients = {
        to_mmdetection(n, pyramid=fpn.top_down): p.grad
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    norms = {k.removeprefix("gnorm/"): float(v) for k, v in case.items() if k.startswith("gnorm/")}
    assert gradients.keys() == norms.keys()
    largest = max(norms.values())
    for key, expected in norms.items():
        gradient = gradients[key]
        if expected < 0:  # as the file has it: no gradient
            assert gradient is None or not gradient.any(), key
            continue
        assert gradient is not None, key
        # Of sums that cancel to nearly nothing only the rounding is left.
        difference = abs(gradient.norm().item() - expected) / max(expected, 1e-5 * largest)
        parity(name, CASE, "gradient norms", difference, GRADIENT, "relative")
    for key, expected in case.items():
        if key.startswith("grad64/"):
            gradient = gradients[key.removeprefix("grad64/")]
            assert gradient is not None
            first = gradient.flatten()[:64].numpy()
            np.testing.assert_allclose(first, expected, rtol=0, atol=GRADIENT * np.abs(expected).max())
