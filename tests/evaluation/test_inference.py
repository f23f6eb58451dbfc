"""Conversion of a model's detections to COCO results in the data set's ids."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn import presets
from maskrcnn.config import ModelConfig
from maskrcnn.errors import UserError
from maskrcnn.evaluation import inference
from maskrcnn.structures import Instances


def results(
    config: ModelConfig, ids: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...] = ()
) -> list[int]:
    """Categories of the results of a model that finds one object of each of its classes.

    The data set has an object of each of its own, and names for them if these are given.
    """
    labels = torch.arange(config.num_classes)
    found = Instances((9, 9), torch.rand(len(labels), 4), torch.rand(len(labels)), labels)
    monkeypatch.setattr(inference, "predict_stream", lambda *args, **settings: iter([("a.jpg", found)]))
    model: Any = types.SimpleNamespace(config=config)
    data: Any = types.SimpleNamespace(
        category_ids=ids,
        class_names=names or tuple(map(str, ids)),
        arrays={"labels": np.arange(len(ids))},
        image_ids=np.array([7]),
        json_path=Path("a.json"),
        num_images=1,
        image_path=lambda i: Path("a.jpg"),
    )
    return [entry["category_id"] for entry in inference.run_inference(model, data)]


def test_labels_become_the_data_sets_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    assert results(ModelConfig(name="a", num_classes=3), (10, 20, 5), monkeypatch) == [10, 20, 5]


def test_a_model_of_more_classes_than_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's models have COCO's 90 ids, of which the data set uses 80."""
    config = presets.get("maskrcnn_resnet50_fpn").model
    used = tuple(i for i, name in zip(config.category_ids, config.class_names, strict=True) if name != "N/A")
    assert len(used) == 80
    assert results(config, used, monkeypatch) == list(used)
    names = ("car", "person", "teddy bear")
    assert results(config, (1, 2, 3), monkeypatch, names) == [2, 1, 3]  # in the order of the model's classes


def test_classes_go_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(name="a", num_classes=3, class_names=("x", "y", "y"), category_ids=(1, 2, 3))
    assert results(config, (1, 2, 3), monkeypatch, ("y", "x", "y")) == [2, 1, 3]
    assert results(config, (4,), monkeypatch, ("y",)) == [4]
    with pytest.raises(
        UserError, match=r"a\.json: expected classes that the model knows \(x, y, y\), got 'z'"
    ):
        results(config, (1, 2), monkeypatch, ("x", "z"))
    with pytest.raises(UserError, match="got 'a', 'b', 'c'"):
        results(config, (1, 2, 3), monkeypatch, ("a", "b", "c"))


def test_other_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"a\.json: expected the model's 3 classes, got 2"):
        results(ModelConfig(name="a", num_classes=3), (1, 2), monkeypatch)
    with pytest.raises(UserError, match="got 2"):
        results(ModelConfig(name="a", num_classes=3, category_ids=(1, 2, 3)), (1, 4), monkeypatch)
