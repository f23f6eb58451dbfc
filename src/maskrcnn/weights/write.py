"""Weight files of ours: safetensors whose metadata holds the config, so that each can be loaded by itself."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from maskrcnn.config import ModelConfig, to_json
from maskrcnn.files import atomic_path


def write_weights(path: Path, state: dict[str, Tensor], config: ModelConfig, **metadata: Any) -> None:
    """A safetensors file that carries the model's config, so that `maskrcnn.load` can rebuild it."""
    plain = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.items()}
    text = {"format": "pt", "config": to_json(config), **{k: json.dumps(v) for k, v in metadata.items()}}
    write_tensors(path, plain, text)


def write_tensors(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all; equal content is equal bytes."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary, as_os_error():
        save_file(state, temporary, metadata=metadata)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in the order of its names; the library's order is random."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))


@contextmanager
def as_os_error() -> Iterator[None]:
    """Raise a full disk as an OSError, which safetensors and torch.save hide in errors of their own."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as e:
        raise OSError(None, f"{e}") from e
