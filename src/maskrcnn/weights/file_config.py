"""Check of the config that a weight file carries against its tensors, before a model is built from it.

A number in it is enough to ask for a layer of 400 GB, or for ten million layers.
"""

from __future__ import annotations

import torch

from maskrcnn.config import ModelConfig
from maskrcnn.errors import UserError
from maskrcnn.models.build import build_model
from maskrcnn.weights.load import WeightFile, mismatches, without_counters
from maskrcnn.weights.unpickle import reason


def check_config(file: WeightFile) -> None:
    """Compare the config that a file carries with its tensors, before anything of the config's sizes is made.

    Raises:
        UserError: they are not of one model, or the config is of none.
    """
    config, state = file.config, without_counters(file.state)
    if config is None:
        return
    where = f"{file.path}: its config"
    largest = max((max(tensor.shape, default=0) for tensor in state.values()), default=0)
    anchors = max(map(len, config.rpn.sizes), default=0) * len(config.rpn.aspect_ratios)
    if _num_layers(config) > len(state) or anchors > largest:
        raise UserError(f"{where} is of a larger model than its {len(state)} weights. Copy the file again.")
    try:
        with torch.device("meta"):  # shapes without memory
            wanted = without_counters(build_model(config).state_dict())
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
    except Exception as e:
        raise UserError(f"{where} is of no model that can be built ({reason(e)}).") from None
    if problems := mismatches(state, wanted):
        raise UserError(
            f"{where} is of {len(wanted)} weights, and they do not fit: {problems}. Copy the file again."
        )


def _num_layers(config: ModelConfig) -> int:
    """Largest number of layers that a setting of the config stands for."""
    counts = [0]
    for part in (config.backbone, config.rpn, config.box_head, config.mask_head, config.keypoint_head):
        for name in ("num_convs", "num_fcs", "depth", "depths"):
            found = getattr(part, name, 0)
            counts += found if isinstance(found, tuple) else (found,)
    return max(counts)
