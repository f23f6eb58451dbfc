"""Data sets written anew: in another format, divided, or several as one, with their pictures."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from maskrcnn.data.coco import CocoData
from maskrcnn.data.export import read_object
from maskrcnn.data.split import stratified
from maskrcnn.data.writers import WRITERS, Job, LabelledObject, LabelledPicture, Writer
from maskrcnn.errors import UserError
from maskrcnn.files import as_user_error, atomic_folder

MARK = "maskrcnn-data.txt"  # in a folder that was written here, and may be written anew
_AHEAD = 64  # pictures that are encoded and copied side by side
_BY_STEM = ("yolo", "labelme", "voc", "cvat")  # formats that know a picture by its name without its ending


@dataclass(slots=True)
class Rewritten:
    """Counts of a data set that was written: per part, and names that had to change."""

    num_images: dict[str, int]
    num_objects: dict[str, int]
    renamed: list[tuple[str, str]]


def rewrite(
    parts: Mapping[str, Sequence[CocoData]],
    out: Path,
    to: str,
    *,
    link: bool = False,
    tolerance: float = 0.0,
    progress: Callable[[int, int], object] | None = None,
) -> Rewritten:
    """Write a data set, all of it or nothing: labels in the format `to` of `WRITERS`, and its pictures.

    parts: sets that make "train", "val" and so on; each without defects (`data.checked`). Classes of several sets are
    one where their names are. A picture's name that is taken gets a number.
    link: pictures become symbolic links to where they are, in place of copies. tolerance: see `LabelledObject.parts`.

    Raises:
        UserError: an unknown format, sets with other key points, `out` is a folder of other things, or it cannot be
            written.
    """
    writer = WRITERS[to]
    sets = [data for of_part in parts.values() for data in of_part]
    job = _job(out, sets, tolerance)
    total = sum(len(data) for data in sets)
    done = Rewritten({}, {}, [])
    with atomic_folder(out, MARK) as folder:
        job = replace(job, out=folder)
        taken: set[str] = set()
        for part, of_part in parts.items():
            if to != "voc":  # whose pictures lie in one folder
                taken = set()
            its = replace(job, part=part)
            done.num_images[part] = done.num_objects[part] = 0
            with writer.writing(its) as add:
                for picture, labels in _encoded(writer, to, its, of_part, link, taken, done.renamed):
                    add(picture, labels)
                    done.num_images[part] += 1
                    done.num_objects[part] += len(picture.objects)
                    if progress:
                        progress(sum(done.num_images.values()), total)
        writer.finish(job, tuple(parts))
        (folder / MARK).write_text(f"A data set in the format {to}, written by maskrcnn.\n")
    return done


def divided_anew(sets: Sequence[CocoData], share: float) -> dict[str, list[CocoData]]:
    """Divide sets into "train", with `share` of the pictures, and "val", with the classes in both: see `stratified`."""
    names, ids = _classes(sets)
    place = {name: k for k, name in enumerate(names)}
    classes = np.zeros((sum(map(len, sets)), len(ids)), bool)
    files: list[str] = []
    for data in sets:
        labels = np.array([place[name] for name in data.class_names])
        for i in range(len(data)):
            classes[len(files), labels[data.arrays["labels"][data.annotations(i)]]] = True
            files.append(data.file_name(i))
    train = stratified(classes, share, files)
    ends = np.cumsum([len(data) for data in sets])[:-1]
    halves = [(data, chosen) for data, chosen in zip(sets, np.split(train, ends), strict=True)]
    return {
        "train": [data.subset(np.flatnonzero(chosen)) for data, chosen in halves],
        "val": [data.subset(np.flatnonzero(~chosen)) for data, chosen in halves],
    }


def labelled(data: CocoData, i: int) -> LabelledPicture:
    """Picture i of a set with its objects and crowds; labels are the set's."""
    a = data.arrays
    index = np.sort(np.concatenate([data.annotations(i), data.annotations(i, crowd=True)]))
    objects = []
    for j in index.tolist():
        box, mask, points = read_object(data, j)
        objects.append(LabelledObject(int(a["labels"][j]), box, mask, None, bool(a["crowd"][j]), points))
    height, width = data.sizes[i].tolist()
    return LabelledPicture(data.image_path(i), data.file_name(i), (height, width), objects)


def _job(out: Path, sets: Sequence[CocoData], tolerance: float) -> Job:
    names, ids = _classes(sets)
    with_points = [data for data in sets if data.num_keypoints]
    kinds = {(data.num_keypoints, data.keypoint_names) for data in with_points}
    if len(kinds) > 1:
        counts = " and ".join(str(count) for count, _ in sorted(kinds))
        raise UserError(
            f"{out}: expected sets with the same key points, got {counts} an object. Keep them apart."
        )
    some = with_points[0] if with_points else None
    return Job(
        out,
        names,
        ids,
        "",
        tolerance,
        some.keypoint_names if some else (),
        some.skeleton if some else (),
    )


def _classes(sets: Sequence[CocoData]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names of all sets' classes, each once, and their ids: the first set's, and the next free ones."""
    ids: dict[str, int] = {}
    for data in sets:
        for name, number in zip(data.class_names, data.category_ids, strict=True):
            if name not in ids:
                free = max(ids.values(), default=0) + 1
                ids[name] = free if number in ids.values() else number
    return tuple(ids), tuple(ids.values())


def _encoded(
    writer: Writer,
    to: str,
    job: Job,
    sets: Sequence[CocoData],
    link: bool,
    taken: set[str],
    renamed: list[tuple[str, str]],
) -> Iterator[tuple[LabelledPicture, Any]]:
    """Put a part's pictures in their place and encode their labels, in order; in threads."""
    folder = job.out / writer.PICTURES.format(part=job.part)
    place = {name: k for k, name in enumerate(job.class_names)}

    def work(data: CocoData, i: int, name: str) -> tuple[LabelledPicture, Any]:
        picture = labelled(data, i)
        for o in picture.objects:
            o.label = place[data.class_names[o.label]]
        target = folder / name
        with as_user_error(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if link:
                target.symlink_to(os.path.realpath(picture.path))
            else:
                shutil.copyfile(picture.path, target)
        picture.path, picture.name = target, name
        return picture, writer.encode(picture, job)

    jobs = []
    for data in sets:
        for i in range(len(data)):
            name = _safe(data.file_name(i), data.image_path(i))
            if to == "voc":  # whose lists of names know neither folders nor spaces
                name = re.sub(r"[\s/\\]+", "_", name)
            free = _free(name, taken, to in _BY_STEM)
            if free != name:
                renamed.append((name, free))
            jobs.append((data, i, free))
    with ThreadPoolExecutor(4, thread_name_prefix="maskrcnn-rewrite") as pool:
        for first in range(0, len(jobs), _AHEAD):
            yield from pool.map(lambda j: work(*j), jobs[first : first + _AHEAD])


def _safe(name: str, path: Path) -> str:
    """The picture's name below a folder, with the ending of its file; none of another place."""
    given = PurePath(name)
    if given.is_absolute() or ".." in given.parts:
        given = PurePath(given.name)
    return str(given if given.suffix == path.suffix else given.with_name(path.name))


def _free(name: str, taken: set[str], by_stem: bool) -> str:
    """The name, or one with a number where it is taken, also by one in other letters' case."""
    path = PurePath(name)
    candidate, number = path, 1
    while (key := str(candidate.with_suffix("") if by_stem else candidate).lower()) in taken:
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    taken.add(key)
    return str(candidate)
