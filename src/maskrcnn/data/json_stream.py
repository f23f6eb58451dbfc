"""A large JSON object read element by element, so that memory does not grow with the file.

The standard parser keeps a file of a gigabyte as several gigabytes of objects. Here the top-level arrays that
are asked for come one element at a time, and what is not asked for is parsed and dropped.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from maskrcnn.data.label_text import encoding_of, json_fault
from maskrcnn.errors import UserError

_CHUNK = 1 << 20  # characters read at a time
_LONGEST = 1 << 24  # bytes of an array that is read by itself
_SPACE = " \t\r\n"


class JsonStream:
    """Iterator over `(member, element)` of the arrays `members` of the JSON object in a file.

    `seen` holds the names of all top-level members that have been passed, `first` the character that the text begins
    with. `errors`: what becomes of bytes that are no text, as `open` has it.
    """

    def __init__(self, path: Path, members: Collection[str], errors: str = "strict") -> None:
        self.path = path
        self._errors = errors
        self.members = members
        self.seen: list[str] = []
        self.first = ""
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0  # where in the text
        self._before = 0  # characters of the file before the text

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        try:
            with open(self.path, "rb") as file:
                encoding = encoding_of(file.read(4))
            with open(self.path, encoding=encoding, errors=self._errors) as self._file:
                yield from self._object()
        except FileNotFoundError:
            raise UserError(f"{self.path}: no such file. Give the path of a COCO JSON.") from None
        except UnicodeDecodeError as e:
            raise UserError(f"{self.path}: not a JSON text file: {e.reason} at byte {e.start}.") from None
        except OSError as e:
            raise UserError(f"{self.path}: cannot read it: {e.strerror}.") from None

    def _object(self) -> Iterator[tuple[str, Any]]:
        self.first = self._peek()
        if self.first != "{":
            kind = (
                "a list (a results file?)" if self.first == "[" else f"text that begins with {self.first!r}"
            )
            raise UserError(
                f"{self.path}: expected a COCO JSON object with images, annotations and categories, got {kind}."
            )
        self._at += 1
        while self._peek() != "}":
            name = self._value()
            if not isinstance(name, str):
                self._fail("a member's name that is no text")
            self._expect(":")
            self.seen.append(name)
            if name in self.members and self._peek() == "[":
                yield from self._array(name)
            else:
                self._value()
            if self._peek() != "}":
                self._expect(",")
        self._at += 1
        if self._peek():
            self._fail("text after the end of the object")

    def _array(self, name: str) -> Iterator[tuple[str, Any]]:
        self._at += 1
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            yield name, self._value()
            if self._peek() == "]":
                self._at += 1
                return
            self._expect(",")

    def _peek(self) -> str:
        """The next character that is not space; empty at the end of the file."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._more(_CHUNK):
                return ""

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            self._fail(f"expected {character!r}")
        self._at += 1

    def _value(self) -> Any:
        """The JSON value here, reading on until it is whole."""
        self._peek()
        size = _CHUNK
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as e:
                if not self._more(size):
                    self._at = e.pos
                    self._fail(e.msg)
            except (ValueError, RecursionError) as e:
                self._fail(json_fault(e))
            else:
                # A number at the end of the text may go on in the next part of the file.
                rest = self._text[end : end + 1]
                if (rest and rest not in "0123456789.eE+-") or not self._more(size):
                    self._at = end
                    return value
            size *= 2

    def _more(self, size: int) -> bool:
        part = self._file.read(size)
        if part:
            self._before += self._at
            self._text = self._text[self._at :] + part
            self._at = 0
        return bool(part)

    def _fail(self, message: str) -> None:
        place = f"character {self._before + self._at}"
        ended = " (the file ends there)" if self._at >= len(self._text) else ""
        raise UserError(f"{self.path}: not valid JSON: {message} at {place}{ended}.")


def array_of(path: Path, member: str) -> list[Any] | None:
    """Read one array of a JSON object without parsing what is before and after it; None where that is not sure to be
    the object's own: the name is written more than once in the file, or the text is not UTF-8.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if not encoding_of(content[:4]).startswith("utf-8"):
                return None
            key = f'"{member}"'.encode()
            at = content.find(key)
            if at < 0 or content.find(key, at + 1) >= 0:
                return None
            text = content[at + len(key) : at + len(key) + _LONGEST].decode(errors="replace").lstrip(_SPACE)
            if not text.startswith(":"):
                return None
            found, _ = json.JSONDecoder().raw_decode(text[1:].lstrip(_SPACE))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None
