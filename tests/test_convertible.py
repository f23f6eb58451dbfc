"""Detections in other programs' forms, and back."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn.errors import UserError
from maskrcnn.masks import PredictedMasks
from maskrcnn.structures import Instances

SIZE = (60, 80)


def instances() -> Instances:
    y, x = np.mgrid[:28, :28]
    disc = torch.from_numpy(((x - 13.5) ** 2 + (y - 13.5) ** 2 < 13**2).astype(np.float32))
    boxes = torch.tensor([[5.0, 4.0, 45.0, 50.0], [50.0, 20.0, 60.0, 26.0]])
    masks = PredictedMasks(disc.expand(2, 28, 28), boxes, SIZE)
    names = ("cat", "dog")
    return Instances(SIZE, boxes, torch.tensor([0.9, 0.4]), torch.tensor([1, 2]), masks, class_names=names)


def test_supervision_and_back() -> None:
    sv = pytest.importorskip("supervision")
    found = instances()
    there = found.to_supervision()
    assert isinstance(there, sv.Detections)
    assert np.array_equal(there.mask, np.asarray(found.masks))
    assert there.data["class_name"].tolist() == ["dog", "class 2"]
    sure = there[there.confidence > 0.5]
    back = Instances.from_supervision(sure, SIZE, ("cat", "dog"))
    assert torch.equal(back.boxes, found.boxes[:1])
    assert back.labels.tolist() == [1]
    ours, theirs = np.asarray(back.masks)[0], there.mask[0]
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.97
    assert len(Instances.from_supervision(sv.Detections.empty(), SIZE)) == 0
    drawn = sv.MaskAnnotator().annotate(np.zeros((*SIZE, 3), np.uint8), there)
    assert drawn.any()


def test_bitmaps_become_masks_of_their_own_boxes() -> None:
    bitmaps = np.zeros((3, *SIZE), bool)
    bitmaps[0, 3:9, 10:30] = True
    bitmaps[1, 20, 70] = True
    masks = PredictedMasks.from_bitmaps(bitmaps)
    assert masks.boxes.tolist() == [[10, 3, 30, 9], [70, 20, 71, 21], [0, 0, 0, 0]]
    assert np.array_equal(np.asarray(masks), bitmaps)


def test_fiftyone_gets_boxes_and_masks_relative_to_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    made = types.SimpleNamespace(Detection=lambda **f: f, Detections=lambda detections: detections)
    monkeypatch.setitem(sys.modules, "fiftyone", made)
    first: dict[str, Any] = instances().to_fiftyone()[0]
    assert first["label"] == "dog"
    x, y, w, h = np.array(first["bounding_box"]) * [80, 60, 80, 60]
    assert first["mask"].shape == (round(h), round(w))
    whole = np.zeros(SIZE, bool)
    whole[round(y) : round(y + h), round(x) : round(x + w)] = first["mask"]
    assert np.array_equal(whole, np.asarray(instances().masks)[0])


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(UserError, match="Run: pip install fiftyone"):
        instances().to_fiftyone()
