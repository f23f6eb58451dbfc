"""Matching of image names in labels with files whose names tools and systems have changed.

Label Studio writes `images\\a.jpg`, `/data/upload/1/a.jpg` and `%20`; macOS takes letters with accents apart; cameras
write .JPG; some labels have no ending. A file stands for a name where it is the only one that fits it, and the name
the only one that it fits: two days' `im0.jpg` in one folder stand for neither.
"""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from maskrcnn.data.source import IMAGE_SUFFIXES, is_junk

_DEPTH = 2  # folders below the image folder that are looked into
_SAME = {".jpeg": ".jpg", ".tiff": ".tif"}
_COMPARED = 2000  # names among which the nearest is looked for
Parts = tuple[str, ...]  # a path's folders and its file name, in the form in which they are compared


def fitting(names: Sequence[str], folder: Path) -> dict[int, Path]:
    """The file that stands for each of `names` (by position) that is no file in `folder` itself.

    One's path has to end with the other's, but for capitals, / or \\, %20, accents as one character or two, .jpg
    or .jpeg, and an ending where the name has none.
    """
    there = {k: os.path.isfile(folder / name) for k, name in enumerate(names) if name}
    missing = [k for k, found in there.items() if not found]
    if not missing:
        return {}
    index = _index(folder)
    found = {k: fit for k in missing if (fit := _fit(names[k], index)) is not None}
    wanted = Counter(path for path, _ in {(path, names[k]) for k, path in found.items()})
    exact = {folder / names[k] for k, is_file in there.items() if is_file}
    return {k: path for k, path in found.items() if wanted[path] == 1 and path not in exact}


def folder_fitting(names: Sequence[str], candidates: Iterable[Path]) -> Path | None:
    """The candidate in which most of the names have a file that stands for them; None if not one has."""
    counts = {folder: len(fitting(names, folder)) for folder in dict.fromkeys(candidates) if folder.is_dir()}
    best = max(counts, key=counts.__getitem__, default=None)
    return best if best is not None and counts[best] else None


def near(name: str, folders: Iterable[Path]) -> str:
    """A sentence on the file whose name is nearest, with a space before it; empty if none is near."""
    files = [path for folder in dict.fromkeys(folders) if folder.is_dir() for path in _files(folder)]
    if not files:
        return ""
    last = forms[-1][-1] if (forms := _forms(name)) else ""  # "..", for one, has no form
    by_name = {_parts(path.name)[-1]: path for path in files[:_COMPARED]}
    same_stem = [path for key, path in by_name.items() if Path(key).stem == Path(last).stem]
    close = difflib.get_close_matches(last, by_name, n=1)
    path = same_stem[0] if same_stem else by_name[close[0]] if close else None
    return "" if path is None else f" Near is {path.name!r} in {path.parent}."


def _fit(name: str, index: Mapping[str, list[tuple[Parts, Path]]]) -> Path | None:
    """The one file that fits the name."""
    for parts in _forms(name):
        found = {path for own, path in index.get(parts[-1], ()) if _ends(parts, own)}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _ends(a: Parts, b: Parts) -> bool:
    """Compare two paths as far as the shorter goes; their last parts are known to fit."""
    count = min(len(a), len(b)) - 1
    return count == 0 or a[-1 - count : -1] == b[-1 - count : -1]


def _forms(name: str) -> list[Parts]:
    """The name as it is, and as the address that it may be."""
    address = name.split("?d=")[-1]  # Label Studio's files on its own disk
    return [p for p in dict.fromkeys(map(_parts, (name, unquote(address)))) if p]


def _parts(name: str) -> Parts:
    text = unicodedata.normalize("NFC", name).casefold().replace("\\", "/")
    parts = [p for p in text.split("/") if p not in ("", ".", "..")]
    if not parts:
        return ()
    stem, ending = os.path.splitext(parts[-1])
    return (*parts[:-1], stem + _SAME.get(ending, ending))


def _index(folder: Path) -> dict[str, list[tuple[Parts, Path]]]:
    """The images in and below a folder by their last part, with and without its ending."""
    index: dict[str, list[tuple[Parts, Path]]] = defaultdict(list)
    for path in _files(folder):
        parts = _parts(path.relative_to(folder).as_posix())
        index[parts[-1]].append((parts, path))
        index[os.path.splitext(parts[-1])[0]].append((parts, path))
    return index


def _files(folder: Path) -> list[Path]:
    found = []
    for where, folders, files in os.walk(folder):
        depth = len(Path(where).relative_to(folder).parts)
        folders[:] = [] if depth >= _DEPTH else sorted(f for f in folders if not is_junk(f))
        kept = (f for f in sorted(files) if f.lower().endswith(IMAGE_SUFFIXES) and not is_junk(f))
        found += [Path(where, f) for f in kept]
    return found
