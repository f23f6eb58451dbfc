"""Backbones, a family a file with its own facts, and the table of the families.

A family's module has

- `build(config, in_channels)`, its body: `out_channels: dict[str, int]`, `strides: dict[str, int]`, forward ->
  dict[str, Tensor];
- `layer_of(name, config)` where rates may fall from layer to layer (`optim.layer_decay`): the number of the layer that
  the body's parameter `name` belongs to, from 0 at the input, None for what is not in the trunk; and the number of
  all layers.

Its settings and its tiny variant are its config class's, in `maskrcnn.config`.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from maskrcnn.config import (
    BackboneConfig,
    ConvNeXtConfig,
    InternImageConfig,
    MobileNetV2Config,
    RegNetConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
)

# Imported where a model of the family is asked for: one does not wait for the others.
FAMILIES: dict[type, str] = {
    ResNetConfig: "resnet",
    RegNetConfig: "regnet",
    MobileNetV2Config: "mobilenet",
    InternImageConfig: "internimage",
    ViTConfig: "vit_adapter",  # and the plain ViT, of `vit`
    SwinConfig: "swin",
    ConvNeXtConfig: "convnext",
}


def family_of(config: BackboneConfig) -> ModuleType:
    """Module of the family that a backbone's config is of."""
    return import_module(f"maskrcnn.backbones.{FAMILIES[type(config)]}")
