"""Errors that are a user's mistake: one line that says where, what was expected, what came, what to do.

The command line prints the message alone and leaves with status 2; Python callers catch `UserError`
(a `ValueError`). Anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import math
import re
import signal
from collections.abc import Iterable
from typing import Any

MAX_LENGTH = 300  # characters of a message
# Of a path with more parts than these the last two.
_DEEP_PATH = re.compile(r"(?<![\w.])(?:/[^/\s:;,'\"]+){2,}((?:/[^/\s:;,'\"]+){2})")


class UserError(ValueError):
    """A mistake in what the user gave: `where: expected X, got Y. Do Z.` in one line of at most 300 characters.

    A message often holds text of a file. Whatever that is, the beginning and the end of the message stay.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class UserIndexError(UserError, IndexError):
    """A number beyond what there is, for `for`, `reversed` and others that count on an `IndexError`."""


def one_line(text: str, length: int = MAX_LENGTH) -> str:
    """Put `text` into one printable line, with `?` for what a terminal would obey or cannot show.

    Of a line longer than `length`, deep paths keep their last two parts, and then `...` stands for its middle.
    """
    if len(text) > 4 * length:  # of gigabytes only the ends are looked at
        text = text[: 2 * length] + text[-2 * length :]
    line = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
    if len(line) > length:
        line = _DEEP_PATH.sub(r"...\1", line)
    if len(line) <= length:
        return line
    tail = length // 3
    return f"{line[: length - tail - 5].rstrip()} ... {line[-tail:].lstrip()}"


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


def check_number(value: Any, where: str, low: float, high: float = math.inf, *, whole: bool = False) -> Any:
    """Check that `value` is a number (Python's, numpy's) from `low` to `high`; returns an int or a float.

    Raises:
        UserError: it is anything else, True and not-a-number among them.
    """
    number = value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value
    kind = int if whole else (int, float)
    if isinstance(number, kind) and not isinstance(number, bool) and low <= number <= high:
        return number
    what = "a whole number" if whole else "a number"
    reach = f"from {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
    raise UserError(f"{where}: expected {what} {reach}, got {described(value)}.")


def described(value: Any) -> str:
    """Describe a value for a message: numbers and short text as they are, of others the type."""
    if value is None or isinstance(value, bool | float | str | bytes):
        text = repr(value[:99] if isinstance(value, str | bytes) else value)
        return text if len(text) <= 60 else text[:57] + "..."
    if isinstance(value, int):
        return str(value) if abs(value) < 10**30 else "a number of many digits"
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} {tuple(shape)}"


def did_you_mean(word: str, allowed: Iterable[str], *, show_all_up_to: int = 8) -> str:
    """Name the nearest of `allowed` to `word` as the tail of an error message, e.g. `Did you mean 'lr'?`.

    Capitals and separators do not count: `mask_rcnn_r50_fpn_1x` is `mask_rcnn_R_50_FPN_1x` and no other.
    """
    allowed = sorted(allowed)
    plain = {_letters(name): name for name in allowed}
    word = _letters(word[:MAX_LENGTH])
    near = [plain[n] for n in difflib.get_close_matches(word, plain, n=1 if word in plain else 3, cutoff=0.5)]
    if near:
        return "Did you mean " + " or ".join(repr(n) for n in near) + "?"
    if len(allowed) <= show_all_up_to:
        return "Known: " + ", ".join(allowed) + "."
    return ""


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def check_shape(value: Any, where: str, length: int, rest: tuple[int | None, ...] = ()) -> None:
    """Check that a tensor has the shape (length, *rest), None being any size.

    Raises:
        UserError: it has another, or is no tensor.
    """
    wanted = ", ".join(["N", *("P" if n is None else str(n) for n in rest)])
    expected = f"{where}: expected a tensor ({wanted}) with N = {length} boxes"
    if not hasattr(value, "is_floating_point"):
        raise UserError(f"{expected}, got {described(value)}.")
    shape = tuple(value.shape)
    fits = len(shape) == 1 + len(rest) and all(
        w in (None, n) for w, n in zip((length, *rest), shape, strict=True)
    )
    if not fits:
        raise UserError(f"{expected}, got one of shape {shape}.")
