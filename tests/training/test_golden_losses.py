"""Ten training steps of the tiny preset give the losses that they gave before.

A refactor must leave them as they are. Where a change of the numbers is meant, write the file anew and say why in
the commit:  python -m tests.training.test_golden_losses
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn import presets
from maskrcnn.masks import InstanceMasks
from maskrcnn.models.build import build_model
from maskrcnn.structures import GroundTruth
from maskrcnn.training.runlog import Display, read_log
from maskrcnn.training.trainer import Trainer

GOLDEN = Path(__file__).with_name("golden_losses.json")
# Another number of threads, and so another order of sums, moves these losses by less than 6e-6 in ten steps.
# Other processors may do more; a mistake does far more.
FIRST_STEPS, LATER_STEPS = 1e-4, 1e-3  # relative, of every loss; the first steps are three


def scene(iteration: int, k: int) -> tuple[torch.Tensor, GroundTruth]:
    """Picture of noise, which leaves no two proposals alike, with two bright quadrilaterals."""
    dice = torch.Generator().manual_seed(100 * iteration + k)
    image = torch.randint(0, 160, (3, 64, 96), dtype=torch.uint8, generator=dice)
    polygons, boxes = [], []
    for n in range(2):
        x, y = 6 + (iteration * 7 + k * 13) % 20 + 44 * n, 5 + (iteration * 5 + k * 11) % 17 + 3 * n
        width, height = 22 + 6 * n, 18 + 9 * k
        image[n, y : y + height, x : x + width] = 220
        boxes.append([float(x), float(y), float(x + width), float(y + height)])
        polygons.append([[x, y, x + width, y + 2, x + width - 3, y + height, x, y + height - 4]])
    masks = InstanceMasks.from_coco(polygons, (64, 96))
    return image, GroundTruth(torch.tensor(boxes), torch.tensor([0, 1]), masks, seed=100 * iteration + k)


def batches(iteration: int) -> Iterator[Any]:
    while True:
        images, targets = zip(*(scene(iteration, k) for k in range(2)))
        yield list(images), list(targets), [2 * iteration, 2 * iteration + 1]
        iteration += 1


def ten_steps(out: Path) -> list[dict[str, float]]:
    config = presets.get("mask_rcnn_R_50_FPN_1x", tiny=True)
    config.model.num_classes, config.data.batch_size = 2, 2
    config.optim.lr, config.optim.warmup_iterations, config.optim.scale_lr = 0.01, 5, False
    config.optim.clip_grad_norm = 1.0  # small steps, which do not amplify rounding
    config.train.iterations, config.train.log_every = 10, 1
    torch.manual_seed(0)
    model = build_model(config.model)
    Trainer(model, config, out, batches=batches, display=Display(stream=io.StringIO())).run()
    return [e["losses"] for e in read_log(out / "log.jsonl") if e["kind"] == "train"]


def test_ten_steps_give_the_stored_losses(tmp_path):
    golden = json.loads(GOLDEN.read_text())
    losses = ten_steps(tmp_path)
    assert len(losses) == len(golden) == 10
    for step, (now, then) in enumerate(zip(losses, golden, strict=True)):
        rel = FIRST_STEPS if step < 3 else LATER_STEPS
        assert now.keys() == then.keys()
        for name in then:
            assert now[name] == pytest.approx(then[name], rel=rel), f"step {step + 1}: {name}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(ten_steps(Path(folder)), indent=1) + "\n")
