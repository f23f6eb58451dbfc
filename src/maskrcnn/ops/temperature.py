"""Temperature of scores: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599)."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

Scores = TypeVar("Scores", Tensor, np.ndarray)


def tempered(scores: Scores, temperature: float) -> Scores:
    """Divide the log-odds of scores (...), from 0 to 1, by a temperature: above 1 they become less sure."""
    if temperature == 1:
        return scores
    up, down = scores ** (1 / temperature), (1 - scores) ** (1 / temperature)
    return up / (up + down)
