"""Our own parameter names, as a file without a config has them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from maskrcnn.weights.names.protocol import BODY, Names, Renamed
from maskrcnn.weights.names.torchvision import DETECTOR
from maskrcnn.weights.names.uni_perceiver import from_uni_perceiver


def _matches(names: Collection[str]) -> bool:
    return any(name.startswith(BODY) for name in names) and not DETECTOR.matches(names)


def current(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring names of earlier versions up to date: Uni-Perceiver's blocks had names of their own."""
    return {from_uni_perceiver(name): value for name, value in state.items()}


OURS = Names(
    name="maskrcnn", kind="maskrcnn", matches=_matches, to_ours=lambda state: Renamed(state=current(state))
)
