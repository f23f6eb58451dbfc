"""Swin's windows: what sees what, by hand, and maps that are no whole windows."""

from __future__ import annotations

import pytest
import torch

from maskrcnn.backbones.swin import Swin, WindowAttention, relative_positions
from maskrcnn.config import SwinConfig


def test_distances_number_each_pair_of_places_alike() -> None:
    index = relative_positions(2)  # places 00, 01, 10, 11; distances from -1 to 1
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def test_shifted_windows_part_what_the_shift_brought_together() -> None:
    apart = WindowAttention(4, 1, 4, shift=2).apart(2, 2)
    assert apart.shape == (4, 16, 16)
    assert not apart[0].any()  # the first window lies in the map as it is
    side = torch.arange(16) % 4 >= 2  # of the second, the right half is from the left edge
    assert torch.equal(apart[1], side[:, None] != side[None, :])
    corner = (torch.arange(16) // 4 >= 2).long() * 2 + side.long()  # of the last, four parts
    assert torch.equal(apart[3], corner[:, None] != corner[None, :])


@pytest.mark.parametrize("size", [(64, 96), (52, 40), (33, 31)])
def test_maps_of_any_size(size: tuple[int, int]) -> None:
    body = Swin(SwinConfig().tiny()).eval()
    with torch.inference_mode():
        maps = body(torch.rand(2, 3, *size))
    side = [-(-s // 4) for s in size]
    for i, x in enumerate(maps.values()):
        assert tuple(x.shape) == (2, 16 * 2**i, *side)
        side = [-(-s // 2) for s in side]


def test_a_picture_alone_and_in_a_batch_gives_the_same() -> None:
    torch.manual_seed(0)
    body = Swin(SwinConfig().tiny()).eval()
    pixels = torch.rand(2, 3, 48, 64)
    with torch.inference_mode():
        both, alone = body(pixels), body(pixels[1:])
    for a, b in zip(both.values(), alone.values(), strict=True):
        torch.testing.assert_close(a[1:], b, rtol=1e-4, atol=1e-5)
