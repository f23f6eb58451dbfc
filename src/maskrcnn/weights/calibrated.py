"""Temperature of a trained model, kept in the config of its weight file, so that whoever loads it has it."""

from __future__ import annotations

import json
from pathlib import Path

from maskrcnn.config import ModelConfig, from_dict, to_json
from maskrcnn.errors import UserError
from maskrcnn.weights.checksums import NAME as CHECKSUMS
from maskrcnn.weights.load import IN_A_FOLDER
from maskrcnn.weights.write import write_tensors


def file_to_calibrate(model: str | Path) -> Path:
    """Find the weight file of a run's folder, or a file of ours, that a temperature can be kept in.

    Raises:
        UserError: a model by name, an exported or published file, a checkpoint whose files have checksums.
    """
    path = Path(model)
    if path.is_dir():
        path = next((path / name for name in IN_A_FOLDER if (path / name).is_file()), path)
    if not path.is_file() or _config(path) is None:
        raise UserError(
            f"--calibrate: expected a run's folder or a safetensors file of ours, which keep the temperature, got "
            f"{model}. `maskrcnn convert` makes such a file."
        )
    if (path.parent / CHECKSUMS).exists():
        raise UserError(
            f"--calibrate: {path} is part of a checkpoint, whose files do not change. Calibrate the run."
        )
    return path


def keep_temperature(path: Path, factor: float) -> float:
    """Multiply the temperature in a weight file by `factor`, and give the new one; nothing else in it changes.

    Raises:
        UserError: the file cannot be written.
    """
    from safetensors import safe_open

    config = _config(path)
    assert config is not None  # `file_to_calibrate` has looked
    config.box_head.temperature *= factor
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), "config": to_json(config)}
        state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no mapping)
    write_tensors(path, state, metadata)
    return config.box_head.temperature


def _config(path: Path) -> ModelConfig | None:
    """Config in a safetensors file, None where it is no such file or has none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("config")
    except (SafetensorError, OSError):
        return None
    return None if text is None else from_dict(ModelConfig, json.loads(text), f"{path}: config")
