"""Distance of a parameter from the end of its backbone, in layers, for rates that fall from layer to layer.

As in the fine-tuning of BEiT (Bao et al. 2021), from where ViT-Adapter and InternImage have it. Necks and heads are
at the end; so is all of a ViT-Adapter that is not the ViT.
"""

from __future__ import annotations

import re

from maskrcnn.config import InternImageConfig, MobileNetV2Config, ResNetConfig, ViTConfig
from maskrcnn.errors import UserError

Backbone = ResNetConfig | MobileNetV2Config | InternImageConfig | ViTConfig


def layers_above(name: str, backbone: Backbone) -> int:
    """Count the layers between the parameter `name` and the end: 0 for necks and heads, 1 for the last block, ...

    Raises:
        UserError: the backbone has no layers to speak of.
    """
    part = name.removeprefix("backbone.body.")
    match backbone:
        case InternImageConfig():
            num_layers, layer = sum(backbone.depths), _internimage_layer(part, backbone.depths)
        case ViTConfig():
            num_layers, layer = backbone.depth, _vit_layer(part)
        case _:
            raise UserError(
                f"optim.layer_decay: expected a ViT or InternImage, got {backbone.kind}. Set it to 1."
            )
    if part == name or layer is None:
        return 0
    return num_layers + 1 - layer


def _internimage_layer(part: str, depths: tuple[int, ...]) -> int | None:
    """Number of an InternImage layer: 0 for the stem, from 1 the blocks; what ends a level counts with the next
    level's first block.
    """
    if part.startswith("patch_embed."):
        return 0
    found = re.match(r"levels\.(\d+)\.(?:blocks\.(\d+)|norm|downsample)\.", part)
    if found is None:
        return None
    level, block = int(found[1]), found[2]
    if block is not None:
        return 1 + sum(depths[:level]) + int(block)
    return 1 + sum(
        depths[: min(level + 1, len(depths) - 1)]
    )  # the last level has no next: its own first block


def _vit_layer(part: str) -> int | None:
    """Number of a ViT layer: 0 for the embeddings, from 1 the blocks."""
    if part.startswith(("patch_embed.", "visual_embed.", "pos_embed")):
        return 0
    found = re.match(r"(?:blocks|layers)\.(\d+)\.", part)
    return None if found is None else 1 + int(found[1])
