"""Interface of the parameter names of one kind of file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from maskrcnn.config import ModelConfig

Kind = Literal["maskrcnn", "detectron2", "mmdetection", "torchvision", "backbone"]
BODY = "backbone.body."  # beginning of our names of a backbone


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """Weights under our names. dropped: names in the file that are no part of a detector; made_for: of a backbone, what
    it expects that not every model of its shape gives it.
    """

    state: dict[str, Tensor]
    dropped: tuple[str, ...] = ()
    made_for: str = ""


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names of one kind of file: of a project's detectors, or of backbones alone.

    matches: True for the parameter names of such a file, and for no other kind's;
    to_ours: the file's weights under our names;
    to_theirs: the inverse, for a model of this config; None where nothing is written in this form.
    """

    name: str
    kind: Kind
    matches: Callable[[Collection[str]], bool]
    to_ours: Callable[[Mapping[str, Tensor]], Renamed]
    to_theirs: Callable[[Mapping[str, Tensor], ModelConfig], dict[str, Tensor]] | None = None
