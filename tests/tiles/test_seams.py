"""Pieces of objects from overlapping tiles: which are one object, where a network has several opinions of a place."""

from __future__ import annotations

import numpy as np

from maskrcnn.tiles.seams import Pieces, Tile, merge

SIZE = (100, 160)
TILES = (Tile(0, 0, 100, 100), Tile(60, 0, 160, 100))  # both see the columns 60 to 100


def piece(
    tile: int, score: float, x0: int, y0: int, x1: int, y1: int, hidden: tuple[int, int] = (0, 0)
) -> Pieces:
    """Rectangle as a tile sees it, but for the columns that something in front hides."""
    mask = np.ones((y1 - y0, x1 - x0), bool)
    if hidden != (0, 0):
        mask[:, hidden[0] - x0 : hidden[1] - x0] = False
    return Pieces.of_tile(tile, [((x0, y0, x1, y1), score, 0, mask, (x0, y0))])


def merged(*pieces: Pieces) -> list[list[Pieces]]:
    return [[pieces[i] for i in group] for group in merge(Pieces.joined(pieces), TILES, SIZE)]


def test_of_two_whole_pieces_the_better_stays() -> None:
    worse, better = piece(0, 0.8, 70, 10, 90, 30), piece(1, 0.9, 70, 10, 90, 31)
    assert merged(worse, better) == [[better]]


def test_a_cut_piece_goes_beside_a_whole_one() -> None:
    cut, whole = piece(0, 0.9, 80, 10, 100, 30), piece(1, 0.7, 80, 10, 120, 30)
    assert merged(cut, whole) == [[whole]]


def test_cut_pieces_are_joined() -> None:
    left, right = piece(0, 0.9, 20, 10, 100, 30), piece(1, 0.7, 60, 10, 140, 30)
    assert merged(right, left) == [[left, right]]


def test_parts_that_seem_whole_are_joined_if_both_tiles_saw_the_same() -> None:
    # What hides the columns from 90 on ends the first piece before its tile does.
    left, right = piece(0, 0.9, 20, 10, 90, 30), piece(1, 0.7, 60, 10, 140, 30, hidden=(90, 110))
    assert merged(left, right) == [[left, right]]
    # Where 30 columns of 38 agree they are two.
    left, right = piece(0, 0.9, 20, 10, 90, 30), piece(1, 0.7, 60, 10, 140, 30, hidden=(98, 110))
    assert merged(left, right) == [[left], [right]]


def test_a_poor_opinion_joins_nothing() -> None:
    good, again = piece(0, 0.9, 70, 10, 90, 30), piece(1, 0.8, 70, 10, 90, 30)
    # Half of what both tiles saw of it is the object, but it goes on to its neighbour.
    poor = piece(0, 0.1, 40, 10, 90, 30)
    assert merged(good, again, poor) == [[good], [poor]]


def test_what_went_joins_nothing() -> None:
    whole, cut = piece(0, 0.9, 62, 10, 90, 30), piece(1, 0.8, 60, 10, 92, 30)
    assert merged(whole, cut) == [[whole]]
    poor = piece(0, 0.1, 30, 10, 100, 30)  # agrees with what went
    assert merged(whole, cut, poor) == [[whole], [poor]]
