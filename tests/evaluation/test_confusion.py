"""Confusion matrix: each object goes with one detection, what overlaps most first, whatever its class."""

from __future__ import annotations

import numpy as np

from maskrcnn.evaluation.confusion import confusion_matrix
from tests.evaluation.small import pairs_of

A, B, C = (0, 0, 10, 10), (20, 0, 10, 10), (40, 0, 10, 10)
CAT, DOG = 1, 2


def test_by_hand() -> None:
    objects = [(1, CAT, A), (1, CAT, B), (1, DOG, C), (2, DOG, A)]
    found = [
        (1, CAT, 0.9, A),
        (1, DOG, 0.95, (0, 0, 10, 6)),  # overlaps cat A too, but less: no object
        (1, DOG, 0.6, B),  # a cat found as a dog
        (1, DOG, 0.4, C),  # below the threshold: missed
        (1, CAT, 0.7, (0, 40, 9, 9)),  # no object
        (2, DOG, 0.5, A),
    ]
    confusion = confusion_matrix(pairs_of(objects, found, num_images=2), np.array([0.5, 0.5]))
    assert confusion.counts.tolist() == [[1, 1, 0], [0, 1, 1], [1, 1, 0]]
    assert confusion.worst(5) == [(0, 1, 1)]


def test_each_class_has_its_own_threshold() -> None:
    found = [(1, CAT, 0.4, A), (1, DOG, 0.4, C)]
    confusion = confusion_matrix(pairs_of([(1, CAT, A), (1, DOG, C)], found), np.array([0.3, 0.5]))
    assert confusion.counts.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_what_lies_in_a_crowd_of_its_class_does_not_count() -> None:
    found = [(1, CAT, 0.9, (1, 1, 5, 5)), (1, DOG, 0.9, (1, 1, 5, 5))]
    confusion = confusion_matrix(pairs_of([(1, CAT, A)], found, crowds=[0]), np.array([0.5, 0.5]))
    assert confusion.counts.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
