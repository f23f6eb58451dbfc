"""The original implementation's outputs and the weights that they were computed with.

`reference/detectron2/fill.py` (beside the checkout) fills a state dict from parameter names and shapes alone, so the
very same model stands here without the original's code.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from maskrcnn import presets
from maskrcnn.models.build import build_model
from maskrcnn.models.detectron2_keys import to_detectron2
from maskrcnn.models.mask_rcnn import MaskRCNN

# Training cases and 1x models use the weights of their 3x twin.
CONFIG_NAMES = {"mask_rcnn_R_50_FPN_3x": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"}


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # fill.py leaves a file for the collector to close
        spec.loader.exec_module(module)
    return module


def filled_detectron2_model(folder: Path, name: str) -> tuple[MaskRCNN, str]:
    """Our model of a preset with the reference's weights, and the sha256 of these."""
    fill = load_module(folder / "fill.py")
    model = build_model(presets.get(name).model)
    theirs = {}
    for key, value in model.state_dict().items():
        renamed = to_detectron2(key)
        assert renamed is not None
        theirs[renamed] = value
    return model, fill.fill_(theirs, seed=0, gains=fill.GAINS[CONFIG_NAMES[name]])


def read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def meta(case: dict[str, np.ndarray]) -> dict:
    return json.loads(str(case["meta_json"]))


def image_tensor(rgb: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 -> (3, H, W)."""
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
