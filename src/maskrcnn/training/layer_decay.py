"""Distance of a parameter from the end of its backbone, in layers, for rates that fall from layer to layer.

As in the fine-tuning of BEiT (Bao et al. 2021), from where ViT-Adapter and InternImage have it. Necks and heads are
at the end; so is all of a ViT-Adapter that is not the ViT.
"""

from __future__ import annotations

from maskrcnn.backbones import family_of
from maskrcnn.config import BackboneConfig
from maskrcnn.errors import UserError


def layers_above(name: str, backbone: BackboneConfig) -> int:
    """Count the layers between the parameter `name` and the end: 0 for necks and heads, 1 for the last block, ...

    Raises:
        UserError: the backbone has no layers to speak of.
    """
    layer_of = getattr(family_of(backbone), "layer_of", None)
    if layer_of is None:
        raise UserError(
            f"optim.layer_decay: expected a ViT, InternImage or ConvNeXt, got {backbone.kind}. Set it to 1."
        )
    part = name.removeprefix("backbone.body.")
    layer, num_layers = layer_of(part, backbone)
    return 0 if part == name or layer is None else num_layers + 1 - layer
