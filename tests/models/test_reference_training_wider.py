"""Losses and gradients of the models added later against a training step of detectron2's: case A of
`test_reference_training`, whose pictures and objects these cases have.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn.backbones.vit import Block
from maskrcnn.masks import InstanceMasks
from maskrcnn.models import point_rend
from maskrcnn.models.places import RoIs
from maskrcnn.ops import matching
from maskrcnn.structures import GroundTruth
from maskrcnn.weights.names.detectron2 import to_detectron2
from tests.models.test_reference_training import GRADIENT_TOLERANCE, LOSS_TOLERANCE
from tests.parity import Parity
from tests.references import filled_detectron2_model, image_tensor, read_npz


def originals_points(counts: tuple[int, ...], rois: RoIs, targets: list[GroundTruth]) -> list[torch.Tensor]:
    """Draw PointRend's random points as the reference did, of all objects one after another."""
    generator = np.random.Generator(np.random.PCG64(0))
    shapes = [(len(rois.rows), count, 2) for count in counts]
    return [torch.from_numpy(generator.random(shape).astype(np.float32)) for shape in shapes]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask_rcnn_vitdet_b_100ep", "pointrend_rcnn_R_50_FPN_3x_coco"])
def test_a_step_is_the_originals(
    shared: Path, name: str, parity: Parity, monkeypatch: pytest.MonkeyPatch
) -> None:
    skimage = pytest.importorskip("skimage.data", reason="scikit-image has the second picture of the case")
    folder = shared / "reference" / "detectron2"
    case, objects = (
        read_npz(folder / f"train__{name}.npz"),
        read_npz(folder / "train__mask_rcnn_R_50_FPN_3x.npz"),
    )
    model, sha256 = filled_detectron2_model(folder, name)
    assert sha256 == str(case["fill_sha256"])
    model.train()
    for module in model.modules():
        if isinstance(module, Block):
            module.drop_path = 0.0
    if "vitdet" in name:
        model.config.input.size_divisor = 480
    with Image.open(folder / "input_coffee_s_rgb.png") as image:
        coffee = np.asarray(image.convert("RGB"))
    astronaut = np.asarray(Image.fromarray(skimage.astronaut()).resize((320, 320), Image.Resampling.BILINEAR))
    batch = model.preprocess([image_tensor(coffee), image_tensor(astronaut)])
    targets = [
        GroundTruth(
            torch.from_numpy(objects[f"gt_img{i}_boxes"]),
            torch.from_numpy(objects[f"gt_img{i}_classes"]),
            InstanceMasks.from_coco(json.loads(str(objects[f"gt_img{i}_polygons_json"])), size),
            image_id=i,
        )
        for i, size in enumerate(batch.image_sizes)
    ]
    monkeypatch.setattr(matching, "hashed", lambda number, seed: number)
    monkeypatch.setattr(point_rend, "random_points", originals_points)
    losses = model(batch, targets)
    expected = {k.split("/")[-1]: float(v) for k, v in case.items() if k.startswith("trainA/loss/")}
    assert losses.keys() == expected.keys()
    worst = max(abs(losses[k].item() / expected[k] - 1) for k in expected)
    parity(name, "case A", "losses, relative", worst, LOSS_TOLERANCE)
    torch.stack(list(losses.values())).sum().backward()
    norms = {
        to_detectron2(n): p.grad.double().norm().item()
        for n, p in model.named_parameters()
        if p.grad is not None
    }
    originals = dict(zip(case["trainA/grad_names"].tolist(), case["trainA/grad_l2"].tolist(), strict=True))
    assert norms.keys() == originals.keys()
    least = 1e-7 * max(originals.values())
    worst = max(abs(norms[n] - e) / max(e, least) for n, e in originals.items())
    parity(name, "case A", "gradient norms, relative", worst, GRADIENT_TOLERANCE)
