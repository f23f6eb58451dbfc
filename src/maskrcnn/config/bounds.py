"""Bounds of settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

Norm = Literal["none", "frozen_bn", "bn", "sync_bn", "gn", "ln"]


@dataclass(frozen=True)
class Between:
    """Bounds of a setting, themselves allowed, which are looked at where it comes from a file or a command line."""

    low: float
    high: float = math.inf

    def __get_pydantic_core_schema__(self, kind: Any, schema_of: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.check, schema_of(kind))

    def check(self, value: float) -> float:
        if not self.low <= value <= self.high:
            reach = f"from {self.low:g}" if self.high == math.inf else f"from {self.low:g} to {self.high:g}"
            raise ValueError(f"expected a number {reach}, got {value:g}")
        return value


Count = Annotated[int, Between(1)]
Share = Annotated[float, Between(0, 1)]
NotNegative = Annotated[float, Between(0)]
Positive = Annotated[float, Between(1e-9)]
Cells = Annotated[int, Between(1, 256)]  # along a side of a pooled RoI
