"""Reading one batch ahead: the order, what has begun when, and errors in their turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from maskrcnn.data.ahead import on_device_ahead, one_ahead
from maskrcnn.errors import UserError


def test_the_next_one_has_begun_when_one_is_handed_out() -> None:
    begun: list[int] = []

    def begin(item: int) -> int:
        begun.append(item)
        return item

    seen = [(item, list(begun)) for item in one_ahead(iter(range(3)), begin)]
    assert seen == [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2])]


def test_an_error_is_raised_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise UserError("2.jpg: damaged")

    stream = one_ahead(items(), lambda item: item)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(UserError, match=r"2\.jpg"):
        next(stream)
    with pytest.raises(StopIteration):
        next(one_ahead(iter([]), lambda item: item))


def test_on_a_cpu_the_batches_are_handed_out_as_they_are() -> None:
    batches = iter([([torch.zeros(3, 2, 2)], [], [1])])
    assert on_device_ahead(batches, torch.device("cpu")) is batches
