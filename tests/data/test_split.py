"""Split of a validation part from the training data."""

from __future__ import annotations

from pathlib import Path

from maskrcnn.data import CocoData, find_data, read_data
from maskrcnn.data.split import split_off
from tests.data.label_files import picture, write_json


def labelled(folder: Path, names: list[str], empty: int = 0) -> CocoData:
    shape = {"label": "x", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"}
    for k, name in enumerate(names):
        picture(folder / f"{name}.png")
        write_json(folder / f"{name}.json", {"shapes": [shape] * (k >= empty), "imagePath": f"{name}.png"})
    return read_data(find_data(folder).train)


def files(data: CocoData) -> set[str]:
    return {data.file_name(i) for i in range(data.num_images)}


def test_whole_images_the_same_ones_every_time(tmp_path: Path) -> None:
    data = labelled(tmp_path, [f"{k:02d}" for k in range(20)], empty=5)
    rest, val = split_off(data, 0.2)
    assert (rest.num_images, val.num_images) == (16, 4)
    assert files(rest) | files(val) == files(data)
    assert not files(rest) & files(val)
    assert (val.num_objects == 1).all()
    assert files(split_off(data.subset(list(reversed(range(20)))), 0.2)[1]) == files(val)
    grown = labelled(tmp_path, [f"{k:02d}" for k in range(20)] + ["new"], empty=5)
    assert len(files(split_off(grown, 0.2)[1]) & files(val)) >= 3


def test_something_to_learn_from_is_left(tmp_path: Path) -> None:
    one = labelled(tmp_path / "one", ["a", "b"], empty=1)
    rest, val = split_off(one, 0.2)
    assert (rest.num_images, val.num_images) == (2, 0)
    two = labelled(tmp_path / "two", ["a", "b"])
    rest, val = split_off(two, 0.9)
    assert (rest.num_images, val.num_images) == (1, 1)
