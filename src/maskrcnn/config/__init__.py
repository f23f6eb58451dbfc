"""Configuration: every setting, declared once.

Plain dataclasses, one per part of the product. A preset (`maskrcnn.presets`) is a function that returns
a fresh `Config`; the command line changes fields by their dotted names (`--optim.lr 0.01`); the resolved
config is saved as JSON with every run and checkpoint and can be read back. No torch here.

Sizes are pixels, `(height, width)` where two are given. "Per image" counts are before batching.
"""

from maskrcnn.config.bounds import Between, Norm
from maskrcnn.config.forms import (
    check_bounds,
    field_names,
    flat,
    from_dict,
    from_file,
    override,
    to_dict,
    to_json,
)
from maskrcnn.config.model import (
    AdapterConfig,
    BackboneConfig,
    BoxHeadConfig,
    CascadeConfig,
    ConvNeXtConfig,
    FPNConfig,
    InputConfig,
    InternImageConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    MobileNetV2Config,
    ModelConfig,
    PointRendConfig,
    RegNetConfig,
    ResNetConfig,
    RPNConfig,
    RulesConfig,
    SwinConfig,
    ViTConfig,
)
from maskrcnn.config.run import AugmentConfig, Config, DataConfig, OptimConfig, TrainConfig, TTAConfig

__all__ = [
    "AdapterConfig",
    "AugmentConfig",
    "BackboneConfig",
    "Between",
    "BoxHeadConfig",
    "CascadeConfig",
    "Config",
    "ConvNeXtConfig",
    "DataConfig",
    "FPNConfig",
    "InputConfig",
    "InternImageConfig",
    "KeypointHeadConfig",
    "MaskHeadConfig",
    "MobileNetV2Config",
    "ModelConfig",
    "Norm",
    "OptimConfig",
    "PointRendConfig",
    "RPNConfig",
    "RegNetConfig",
    "ResNetConfig",
    "RulesConfig",
    "SwinConfig",
    "TTAConfig",
    "TrainConfig",
    "ViTConfig",
    "check_bounds",
    "field_names",
    "flat",
    "from_dict",
    "from_file",
    "override",
    "to_dict",
    "to_json",
]
