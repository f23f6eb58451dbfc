"""Whatever is in the label files of a format, the answer is a set that can be learnt from, or one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutate import label_files, outcome, read_all
from tests.valid_sets import READERS, place, valid

CASES = 60  # of each format here; `python -m tests.mutate --cases 10000` tries more


@pytest.mark.parametrize("reader", READERS)
def test_mutated_label_files_are_read_or_refused(reader: str, tmp_path: Path) -> None:
    place(valid(reader), tmp_path / "set")
    assert read_all(tmp_path / "set") > 2
    said = [outcome(reader, seed, tmp_path / "set") for seed in range(CASES)]
    assert {seed: s for seed, s in enumerate(said) if s not in ("read", "refused")} == {}
    assert min(said.count("read"), said.count("refused")) > CASES / 20  # it is neither deaf nor blind


@pytest.mark.parametrize("reader", READERS)
def test_a_seed_makes_the_same_files_again_and_changes_a_label_file(reader: str) -> None:
    first, again = label_files(reader, 7), label_files(reader, 7)
    assert first == again
    assert first.keys() == valid(reader).keys()
    assert first != valid(reader)
