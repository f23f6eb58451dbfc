"""Search for the largest batch: exact, and never beyond what was tried."""

from __future__ import annotations

import pytest
import torch

from maskrcnn.bench.largest import largest_fitting, runs_in_memory


@pytest.mark.parametrize("largest", [1, 2, 3, 5, 47, 48, 63, 64, 100])
def test_finds_the_largest_and_tries_one_more(largest: int) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= largest

    assert largest_fitting(fits, limit=1000) == largest
    assert largest + 1 in tried
    assert len(tried) == len(set(tried))
    assert len(tried) <= 2 * largest.bit_length() + 1


def test_the_limit_is_not_exceeded_and_can_be_any_number() -> None:
    for limit in (1, 2, 3, 7, 8, 9):
        assert largest_fitting(lambda batch, limit=limit: batch <= limit, limit=limit) == limit


def test_not_even_one() -> None:
    assert largest_fitting(lambda _: False) is None
    assert largest_fitting(lambda _: True, first=3, limit=2) is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_what_libraries_say_without_memory_is_no_failure(error: Exception) -> None:
    def work() -> None:
        raise error

    assert not runs_in_memory(work)


def test_other_errors_are_not_taken_for_it() -> None:
    def work() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        runs_in_memory(work)
    assert runs_in_memory(lambda: None)
