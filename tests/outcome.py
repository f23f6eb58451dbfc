"""Outcome of work on a damaged file, in a word or a line."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from maskrcnn.errors import UserError


def outcome_of(work: Callable[[], object]) -> str:
    """Return `read`, `refused`, or a line on what is wrong: a warning, another error, no short message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            work()
    except UserError as e:
        line = str(e)
        return "refused" if len(line) <= 300 and line.isprintable() else f"not one short line: {line[:400]!r}"
    except Exception as e:
        where = traceback.extract_tb(e.__traceback__)[-1]
        return f"{type(e).__name__}: {str(e)[:200]} ({Path(where.filename).name}:{where.lineno})"
    return "read"
