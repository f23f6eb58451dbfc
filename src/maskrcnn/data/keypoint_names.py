"""Pairs of key points that a mirror swaps, found by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Also l_hip, hip.r, LShoulder; not lower, roof.
_LEFT = re.compile(r"(?i:left)|(?<![A-Za-z])[lL](?![a-z])")
_RIGHT = re.compile(r"(?i:right)|(?<![A-Za-z])[rR](?![a-z])")


def mirrored_pairs(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """The points that change places in a mirrored image: two whose names differ in left and right (or l and r)."""
    right = {_RIGHT.sub("|", name).lower(): k for k, name in enumerate(names) if _RIGHT.search(name)}
    left = {_LEFT.sub("|", name).lower(): k for k, name in enumerate(names) if _LEFT.search(name)}
    return tuple((k, right[rest]) for rest, k in left.items() if rest in right)
