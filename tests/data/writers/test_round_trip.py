"""What the writers write, our readers read: the same pictures, classes, objects and pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskrcnn.cli.main import main
from maskrcnn.data import CocoData, find_data, read_data
from maskrcnn.data.rewrite import rewrite
from maskrcnn.masks.rle import rle_decode, rle_encode
from tests.data.label_files import picture, write_json

H, W = 60, 80
CLASSES = ((1, "ant"), (7, "water bee"), (3, "ünter"))
NAMES = ("a b.png", "deep/ö.png", "empty.png")


def bitmaps() -> dict[str, np.ndarray]:
    """Masks that do not overlap: with a hole, in two parts, touching at a corner, a pixel, at the picture's edges."""
    masks = {name: np.zeros((H, W), bool) for name in ("hole", "parts", "corner", "pixel", "edges")}
    masks["hole"][5:25, 5:30] = True
    masks["hole"][10:20, 12:20] = False
    masks["parts"][2:9, 40:50] = masks["parts"][20:28, 45:60] = True
    masks["corner"][30:40, 10:20] = masks["corner"][40:50, 20:30] = True
    masks["pixel"][55, 3] = True
    masks["edges"][:, 70:] = True
    return masks


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    y, x = np.nonzero(mask)
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


@pytest.fixture
def source(tmp_path: Path) -> CocoData:
    """COCO set of three pictures: all the bitmaps, a polygon with a crowd, nothing."""
    images, annotations = [], []
    for k, name in enumerate(NAMES, start=1):
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(path, (H, W))
        images.append({"id": k, "file_name": name, "height": H, "width": W})

    def add(image: int, category: int, segmentation: Any, crowd: int = 0) -> None:
        entry = {"id": len(annotations) + 1, "image_id": image, "category_id": category, "iscrowd": crowd}
        x0, y0, x1, y1 = 10.5, 3, 40.25, 44.125
        if isinstance(segmentation, dict):
            x0, y0, x1, y1 = bounds(rle_decode(segmentation))
        box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": 1}
        annotations.append({**entry, **box, "segmentation": segmentation})

    for k, mask in enumerate(bitmaps().values()):
        add(1, CLASSES[k % 3][0], rle_encode(mask))
    add(2, 7, [[10.5, 3, 40.25, 5.5, 30, 44.125]])
    add(2, 1, rle_encode(bitmaps()["edges"]), crowd=1)
    categories = [{"id": i, "name": n} for i, n in CLASSES]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(tmp_path / "src" / "labels.json", content)
    from maskrcnn.data import checked

    return checked(read_data(find_data(tmp_path / "src").train))[0]


def objects(data: CocoData) -> dict[str, set[tuple[str, bytes]]]:
    """The class and the pixels of every object of each picture that has some, by the picture's name."""
    found = {}
    for i in range(data.num_images):
        truth = data.ground_truth(i)
        masks = [] if truth.masks is None else np.asarray(truth.masks.to_bitmaps((H, W))) > 0
        labels = [data.class_names[k] for k in truth.labels.tolist()]
        found[Path(data.file_name(i)).stem] = {
            (label, np.packbits(mask).tobytes()) for label, mask in zip(labels, masks, strict=True)
        }
    return {name: what for name, what in found.items() if what}


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("to", ["coco", "yolo", "labelme", "voc"])
def test_a_set_reads_back_the_same(source: CocoData, tmp_path: Path, to: str, link: bool) -> None:
    done = rewrite({"train": [source]}, tmp_path / "out", to, link=link)
    assert done.num_images == {"train": 3}
    assert done.num_objects == {"train": 7}
    again = read_data(find_data(tmp_path / "out", format=to).train)
    assert set(again.class_names) == {name for _, name in CLASSES}
    wanted = objects(source)
    if to == "voc":  # whose lists of names know neither spaces nor folders
        wanted = {{"a b": "a_b", "ö": "deep_ö"}[name]: what for name, what in wanted.items()}
    assert objects(again) == wanted
    paths = [again.image_path(i) for i in range(again.num_images)]
    assert all(path.is_file() and path.is_symlink() == link for path in paths)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_coco_keeps_crowds_ids_empty_pictures_and_polygons(source: CocoData, tmp_path: Path) -> None:
    rewrite({"train": [source]}, tmp_path / "out", "coco")
    content = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    assert {(c["id"], c["name"]) for c in content["categories"]} == set(CLASSES)
    assert [i["file_name"] for i in content["images"]] == list(NAMES)
    assert [a["iscrowd"] for a in content["annotations"]] == [0] * 6 + [1]
    assert content["annotations"][5]["segmentation"] == [[10.5, 3, 40.25, 5.5, 30, 44.125]]
    assert content["annotations"][0]["area"] == bitmaps()["hole"].sum()


