"""Configs as JSON and as options of a command line: read, checked, changed by dotted names, written."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from maskrcnn.config.bounds import Between
from maskrcnn.config.model import ModelConfig
from maskrcnn.config.run import Config
from maskrcnn.errors import UserError, did_you_mean, shown

T = TypeVar("T")

# Where these were in configs that earlier versions have saved.
_RULES_BEFORE = {
    ("rpn", "min_box_side"): "min_proposal_side",
    ("box_head", "min_box_side"): "min_detection_side",
    ("mask_head", "targets"): "mask_targets",
    ("mask_head", "paste"): "paste",
    ("box_head", "nms_in_original"): "nms_in_original",
    **{("fpn", name): name for name in ("level_epsilon", "roi_aligned", "roi_sampling_ratio")},
    **{
        ("rpn", name): name
        for name in (
            "anchors",
            "iou_best",
            "best_reassigns",
            "limit_shrinking",
            "normalize_by",
            "ignore_padding",
        )
    },
    ("box_head", "best_reassigns"): "best_reassigns",
    ("box_head", "limit_shrinking"): "limit_shrinking",
}


def field_names(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of every leaf field of a config."""
    names = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            names += field_names(value, f"{prefix}{f.name}.")
        else:
            names.append(prefix + f.name)
    return names


def override(config: Any, name: str, value: Any) -> None:
    """Set the field of the dotted `name` in place. `value` may be text, as from a command line.

    Raises:
        UserError: no such field (with the nearest names), or a value that its type does not take.
    """
    *parents, leaf = name.split(".")
    target = config
    for parent in parents:
        target = getattr(target, parent, None) if dataclasses.is_dataclass(target) else None
    hints = (
        typing.get_type_hints(type(target), include_extras=True) if dataclasses.is_dataclass(target) else {}
    )
    if leaf not in hints or dataclasses.is_dataclass(getattr(target, leaf)):
        known = field_names(config)
        near = did_you_mean(name, known) or "See `maskrcnn train --help` for the fields."
        raise UserError(f"--{name}: no such setting. {near}")
    parsed = _parse(value)
    if isinstance(getattr(target, leaf), tuple) and isinstance(parsed, int | float):
        parsed = (parsed,)
    options = () if typing.get_origin(hints[leaf]) is tuple else typing.get_args(hints[leaf])
    words = [w for option in options for w in typing.get_args(option)]  # that stand for themselves
    if isinstance(getattr(target, leaf), tuple) and isinstance(parsed, str) and parsed not in words:
        parsed = tuple(part.strip() for part in parsed.split(",") if part.strip())
    form = f" Write it like {getattr(target, leaf)!r}." if isinstance(getattr(target, leaf), tuple) else ""
    setattr(target, leaf, _validate(hints[leaf], parsed, f"--{name}", f" {value!r}", form))


def check_bounds(config: Any, prefix: str = "") -> None:
    """Check every setting's bounds again, for configs that were made or changed in Python.

    Raises:
        UserError: a setting is outside of its bounds.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for f in dataclasses.fields(config):
        value: Any = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            check_bounds(value, f"{prefix}{f.name}.")
            continue
        for bounds in getattr(hints[f.name], "__metadata__", ()):
            if isinstance(bounds, Between) and value is not None:
                try:
                    bounds.check(value)
                except ValueError as e:
                    raise UserError(f"--{prefix}{f.name}: {e}.") from None


def to_dict(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields of `to_dict`'s form by their dotted names."""
    named: dict[str, Any] = {}
    for name, value in values.items():
        named |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return named


def to_json(config: Any) -> str:
    return json.dumps(to_dict(config), indent=1)


def from_dict(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a config of class `kind` from `to_dict`'s form; `where` names the source in errors.

    Raises:
        UserError: a field is unknown (with the nearest names) or has a value that its type does not take.
    """
    values = _up_to_date(kind, values)
    _refuse_unknown(kind, values, where)
    return _validate(kind, values, where)


def _up_to_date(kind: type, values: Any) -> Any:
    """Copy of a saved config's fields in which the rules are where they are now."""
    if kind is Config and isinstance(values, Mapping) and isinstance(values.get("model"), Mapping):
        values = {**values, "model": _up_to_date(ModelConfig, values["model"])}
        train = values.get("train")
        if isinstance(train, Mapping) and "tensorboard" in train:
            kept = {name: value for name, value in train.items() if name != "tensorboard"}
            values["train"] = {"trackers": ["tensorboard"] if train["tensorboard"] else [], **kept}
        return values
    if kind is not ModelConfig or not isinstance(values, Mapping) or "rules" in values:
        return values
    values, rules = dict(values), {}
    for (part, name), now in _RULES_BEFORE.items():
        if isinstance(fields := values.get(part), Mapping) and name in fields:
            rules.setdefault(now, fields[name])
            values[part] = {k: v for k, v in fields.items() if k != name}
    return {**values, "rules": rules} if rules else values


def from_file(path: str | Path) -> Config:
    """Read a whole config saved by `to_json`."""
    try:
        values = json.loads(Path(path).read_text())
    except OSError as e:
        raise UserError(f"{path}: cannot read the config: {e.strerror}.") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not valid JSON: {e}.") from None
    return from_dict(Config, values, str(path))


def _parse(value: Any) -> Any:
    """Parse command-line text as JSON or as a Python literal, which `--help` shows; text that is neither stays text."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if "," in text and text[:1] not in '[{("':
        text = f"[{text}]"
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return value


def _validate(kind: Any, value: Any, where: str, given: str = "", advice: str = "") -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        valid = TypeAdapter(kind).validate_python(value)
    except ValidationError as e:
        # Of a setting that is a word or something else, what is wrong with the something else.
        faults = e.errors()
        first = next((f for f in faults if "literal[" not in str(f["loc"])), faults[0])
        place = shown(".".join(str(p) for p in first["loc"] if not str(p).endswith(("Config", "]"))))
        said = shown(first["msg"].removeprefix("Value error, "), 120)
        raise UserError(f"{where}{': ' + place if place else given}: {said}.{advice}") from None
    for place, number in _floats(valid):
        if not math.isfinite(number):
            at = f": {place}" if place else given
            raise UserError(f"{where}{at}: expected a finite number, got {number}.")
    return valid


def _floats(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Each float in a setting or a config, with its dotted place."""
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, tuple):
        for item in value:
            yield from _floats(item, place)
    elif dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            yield from _floats(getattr(value, f.name), f"{place}.{f.name}".removeprefix("."))


def _refuse_unknown(kind: Any, values: Any, where: str) -> None:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected an object with fields, got {type(values).__name__}.")
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise UserError(
                f"{where}: no such setting {shown(repr(name))}. {did_you_mean(name, hints)}".rstrip()
            )
        options = [o for o in (typing.get_args(hints[name]) or (hints[name],)) if dataclasses.is_dataclass(o)]
        if isinstance(value, Mapping) and options:
            same_kind = [
                o for o in options if getattr(o, "kind", None) is None or _kind_of(o) == value.get("kind")
            ]
            _refuse_unknown((same_kind or options)[0], value, f"{where}: {name}")


def _kind_of(config_class: Any) -> Any:
    return next((f.default for f in dataclasses.fields(config_class) if f.name == "kind"), None)
