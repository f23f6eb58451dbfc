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
from typing import Any

import torch
from torch import Tensor

from maskrcnn.config import ModelConfig
from maskrcnn.errors import UserError
from maskrcnn.files import atomic_path
from maskrcnn.presets import project_of
from maskrcnn.weights.names import FORMATS, Names
from maskrcnn.weights.names.detectron2 import DETECTRON2
from maskrcnn.weights.names.mmdetection import MMDETECTION
from maskrcnn.weights.write import write_weights

SUFFIXES = (".safetensors", ".pkl", ".pth")
AUTHOR = "maskrcnn"


def origin(config: ModelConfig) -> Names | None:
    """Names of the project whose model a config is of; None for our own."""
    project = project_of(config.name)
    return next((n for n in FORMATS if n.name == project and n.to_theirs is not None), None)


def check_suffix(config: ModelConfig, out: Path) -> None:
    """Raises a UserError where a model has no file of `out`'s kind."""
    names = origin(config)
    allowed = SUFFIXES[:1] if names is None else (".safetensors", ".pth")
    if names is DETECTRON2:
        allowed = SUFFIXES
    if out.suffix not in allowed:
        raise UserError(
            f"--out {out}: expected a name that ends in {' or '.join(allowed)}, which {config.name} can be written to."
        )


def original_names(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model under the names, and in the order of classes, of its original."""
    names = origin(config)
    assert names is not None
    assert names.to_theirs is not None
    return names.to_theirs(state, config)


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
    if (names := origin(config)) is DETECTRON2:
        content = {"model": named, "__author__": AUTHOR}
    elif names is MMDETECTION:
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
