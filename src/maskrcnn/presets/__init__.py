"""Named recipes: each a function that returns a fresh config, most of them a few lines over another.

Names are the published ones. Every preset has a tiny variant, `get(name, tiny=True)`, with the same structure and
few channels, for tests.
"""

from __future__ import annotations

from collections.abc import Callable

from maskrcnn.config import Config
from maskrcnn.errors import UserError, did_you_mean
from maskrcnn.presets import (
    convnext,
    detectron2,
    internimage,
    mmdetection_resnet,
    other_data,
    point_rend,
    small,
    swin,
    torchvision,
    vit,
    vitdet,
)
from maskrcnn.presets.tiny import shrink

# By the project whose models they are, whose files they can be written as.
PROJECTS: dict[str, dict[str, Callable[[], Config]]] = {
    "detectron2": detectron2.PRESETS | other_data.PRESETS | vitdet.PRESETS | point_rend.PRESETS,
    "mmdetection": (
        mmdetection_resnet.PRESETS | internimage.PRESETS | vit.PRESETS | swin.PRESETS | convnext.PRESETS
    ),
    "torchvision": torchvision.PRESETS,
    "maskrcnn": small.PRESETS,
}
PRESETS: dict[str, Callable[[], Config]] = {k: v for named in PROJECTS.values() for k, v in named.items()}


def get(name: str, *, tiny: bool = False) -> Config:
    """Make the config of a preset.

    Raises:
        UserError: no such preset; the message has the nearest names.
    """
    if name not in PRESETS:
        raise UserError(f"model {name!r}: no such preset. {did_you_mean(name, PRESETS)}".rstrip())
    config = PRESETS[name]()
    return shrink(config) if tiny else config


def project_of(name: str) -> str:
    """Name of the project whose model a preset is; our own for a name that is no preset's."""
    return next((project for project, named in PROJECTS.items() if name in named), "maskrcnn")
