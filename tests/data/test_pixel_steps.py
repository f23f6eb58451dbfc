"""Steps of augmentation that are noted for a GPU: the view of the CPU, from the same seed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from torch._subclasses.fake_tensor import FakeTensorMode

from maskrcnn.config import AugmentConfig
from maskrcnn.data.pixel_steps import Noted, resized
from maskrcnn.data.transforms import augment
from maskrcnn.masks import InstanceMasks
from maskrcnn.structures import GroundTruth

ALL = AugmentConfig(
    window_share=(0.5, 1.0),
    min_sizes=(48, 64),
    max_size=120,
    zoom_sizes=(40, 60),
    zoom_crop=(30, 50),
    crop_size=(50, 60),
    vertical_flip=0.5,
    rotate90=0.5,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.2,
    grayscale=0.2,
)


def picture(seed: int = 0) -> torch.Tensor:
    """Picture of smooth shapes and some noise, as photographs are: a view of (h, w, 3) memory."""
    dice = np.random.default_rng(seed)
    y, x = np.mgrid[:70, :90]
    image = 128 + 90 * np.stack([np.sin(x / (7 + k)) * np.cos(y / (9 - k)) for k in range(3)], -1)
    image = (image + dice.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(image).permute(2, 0, 1)


def truth() -> GroundTruth:
    drawn = [[[10, 10, 60, 10, 60, 50, 10, 50]], [[50, 30, 85, 30, 85, 65]]]
    boxes = torch.tensor([[10.0, 10, 60, 50], [50, 30, 85, 65]])
    masks = InstanceMasks.from_coco(drawn, (70, 90))
    return GroundTruth(boxes=boxes, labels=torch.tensor([0, 1]), masks=masks, image_id=1)


@pytest.mark.parametrize("seed", range(12))
def test_noted_steps_give_the_same_view(seed: int) -> None:
    expected, its_truth = augment(picture(), truth(), ALL, seed)
    noted, same_truth = augment(Noted(picture()), truth(), ALL, seed)
    noted = pickle.loads(pickle.dumps(noted))  # from a worker process
    found = noted.taken(torch.device("cpu"))
    assert found.shape == noted.shape
    assert torch.equal(found, expected)
    assert found.permute(1, 2, 0).is_contiguous()
    assert torch.equal(same_truth.boxes, its_truth.boxes)
    assert same_truth.masks is not None
    assert its_truth.masks is not None
    assert np.array_equal(same_truth.masks.matrix, its_truth.masks.matrix)


@pytest.mark.parametrize("size", [(35, 45), (48, 61), (140, 181), (23, 90)])
def test_a_gpu_resizes_within_one_level(size: tuple[int, int]) -> None:
    """A GPU has no kernel for uint8: torchvision goes through float32 there, as is done here."""
    expected = resized(picture(), size, True)
    pixels = nnf.interpolate(picture().float()[None], size, mode="bilinear", antialias=True)[0]
    apart = pixels.round().clamp(0, 255) - expected.float()
    assert apart.abs().max() <= 1
    assert apart.abs().mean() < 0.25  # the CPU rounds between rows and columns too


def test_nothing_waits_for_the_device() -> None:
    """The steps on a pretended CUDA tensor: none asks for a value."""
    for seed in range(6):
        noted, _ = augment(Noted(picture()), truth(), ALL, seed)
        with FakeTensorMode(allow_non_fake_inputs=True):
            image = torch.empty(noted.pixels.shape, dtype=torch.uint8, device="cuda")
            for step in noted.steps:
                image = step(image)
        assert image.shape == noted.shape
        assert image.device.type == "cuda"
