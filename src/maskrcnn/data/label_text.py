"""Label files as text and as JSON, in the encodings that people's tools write them in."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

from maskrcnn.errors import UserError

# UTF-32 first: its mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What is not ASCII in a Western language: letters, at most two in a row, and a few signs. Text in another old
# encoding (GBK, Windows-1251) reads as longer rows, or as fractions and quotes among letters.
_NOT_WESTERN = re.compile(r"[^\x00-\x7fÀ-ÖØ-öø-ÿŠšŽžŒœŸ°µ€£§²³–—‘’“”…]|[^\x00-\x7f]{3}")
_LONE_SURROGATE = re.compile(r"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F]..)")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, in UTF-16 or UTF-32 with a byte order mark, or in Windows-1252.

    Raises:
        UserError: it cannot be read, is no text, or is in an encoding that nothing tells.
    """
    try:
        content = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path}: cannot read it: {e.strerror}.") from None
    try:
        text = content.decode(encoding_of(content))
    except UnicodeDecodeError as e:
        return _windows(path, content, f"byte {content[e.start]:#04x} at {e.start}")
    if "\0" in text:
        raise UserError(
            f"{path}: expected a text file, got zero bytes among its characters. Save it as UTF-8."
        )
    return text


def encoding_of(head: bytes) -> str:
    """The encoding that a file's first bytes tell; UTF-8 where they tell none."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")


def read_json(path: Path) -> Any:
    """The value in a JSON file, in any encoding that `read_text` knows. Half a surrogate pair becomes U+FFFD.

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    text = read_text(path)
    if "\\ud" in text or "\\uD" in text:
        text = _LONE_SURROGATE.sub(lambda m: "\\ufffd" if m[1] else m[0], text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not valid JSON: {json_fault(e)}.") from None


def json_fault(error: Exception) -> str:
    """Sentence part on what is wrong with a JSON, of the exception that its parser raised."""
    if isinstance(error, RecursionError):
        return "its lists or objects are nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} in line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):  # of bytes that were given as they are
        return f"{error.reason} for {error.encoding} at byte {error.start}"
    return "a whole number of thousands of digits"  # the one other thing that Python's parser refuses


def _windows(path: Path, content: bytes, where: str) -> str:
    """The text as Windows-1252, if it looks like a Western language in it."""
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or _NOT_WESTERN.search(text):
        raise UserError(f"{path}: expected text in UTF-8, got {where}. Save it as UTF-8.")
    return text
