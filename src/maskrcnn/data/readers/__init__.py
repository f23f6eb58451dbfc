"""Label formats: one file each, all with one interface, `Reader`.

| format | signs |
|---|---|
| coco | a JSON with images, annotations and categories |
| via | VGG Image Annotator's JSON, versions 1 to 3 |
| labelme | a LabelMe JSON for each image |
| yolo | a data.yaml, images/ and labels/ with one text file an image |
| voc | Pascal VOC's SegmentationObject/ and SegmentationClass/ |
| instances | a folder an image, with images/ and masks/ of one PNG an object (Data Science Bowl 2018) |
| cityscapes | *_instanceIds.png, or *_polygons.json |

A reader turns its files into the elements of a COCO JSON, so that one code fills the arrays
(`maskrcnn.data.coco_arrays`) and one code looks for defects: what a reader cannot make sense of, it hands on,
and the checks list it. Names of classes that have no numbers in their format become 1, 2, ... in `numbered`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from maskrcnn.data.readers import cityscapes, coco, instances, labelme, via, voc, yolo
from maskrcnn.data.source import Source

Element = tuple[str, Any]  # ("images" | "annotations" | "categories" | "classes", the element)


class Reader(Protocol):
    """Interface of the module of a label format.

    LOOKS_FOR: the signs of the format in a few words, for errors.
    find: the parts (by "train", "val", "test" or "") of the data set in a folder or file; {} if it is not of the
        format. `images` is the folder of the images, if given.
    files: all label files of a part: a change in one of them makes the cached arrays anew.
    read: the elements of the part.
    """

    @property
    def LOOKS_FOR(self) -> str: ...

    def find(self, path: Path, images: str | Path = "") -> dict[str, Source]: ...
    def files(self, source: Source) -> list[Path]: ...
    def read(self, source: Source) -> Iterator[Element]: ...


# In the order in which a folder is looked through: cheap and distinctive signs first.
FORMATS: dict[str, Reader] = {
    "yolo": yolo,
    "voc": voc,
    "via": via,
    "labelme": labelme,
    "coco": coco,
    "instances": instances,
    "cityscapes": cityscapes,
}


def numbered(elements: Iterable[Element]) -> Iterator[Element]:
    """Give a category_id to each annotation that has a `category`, a class name.

    The names are the ("classes", name) among the elements, else all that occur, sorted. A name that is none of
    them stays without a number, which the checks report.
    """
    held, names = [], []
    for member, element in elements:
        if member == "classes":
            names.append(element)
        elif member == "annotations":
            held.append(element)
        else:
            yield member, element
    by_name = [a for a in held if "category" in a]
    if by_name or names:
        names = names or sorted({a["category"] for a in by_name if a["category"]})
        number = {name: k for k, name in enumerate(names, start=1)}
        for a in by_name:
            a["category_id"] = number.get(a["category"])
        for name, k in number.items():
            yield "categories", {"id": k, "name": name}
    for a in held:
        yield "annotations", a
