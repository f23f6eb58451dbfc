"""Mapping of a data set's or a model's classes to another's, by their names and not by their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maskrcnn.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from maskrcnn.config import ModelConfig

_SHOWN = 8  # names in a message


def places(names: Sequence[str], among: Sequence[str]) -> list[int]:
    """Index of each name in `among`, -1 where it is absent; the second 'red' is the second 'red' there."""
    place = {key: k for k, key in enumerate(_keys(among))}
    return [place.get(key, -1) for key in _keys(names)]


def renumbered(
    arrays: dict[str, np.ndarray], meta: dict[str, Any], names: Sequence[str], ids: Sequence[int]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays of `coco_arrays` with the classes `names`, whose category ids are `ids`, in the place of their own.

    An object of a class that is none of them loses its label, which the checks report with the class's name.
    """
    own, given = meta["class_names"], meta["category_ids"]
    place = places([*map(str, given)], [*map(str, ids)]) if _unnamed(own, given) else places(own, names)
    old = arrays["labels"]
    labels = np.array([*place, -1], np.int32)[old]
    lost, known = np.flatnonzero(labels < 0), iter(arrays["lost_categories"].tolist())
    texts = [next(known) if k < 0 else f"class {own[k]!r}" for k in old[lost].tolist()]
    changed = {
        "labels": labels,
        "keep": arrays["keep"] & (labels >= 0),
        "lost_categories": np.array(texts) if texts else np.zeros(0, "<U1"),
    }
    return {**arrays, **changed}, {**meta, "class_names": list(names), "category_ids": list(ids)}


def ids_of_model(
    config: ModelConfig, data_names: Sequence[str], data_ids: Sequence[int], where: object
) -> list[int | None]:
    """The data set's id of each of the model's classes; None for a class that the data set does not have.

    By names, where both know them; else by ids, or by their order where there are as many. `where` is for messages.

    Raises:
        UserError: not one class in common; or, without names, neither as many classes nor ids of the model.
    """
    names, ids = config.class_names, config.category_ids
    if names and not _unnamed(data_names, data_ids):
        place = places(names, data_names)
        if max(place, default=-1) < 0:
            raise UserError(unknown(where, names, data_names))
        return [None if k < 0 else data_ids[k] for k in place]
    if len(data_ids) == config.num_classes:
        return list(data_ids)
    if set(data_ids) <= set(ids):
        return [k if k in data_ids else None for k in ids]
    raise UserError(
        f"{where}: expected the model's {config.num_classes} classes, got {len(data_ids)}. Use a model trained on "
        "these classes."
    )


def unknown(where: object, names: Sequence[str], others: Sequence[str]) -> str:
    """Message on classes `others` that a model of the classes `names` does not know."""
    got = ", ".join(map(repr, others[:3])) + ", ..." * (len(others) > 3)
    near = did_you_mean(others[0], names, show_all_up_to=0) if others else ""
    advice = near or "Use a model trained on these classes, or give them its names."
    return f"{where}: expected classes that the model knows ({_first(names)}), got {got or 'none'}. {advice}"


def _first(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)


def _unnamed(names: Sequence[str], ids: Sequence[int]) -> bool:
    """Recognize the names that are made up where a JSON has none."""
    return list(names) == list(map(str, ids))


def _keys(names: Sequence[str]) -> list[tuple[str, int]]:
    """Each name with the number of equal ones before it."""
    seen: Counter[str] = Counter()
    keys = []
    for name in names:
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys
