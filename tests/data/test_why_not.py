"""Messages where no data set is found: they say why the file that was meant is none; a broken part is told."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from maskrcnn.data import find_data
from maskrcnn.errors import UserError
from tests.data.data_sets import write_set
from tests.data.label_files import picture, write_json, write_text

COCO = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": []}
CASES = {
    "cut.json": (json.dumps(COCO)[:20].encode(), "not valid JSON"),
    "noise.json": (b"\x80\x81\x82\x83", "not a JSON text file"),
    "results.json": (b'[{"image_id": 1, "score": 0.5}]', "got a list (a results file?)"),
    "packed.json": (gzip.compress(b"{}"), "is a gzip archive, to be unpacked first"),
    "table.csv": (b"image,x,y\n", "is of no known format (.csv;"),
    "empty.json": (b" \n", "is empty"),
    "settings.json": (
        b'{"epochs": 3}',
        "has epochs, but for COCO no images and no annotations and no categories",
    ),
    "half.json": (b'{"images": [], "categories": []}', "no annotations"),
    "odd.json": (b'{"images": [1], "annotations": [], "categories": []}', "its images are no objects"),
    "config.yaml": (b"lr: 0.1\n", "has not the names, train and val of a YOLO data set"),
}


@pytest.mark.parametrize("name", CASES)
def test_why_a_file_is_not_taken(tmp_path: Path, name: str) -> None:
    content, why = CASES[name]
    path = tmp_path / name
    path.write_bytes(content)
    for where in (tmp_path, path):
        with pytest.raises(UserError, match="no data set found") as caught:
            find_data(where)
        said = str(caught.value)
        assert why in said
        assert "\n" not in said
        assert len(said.replace(str(tmp_path), "")) <= 300


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a.json", json.dumps(COCO))
    with pytest.raises(UserError, match=r"set\.zip: is a zip archive, to be unpacked first"):
        find_data(tmp_path)


@pytest.mark.parametrize(
    "text", ["train:\n  epochs: 3\nnames: x\n", "train: fast\nnames: [a]\n", "names:\n- a\nval: 0.2\n"]
)
def test_another_programs_settings_do_not_hide_the_labels(tmp_path: Path, text: str) -> None:
    write_set(tmp_path, "coco")
    write_text(tmp_path / "config.yaml", text)
    found = find_data(tmp_path)
    assert found.train.format == "coco"
    assert found.val is not None


def test_a_broken_part_is_no_missing_part(tmp_path: Path) -> None:
    write_set(tmp_path, "coco")
    path = tmp_path / "annotations" / "train.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match=r"train\.json: not valid JSON"):
        find_data(tmp_path)  # not: the validation part for training
    path.write_text("")
    with pytest.raises(UserError, match=r"train\.json: expected a COCO JSON object"):
        find_data(tmp_path)


def test_other_coco_files_are_told_or_refused(tmp_path: Path) -> None:
    write_set(tmp_path, "coco")
    other = tmp_path / "annotations" / "more.json"
    other.write_bytes((tmp_path / "annotations" / "val.json").read_bytes())
    write_text(tmp_path / "annotations" / "broken.json", "{")
    notes = [text for _, text in find_data(tmp_path).train.notes]
    assert len(notes) == 2
    assert "more.json: a COCO JSON that says neither train nor val" in notes[0]
    assert "broken.json: not valid JSON" in notes[1]
    (tmp_path / "annotations" / "broken.json").rename(tmp_path / "annotations" / "val_old.json")
    write_json(tmp_path / "annotations" / "val_results.json", [{"image_id": 1, "score": 0.5}])
    write_text(tmp_path / "train_log.json", '{"step": 1}\n{"step": 2}\n')
    _, (_, told) = find_data(tmp_path).train.notes  # the logs and results of others are none of its parts
    assert "val_old.json: not valid JSON" in told
    other.rename(other.with_name("val_2.json"))
    with pytest.raises(
        UserError, match=r"expected one JSON with 'val' in its name, found .*val\.json.*val_2"
    ):
        find_data(tmp_path)


def test_reported_set(shared: Path) -> None:
    folder = shared / "cases" / "datasets" / "103-yolo-yml-hydra-config"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    assert find_data(folder).train.labels.name == "annotations.json"


def test_a_folder_of_pictures_is_no_data_set(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write_json(tmp_path / "sub" / "notes.json", {"by": "me"})
    with pytest.raises(UserError, match=r"no data set found: sub/notes\.json: has by, but for COCO"):
        find_data(tmp_path)
