"""The comparison that an export must pass, by its own numbers."""

from __future__ import annotations

import pytest

from maskrcnn.export.check import Difference


@pytest.mark.parametrize(
    ("difference", "precision", "passed"),
    [
        (Difference("a", 10, 0, 0.01, 1e-4, 0.001), "fp32", True),
        (Difference("a", 10, 1, 0.01, 1e-4, 0.001), "fp32", False),
        (Difference("a", 10, 0, 0.01, 1e-4, 0.5), "fp32", False),
        (Difference("a", 10, 6, 3.0, 0.2, 0.2, usual_mask=0.02), "int8", True),
        (Difference("a", 10, 14, 3.0, 0.2, 0.2, usual_mask=0.02), "int8", False),
        # boxes right and masks wrong, as 8 bits once made them
        (Difference("a", 10, 0, 1.0, 0.1, 0.5, usual_mask=0.45), "int8", False),
    ],
)
def test_what_passes(difference: Difference, precision: str, passed: bool) -> None:
    assert difference.passed(precision) is passed
    assert ("ok" in difference.line(precision)) is passed
