"""Errors that are a user's mistake: one line that says where, what was expected, what came, what to do.

The command line prints the message alone and leaves with status 2; Python callers catch `UserError`
(a `ValueError`). Anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: `where: expected X, got Y. Do Z.` in one line."""


def did_you_mean(word: str, allowed: Iterable[str], *, show_all_up_to: int = 8) -> str:
    """The nearest of `allowed` to `word` as the tail of an error message, e.g. `Did you mean 'lr'?`."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(word, allowed, n=3, cutoff=0.5)
    if near:
        return "Did you mean " + " or ".join(repr(n) for n in near) + "?"
    if len(allowed) <= show_all_up_to:
        return "Known: " + ", ".join(allowed) + "."
    return ""
