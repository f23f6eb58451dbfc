"""Label files in the encodings that tools write, and JSON that no parser should fall over."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskrcnn.data.json_stream import JsonStream
from maskrcnn.data.label_text import read_json, read_text
from maskrcnn.errors import UserError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_a_text_is_the_same_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    text = "grün\r\nmètre – “élan”\nTür 3°\n"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert read_text(tmp_path / "a.txt") == text


@pytest.mark.parametrize(
    "content",
    [
        "苹果\n香蕉\n".encode("gbk"),
        "яблоко\n".encode("cp1251"),
        "cat\n".encode("utf-16-le"),  # without a mark
        "cat\n".encode("utf-16")[:-1],
        b"\xff\xd8\xff\xe0\0\x10JFIF",
        b"caf\x81",
    ],
)
def test_what_is_no_text_or_in_an_unknown_encoding_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.txt: expected .*Save it as UTF-8"):
        read_text(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"images": ' + "[" * 100_000, "nested too deeply"),
        ('{"info": ' + "9" * 5000 + "}", "thousands of digits"),
        ('{"images": [', "not valid JSON"),
    ],
)
def test_a_json_that_cannot_be_parsed_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_json(path)
    assert len(str(caught.value)) < 300 + len(str(path))
    if text.startswith("{"):
        with pytest.raises(UserError, match=message):
            list(JsonStream(path, ("images",)))


def test_half_a_surrogate_pair_is_replaced_and_a_whole_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(r'["\ud800.png", "\uD83D\uDE00", "\\ud800", "\udc00x"]')
    assert read_json(path) == ["�.png", "\U0001f600", "\\ud800", "�x"]
