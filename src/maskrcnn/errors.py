"""Errors that are a user's mistake: one line that says where, what was expected, what came, what to do.

The command line prints the message alone and leaves with status 2; Python callers catch `UserError`
(a `ValueError`). Anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: `where: expected X, got Y. Do Z.` in one line."""


def shown(text: object, most: int = 80) -> str:
    """Text of a file or of another's error, for a message: one line of printable characters, cut to `most`."""
    text = str(text)
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * most]).split())
    return line if len(line) <= most and len(text) <= 4 * most else line[: most - 3] + "..."


class Interrupted(KeyboardInterrupt):
    """Work that a signal has ended in good order, with a sentence on what is kept; `status` is the exit status."""

    def __init__(self, number: signal.Signals, message: str = "") -> None:
        super().__init__(message or f"stopped by {number.name}")
        self.signal, self.status = number, 128 + number


def did_you_mean(word: str, allowed: Iterable[str], *, show_all_up_to: int = 8) -> str:
    """The nearest of `allowed` to `word` as the tail of an error message, e.g. `Did you mean 'lr'?`.

    Capitals and separators do not count: `mask_rcnn_r50_fpn_1x` is `mask_rcnn_R_50_FPN_1x` and no other.
    """
    allowed = sorted(allowed)
    plain = {_letters(name): name for name in allowed}
    word = _letters(word)
    near = [plain[n] for n in difflib.get_close_matches(word, plain, n=1 if word in plain else 3, cutoff=0.5)]
    if near:
        return "Did you mean " + " or ".join(repr(n) for n in near) + "?"
    if len(allowed) <= show_all_up_to:
        return "Known: " + ", ".join(allowed) + "."
    return ""


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
