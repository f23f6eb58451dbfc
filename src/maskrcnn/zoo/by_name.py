"""Models by name: build one, load one with its weights. No torch until one is built."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskrcnn import presets
from maskrcnn.errors import UserError, check_number, described, shown
from maskrcnn.zoo.table import find

if TYPE_CHECKING:
    from maskrcnn.config import ModelConfig
    from maskrcnn.models.predictor import Predictor
    from maskrcnn.weights.load import WeightFile

MAX_CLASSES = 100_000
HUB = "hf://"
EXPORTED = (".onnx", ".xml", ".pt2")
_WEIGHT_SUFFIXES = (".safetensors", ".pkl", ".pth", ".pt", ".tar", ".npz")


def build(name: str, num_classes: int | None = None, *, tiny: bool = False) -> Predictor:
    """Build a model with random weights, on the CPU, ready to train.

    Raises:
        UserError: no such model; the message has the nearest names. No number of classes from 1 to 100,000.
    """
    from maskrcnn.engines.prepare import for_training
    from maskrcnn.models.build import build_model

    _check_path(name, "build: name")
    if num_classes is not None:
        num_classes = check_number(num_classes, "build: num_classes", 1, MAX_CLASSES, whole=True)
    config = presets.get(name, tiny=tiny).model
    return for_training(build_model(config if num_classes is None else with_classes(config, num_classes)))


def load(
    name_or_path: str | Path,
    weights: str | Path | None = None,
    device: str | None = None,
    precision: str = "fp32",
    engine: str | None = None,
) -> Predictor:
    """Load a model with its weights, ready to predict.

    name_or_path: a run folder, a safetensors file of ours or an exported .onnx, .xml or .pt2, which need nothing else;
    hf://USER/NAME, a model on the Hugging Face hub (extra `hub`);
    or a model's name, with `weights` a file of ours or a published one; without, its published file is downloaded
    (see `maskrcnn.zoo.download`). The number of classes is the file's.
    device: as PyTorch names it, by default a CUDA GPU where there is one. precision: of the network; results are
    float32 anyway, and where the processor is slower in it than in fp32 one line is logged that says so.
    engine: what runs the network, by default `cpu` on a CPU and `eager` elsewhere: `cpu`,
    rewrites of single methods that are faster on this kind of processor; `openvino`, `onnx`, their graphs of the
    dense parts; `compile`, torch.compile; `eager`, plain PyTorch. `model.engine` says which.

    Raises:
        UserError: no such model or file, weights of another model, no such device or engine, a download that fails.
    """
    from maskrcnn import processor
    from maskrcnn.engines.prepare import check_engine, prepare

    if not isinstance(precision, str) or precision not in processor.DTYPES:
        raise UserError(f"precision: expected fp32, bf16 or fp16, got {described(precision)}.")
    _check_path(name_or_path, "load: name_or_path")
    if weights is not None:
        _check_path(weights, "load: weights")
    if Path(name_or_path).suffix in EXPORTED:
        return _exported(Path(name_or_path), device, precision, engine)
    target = processor.find_device(device)
    if engine is not None:
        check_engine(engine)
    if remark := processor.remark(precision, target):
        logging.getLogger("maskrcnn").warning(remark)
    return prepare(restore(name_or_path, weights).to(target), precision, engine)


def _exported(path: Path, device: str | None, precision: str, engine: str | None) -> Any:
    """Load an exported model, which has the interface of a `Predictor` as far as predicting goes."""
    from maskrcnn.engines.exported import ENGINE_OF, ExportedPredictor

    for what, value, only in (
        ("device", device, "cpu"),
        ("precision", precision, "fp32"),
        ("engine", engine, ENGINE_OF[path.suffix]),
    ):
        if value not in (None, only):
            raise UserError(f"{path}: expected {what} {only} for an exported model, got {value!r}.")
    return ExportedPredictor(path)


def restore(name_or_path: str | Path, weights: str | Path | None = None) -> Predictor:
    """Load a model as `load` does but on the CPU in float32, as trained, to be changed or saved."""
    from maskrcnn.models.build import build_model
    from maskrcnn.weights.file_config import check_config
    from maskrcnn.weights.load import load_weights, read_weights

    if str(name_or_path).startswith(HUB):
        from maskrcnn.zoo.hub import fetch as fetch_from_hub

        name_or_path = fetch_from_hub(str(name_or_path))
    if weights is None and _is_file(name_or_path):
        file = read_weights(name_or_path)
        config = file.config
    else:
        config = presets.get(str(name_or_path)).model
        file = read_weights(published_weights(str(name_or_path)) if weights is None else weights)
        config = _config_for(config, file)
    if file.kind == "backbone":
        raise UserError(
            f"{file.path}: expected a detector's weights, got a backbone's. Train a model from it."
        )
    if config is None:
        raise UserError(
            f"{file.path}: holds weights without their config. Name the model: load(NAME, weights=FILE)."
        )
    check_config(file)
    model = build_model(config)
    load_weights(model, file)
    return model


def published_weights(name: str) -> Path:
    """Fetch the published file of a model, from the cache or else downloaded.

    Raises:
        UserError: no such model, none was published, or the download fails.
    """
    from maskrcnn.zoo.download import fetch

    presets.get(name)
    entry = find(name)
    if entry is None or entry.weights is None:
        raise UserError(
            f"{name}: expected weights, got none, and none are published. Train it, or give a file."
        )
    return fetch(entry.weights)


def with_classes(config: ModelConfig, num_classes: int) -> ModelConfig:
    """Copy of the model's config for another number of classes; their names go where the number changes."""
    import dataclasses

    if num_classes == config.num_classes:
        return config
    return dataclasses.replace(config, num_classes=num_classes, class_names=(), category_ids=())


def _config_for(config: ModelConfig, file: WeightFile) -> ModelConfig:
    """Config that a file's weights need, for a model asked for by name."""
    if file.config is not None:
        if file.config.name != config.name:
            raise UserError(
                f"{file.path}: expected weights of {config.name}, got those of {shown(file.config.name)}."
            )
        return file.config
    return config if file.num_classes is None else with_classes(config, file.num_classes)


def _check_path(value: str | Path, where: str) -> None:
    if not isinstance(value, str | Path) or not str(value):
        raise UserError(f"{where}: expected a name or a path, got {described(value)}.")


def _is_file(name: str | Path) -> bool:
    path = Path(name)
    return str(name) not in presets.PRESETS and (
        os.path.exists(path) or path.suffix in _WEIGHT_SUFFIXES or len(path.parts) > 1
    )