def test_a_tolerance_makes_outlines_short_and_moves_them_by_no_more(tmp_path: Path, source: CocoData) -> None:
    y, x = np.mgrid[:H, :W] + 0.5
    disc = (x - 40) ** 2 + (y - 30) ** 2 < 25**2
    write_json(
        tmp_path / "src" / "labels.json",
        {
            "images": [{"id": 1, "file_name": NAMES[0], "height": H, "width": W}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [15, 5, 50, 50], "area": 1}
                | {"segmentation": rle_encode(disc)}
            ],
            "categories": [{"id": 1, "name": "disc"}],
        },
    )
    arguments = ["data", "convert", str(tmp_path / "src"), "--to", "labelme", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--tolerance", "1"]) == 0
    content = json.loads((tmp_path / "out" / "train" / "a b.json").read_text())
    points = np.array(content["shapes"][0]["points"])
    assert 8 <= len(points) <= 40
    assert np.abs(np.hypot(*(points - [40, 30]).T) - 25).max() <= 1.5
    assert content["imagePath"] == "a b.png"
    assert (content["imageHeight"], content["imageWidth"]) == (H, W)


def test_sets_are_merged_by_the_names_of_their_classes(source: CocoData, tmp_path: Path) -> None:
    other = tmp_path / "other"
    picture(other / "a b.png", (H, W))
    square = {"label": "wasp", "points": [[5, 5], [20, 5], [20, 20], [5, 20]], "shape_type": "polygon"}
    write_json(other / "a b.json", {"shapes": [square, {**square, "label": "ant"}], "imagePath": "a b.png"})
    out = tmp_path / "out"
    assert main(["data", "merge", str(tmp_path / "src"), str(other), "--out", str(out)]) == 0
    merged = read_data(find_data(out).train)
    assert dict(zip(merged.class_names, merged.category_ids, strict=True)) == {
        "ant": 1,
        "ünter": 3,
        "water bee": 7,
        "wasp": 2,
    }
    assert [merged.file_name(i) for i in range(merged.num_images)] == [*NAMES, "a b-2.png"]
    assert [label for label, _ in sorted(objects(merged)["a b-2"])] == ["ant", "wasp"]
    assert main(["data", "merge", str(tmp_path / "src"), str(other), "--out", str(out)]) == 0  # its own


def test_what_cannot_be_is_refused_in_one_line(
    source: CocoData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src, out = str(tmp_path / "src"), str(tmp_path / "out")
    for arguments, said in (
        (["convert", src, "--out", out], "data convert: expected --to, one of coco, yolo"),
        (["convert", src, src, "--to", "coco", "--out", out], "expected one data set, got 2"),
        (["merge", src, "--out", out], "expected two data sets or more, got 1"),
        (["split", src, "--out", out, "--share", "1"], "--share: expected more than 0 and less than 1"),
        (["convert", src, "--to", "yolo", "--out", src], "expected a new or empty folder"),
        (["convert", src, "--to", "png", "--out", out], "argument --to: invalid choice: 'png'"),
    ):
        assert main(["data", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not Path(out).exists()


def test_nothing_is_left_where_writing_fails(source: CocoData, tmp_path: Path) -> None:
    source.image_path(1).unlink()
    with pytest.raises(Exception, match=r"ö\.png"):
        rewrite({"train": [source]}, tmp_path / "out", "coco")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["src"]
