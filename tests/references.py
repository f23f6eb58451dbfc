"""Outputs of the original implementations and the weights that they were computed with.

`reference/detectron2/fill.py` (beside the checkout) fills a state dict from parameter names and shapes alone, so the
very same model stands here without the original's code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from maskrcnn import presets
from maskrcnn.config import ViTConfig
from maskrcnn.engines.rewrites import rewrite
from maskrcnn.engines.table import REWRITES
from maskrcnn.models.build import build_model
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.weights.names.detectron2 import to_detectron2
from maskrcnn.weights.names.mmdetection import to_mmdetection


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # fill.py leaves a file for the collector to close
        spec.loader.exec_module(module)
    return module


def filled_detectron2_model(folder: Path, name: str, *, eager: bool = False) -> tuple[MaskRCNN, str]:
    """Make our model of a preset with the reference's weights, and the sha256 of these; with the rewrites of this
    processor, unless `eager`.
    """
    fill, gains = filling(folder, name)
    model = build_model(presets.get(name).model)
    if not eager:
        rewrite(model, REWRITES)
    return model, fill.fill_(detectron2_state(model), seed=0, gains=gains)


def filling(folder: Path, name: str) -> tuple[ModuleType, dict[str, float]]:
    """Module that fills a model of detectron2's, and its gains: those of the models added later have their own."""
    fill = load_module(folder / "fill.py")
    gains = {config.split("/")[-1]: gains for config, gains in fill.GAINS.items()}
    if name in gains:
        return fill, gains[name]
    wider = json.loads((folder / "fill_wider_gains.json").read_text())
    gains = wider | {config.split("/")[-1]: gains for config, gains in wider.items()}
    return wider_fill(folder), gains[name]


def filled_mmdetection_model(
    folder: Path, name: str, case: dict[str, np.ndarray]
) -> tuple[MaskRCNN, dict[str, torch.Tensor], str]:
    """Make our model of a preset with the reference's weights, these by MMDetection's names, and their sha256.

    case: a file of the reference of this model, for the entries that it overrides.
    """
    model = build_model(presets.get(name).model)
    fpn = model.config.fpn
    assert fpn is not None
    backbone = model.config.backbone
    how = {
        "pyramid": fpn.top_down,
        "uni_perceiver": isinstance(backbone, ViTConfig) and backbone.uni_perceiver,
    }
    rewrite(model, REWRITES)
    state = {to_mmdetection(n, **how): value for n, value in model.state_dict().items()}
    sha256 = ""
    if "gains_json" in case:  # of the wider zoo
        wider_fill(folder).fill_(state, json.loads(str(case["gains_json"])), seed=0)
        sha256 = _digest(state)  # there without what is put over it
    else:
        load_module(folder / "fill.py").fill_(state, seed=0)
    for key, value in case.items():
        if key.startswith("override/"):
            state[key.removeprefix("override/")].copy_(torch.from_numpy(value))
    return model, state, sha256 or _digest(state)


def _digest(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(k for k, value in state.items() if value.is_floating_point()):
        digest.update(key.encode() + state[key].numpy().tobytes())
    return digest.hexdigest()


def wider_fill(folder: Path) -> ModuleType:
    """Load a project's `fill_wider.py`, which imports its neighbour `fill`; each project has one of its own."""
    before = sys.modules.get("fill")
    sys.modules["fill"] = load_module(folder / "fill.py")
    try:
        return load_module(folder / "fill_wider.py")
    finally:
        del sys.modules["fill"]
        if before is not None:
            sys.modules["fill"] = before


def detectron2_state(model: MaskRCNN) -> dict[str, torch.Tensor]:
    """Tensors of the model itself by detectron2's names."""
    pyramid = model.config.fpn is not None
    state = {to_detectron2(name, pyramid=pyramid): value for name, value in model.state_dict().items()}
    return {name: value for name, value in state.items() if name is not None}


def read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def meta(case: dict[str, np.ndarray]) -> dict:
    return json.loads(str(case["meta_json"]))


def image_tensor(rgb: np.ndarray) -> torch.Tensor:
    """Convert an image (H, W, 3) uint8 to a tensor (3, H, W)."""
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
