"""Exported files, opened by the runtime that their ending asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from maskrcnn.errors import UserError, one_line

FORM = "1"  # of the graph's inputs and outputs, in the file's metadata under "maskrcnn"
SUFFIXES = (".onnx", ".xml")


class Session(Protocol):
    """Exported graph that is ready to run. facts: its metadata, `config` and `fixed` decoded."""

    engine: str
    facts: dict[str, Any]

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...


def open_session(path: str | Path, num_threads: int | None = None) -> Session:
    """Open a file that `maskrcnn export` wrote: .onnx with ONNX Runtime, .xml with OpenVINO.

    num_threads: None for as many as the runtime takes by itself.

    Raises:
        UserError: another ending, no such file, the runtime is not installed, a damaged file, another's file.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: expected an exported model, a file ending in {' or '.join(SUFFIXES)}.")
    if not path.is_file():
        raise UserError(f"{path}: no such model file.")
    return (_OnnxSession if path.suffix == ".onnx" else _OpenVinoSession)(path, num_threads)


class _OnnxSession:
    engine = "onnx"

    def __init__(self, path: Path, num_threads: int | None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise _not_installed(path, "ONNX Runtime", "onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
            facts = self._session.get_modelmeta().custom_metadata_map
        except Exception as e:  # of kinds of its own
            raise _damaged(path, "an ONNX", e) from None
        self._names = [one.name for one in self._session.get_outputs()]
        self.facts = checked_facts(facts, path)

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs: Any = self._session.run(None, inputs)
        return dict(zip(self._names, outputs, strict=True))


class _OpenVinoSession:
    engine = "openvino"

    def __init__(self, path: Path, num_threads: int | None) -> None:
        try:
            import openvino
        except ImportError:
            raise _not_installed(path, "OpenVINO", "openvino") from None
        settings = {}
        if num_threads is not None:
            settings["INFERENCE_NUM_THREADS"] = str(num_threads)
        try:
            core = openvino.Core()
            model = core.read_model(path)
            facts = _rt_info(model)
            low = facts.get("precision") == "bf16"  # other files compute in float32, where not in 8 bits
            settings["INFERENCE_PRECISION_HINT"] = "bf16" if low else "f32"
            self._compiled = core.compile_model(model, "CPU", settings)
        except Exception as e:
            raise _damaged(path, "an OpenVINO", e) from None
        self.facts = checked_facts(facts, path)

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self._compiled(inputs)
        return {output.get_any_name(): found[output] for output in self._compiled.outputs}


def _rt_info(model: Any) -> dict[str, Any]:
    if not model.has_rt_info(["maskrcnn"]):
        return {}
    info = model.get_rt_info(["maskrcnn"])
    info = getattr(info, "value", info)
    facts = json.loads(info) if isinstance(info, str) else info
    return dict(facts) if isinstance(facts, dict) else {}


def checked_facts(facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """Decode the metadata; refuse those of another form, or of none."""
    form = facts.get("maskrcnn", "none")
    if form != FORM:
        raise UserError(
            f"{path}: expected a model that this version of `maskrcnn export` wrote (form {FORM}), got form {form}."
        )
    try:
        given = {name: facts.get(name, "{}") for name in ("config", "fixed")}
        decoded = {name: json.loads(v) if isinstance(v, str) else v for name, v in given.items()}
        missing = {"input", "class_names", "category_ids", "rules"} - decoded["config"].keys()
    except (ValueError, AttributeError):
        raise UserError(
            f"{path}: expected the model's settings as JSON in its metadata, got others."
        ) from None
    if missing:
        raise UserError(
            f"{path}: expected the model's settings in its metadata, got none for {', '.join(sorted(missing))}."
        )
    return decoded


def _not_installed(path: Path, name: str, package: str) -> UserError:
    return UserError(f"{path}: expected {name} to read it, got none. Run: pip install {package}")


def _damaged(path: Path, what: str, error: Exception) -> UserError:
    return UserError(f"{path}: expected {what} model, got a damaged file ({one_line(str(error))[:120]}).")
