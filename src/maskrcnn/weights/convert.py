"""A model's weights in the file that its original reads, so that nobody is locked in.

| suffix | content | models |
|---|---|---|
| `.safetensors` | our names, with the config | all |
| `.pkl` | detectron2's names, numpy arrays, as in its zoo | on ResNets |
| `.pth` | torchvision's names, detectron2's under `model`, MMDetection's under `state_dict` | all but ours |
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from maskrcnn.config import InternImageConfig, ModelConfig, ResNetConfig, ViTConfig
from maskrcnn.errors import UserError
from maskrcnn.files import atomic_path
from maskrcnn.weights.names.detectron2 import to_detectron2
from maskrcnn.weights.names.mmdetection import to_mmdetection
from maskrcnn.weights.names.torchvision import to_torchvision
from maskrcnn.weights.write import write_weights

SUFFIXES = (".safetensors", ".pkl", ".pth")
AUTHOR = "maskrcnn"

Origin = Literal["detectron2", "mmdetection", "torchvision"]


def origin(config: ModelConfig) -> Origin | None:
    """Name of the project whose model a config is of; None for our own."""
    if isinstance(config.backbone, InternImageConfig | ViTConfig):
        return "mmdetection"
    if not isinstance(config.backbone, ResNetConfig):
        return None
    return "torchvision" if config.rpn.anchors == "torchvision" else "detectron2"


def check_suffix(config: ModelConfig, out: Path) -> None:
    """Raises a UserError where a model has no file of `out`'s kind."""
    whose = origin(config)
    allowed = {None: SUFFIXES[:1], "detectron2": SUFFIXES}.get(whose, (".safetensors", ".pth"))
    if out.suffix not in allowed:
        raise UserError(
            f"--out {out}: expected a name that ends in {' or '.join(allowed)}, which {config.name} can be written to."
        )


def original_names(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model under the names, and in the order of classes, of its original."""
    whose = origin(config)
    if whose == "torchvision":
        return to_torchvision(state)

    def rename(name: str) -> str | None:
        if whose == "detectron2":
            return to_detectron2(name, pyramid=config.fpn is not None)
        return to_mmdetection(name, pyramid=config.fpn is None or config.fpn.top_down)

    renamed = {rename(name): value for name, value in state.items()}
    return {name: value for name, value in renamed.items() if name is not None}


def write_as(out: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Write a model's weights to `out`, in the format of its suffix.

    Raises:
        UserError: the model has no such format, or the file cannot be written.
    """
    check_suffix(config, out)
    if out.suffix == ".safetensors":
        write_weights(out, dict(state), config)
        return
    named = {k: v.detach().cpu().contiguous() for k, v in original_names(config, state).items()}
    if out.suffix == ".pkl":
        _write(out, lambda path: path.write_bytes(_pickled(named)))
        return
    content: dict[str, Any] = named
    match origin(config):
        case "detectron2":
            content = {"model": named, "__author__": AUTHOR}
        case "mmdetection":
            content = {"meta": {"CLASSES": config.class_names}, "state_dict": named}
    _write(out, lambda path: torch.save(content, path))


def _write(out: Path, write: Callable[[Path], object]) -> None:
    with atomic_path(out) as temporary:
        try:
            write(temporary)
        except RuntimeError as e:  # torch.save's form of a full disk
            raise OSError(None, f"{e}".splitlines()[0]) from e


def _pickled(state: Mapping[str, Tensor]) -> bytes:
    """Pickle the weights as detectron2's zoo does: numpy arrays by name. numpy 1 reads it too."""
    content = {"model": {k: v.numpy() for k, v in state.items()}, "__author__": AUTHOR}
    # Protocol 3 names a function once, at its first use, in a line of text; numpy 2 knows the old name as well.
    return pickle.dumps(content, protocol=3).replace(b"cnumpy._core.", b"cnumpy.core.", 1)
