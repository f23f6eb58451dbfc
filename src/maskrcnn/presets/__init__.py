"""Named recipes: each a function that returns a fresh config, most of them a few lines over another.

Names are the published ones. Every preset has a tiny variant, `get(name, tiny=True)`, with the same structure and
few channels, for tests.
"""

from __future__ import annotations

from collections.abc import Callable

from maskrcnn.config import Config
from maskrcnn.errors import UserError, did_you_mean
from maskrcnn.presets import detectron2, internimage, small, torchvision, vit
from maskrcnn.presets.tiny import shrink

PRESETS: dict[str, Callable[[], Config]] = (
    detectron2.PRESETS | internimage.PRESETS | vit.PRESETS | torchvision.PRESETS | small.PRESETS
)


def get(name: str, *, tiny: bool = False) -> Config:
    """Make the config of a preset.

    Raises:
        UserError: no such preset; the message has the nearest names.
    """
    if name not in PRESETS:
        raise UserError(f"model {name!r}: no such preset. {did_you_mean(name, PRESETS)}".rstrip())
    config = PRESETS[name]()
    return shrink(config) if tiny else config
