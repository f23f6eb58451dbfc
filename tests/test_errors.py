"""A user's mistake is one short printable line, whatever text a file or an argument brought into it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from maskrcnn.errors import (
    MAX_LENGTH,
    UserError,
    UserIndexError,
    check_number,
    described,
    did_you_mean,
    one_line,
)


@pytest.mark.parametrize(
    "text",
    ["x" * 10**6, "a\nb\r\n\tc", "\x1b[31mred", "\ud800 alone", "\u202egnp.exe", "\0" * 1000, "é" * 299, ""],
)
def test_a_message_is_one_printable_line_of_at_most_300_characters(text):
    message = str(UserError(f"a.json: expected a number, got {text}. Write one."))
    assert len(message) <= MAX_LENGTH == 300
    assert message.isprintable()
    assert message.startswith("a.json: expected a number, got ")
    assert message.endswith(". Write one.")
    message.encode()


def test_a_short_message_stays_as_it_is():
    message = "a.json: expected a number, got 'é'. " + "y" * 263
    assert len(message) == 299
    assert str(UserError(message)) == one_line(message) == message


def test_errors_pass_between_processes():
    for kind in (UserError, UserIndexError):
        error = pickle.loads(pickle.dumps(kind("x" * 1000)))
        assert type(error) is kind
        assert str(error) == str(kind("x" * 1000))


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float32(3), np.array(3)])
def test_numbers_of_python_and_numpy_are_taken(value):
    assert check_number(value, "x", 0, 10) == 3


@pytest.mark.parametrize("value", [-1, 11, float("nan"), float("inf"), True, "3", None, [3], 1j, 10**400])
def test_what_is_no_number_of_the_range_is_told(value):
    with pytest.raises(UserError, match=r"^x: expected a number from 0 to 10, got "):
        check_number(value, "x", 0, 10)


def test_whole_numbers_are_whole():
    assert check_number(np.int32(5), "x", 1, whole=True) == 5
    with pytest.raises(UserError, match=r"x: expected a whole number from 1, got 1\.5"):
        check_number(1.5, "x", 1, whole=True)


def test_values_are_shown_short():
    assert described("a" * 10**6) == "'" + "a" * 56 + "..."
    assert described(np.zeros((2, 3))) == "ndarray (2, 3)"
    assert described(10**5000) == "a number of many digits"
    assert described({"a": 1}) == "dict"
    assert described(None) == "None"


def test_a_long_word_has_no_neighbours():
    assert did_you_mean("x" * 10**6, ["lr"], show_all_up_to=0) == ""
