"""Bootstrap: a draw's AP is that of a data set with the drawn pictures, and pairing narrows the interval."""

from __future__ import annotations

import numpy as np
import pytest

from maskrcnn.evaluation.bootstrap import draw_pictures, interval, mean_aps
from maskrcnn.evaluation.pairs import IOUS, Pairs
from maskrcnn.evaluation.ranking import Ranking, mean_ap, rank
from tests.evaluation.small import Box, pairs_of

P = 12


def some_pairs(seed: int, worse: int = 0, pictures: list[int] | None = None) -> Pairs:
    """Pairs of pictures 1 to P, or of those named, again and again if named so, of one random case."""
    rng = np.random.default_rng(seed)
    objects: dict[int, list[tuple[int, Box]]] = {}
    found: dict[int, list[tuple[int, float, Box]]] = {}
    for image in range(1, P + 1):
        objects[image], found[image] = [], []
        for _ in range(rng.integers(0, 4)):
            x, y, label = int(rng.integers(0, 60)), int(rng.integers(0, 40)), int(rng.integers(1, 3))
            objects[image].append((label, (x, y, 12, 12)))
            moved = (x + int(rng.integers(0, 4)) + worse, y, 12, 12)
            if rng.random() < 0.8:
                found[image].append((label, float(rng.random()), moved))
        found[image].append((1, float(rng.random()) / 2, (5, 45, 9, 9)))
    chosen = pictures or list(range(1, P + 1))
    return pairs_of(
        [(n, *o) for n, image in enumerate(chosen, start=1) for o in objects[image]],
        [(n, *f) for n, image in enumerate(chosen, start=1) for f in found[image]],
        num_images=len(chosen),
    )


def ranked(pairs: Pairs) -> list[Ranking]:
    return rank(pairs, [p.match(IOUS) for p in pairs.pictures])


def test_a_draw_is_a_data_set_with_its_pictures() -> None:
    pairs = some_pairs(0)
    draws = draw_pictures(P, 5, seed=3)
    assert (draws.sum(1) == P).all()
    drawn = mean_aps(pairs, ranked(pairs), draws)
    for weights, aps in zip(draws, drawn, strict=True):
        chosen = [i + 1 for i, times in enumerate(weights) for _ in range(times)]
        assert aps == pytest.approx(mean_ap(ranked(some_pairs(0, pictures=chosen))))
    once = mean_aps(pairs, ranked(pairs), np.ones((1, P), int))
    assert once[0] == pytest.approx(mean_ap(ranked(pairs)))


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    a, b = some_pairs(1), some_pairs(1, worse=2)
    draws = draw_pictures(P, 300)
    of_a, of_b = (mean_aps(p, ranked(p), draws).mean(1) for p in (a, b))
    paired = interval(0.1, of_a - of_b)
    unpaired = interval(0.1, of_a - np.roll(of_b, 1))
    assert paired.high - paired.low < 0.8 * (unpaired.high - unpaired.low)
    assert paired.low > 0
    assert paired.above == 1
    same = interval(0.0, of_a - of_a)
    assert (same.low, same.high, same.above) == (0, 0, 0)


def test_draws_are_the_same_every_time() -> None:
    assert (draw_pictures(7) == draw_pictures(7)).all()


def test_an_interval_leaves_out_what_is_no_number() -> None:
    found = interval(0.5, np.array([np.nan, *np.linspace(0, 1, 101)]))
    assert (found.low, found.high) == pytest.approx((0.025, 0.975))
    assert interval(0.5, np.full(3, np.nan)).low == 0.5
