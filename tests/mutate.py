"""Label files of every format, changed at random, which a reader must answer with a sound set or with one line.

    python -m tests.mutate --cases 10000 [READER ...]

says how many mutated sets of each format were read, refused, or failed; a failure is told with its seed, from
which `label_files` makes the very same files.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from tests.outcome import outcome_of
from tests.valid_sets import HEIGHT, READERS, WIDTH, Files, place, valid

LABELS = (".json", ".txt", ".yaml")  # and the pictures in folders of labels
_PAINTED = ("masks", "SegmentationObject", "SegmentationClass", "gtFine")

# What may stand where a number, a text, a list or an object is expected.
JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 1 << 31, 1 << 63, 10**400, 0.5, -0.0, 1e30, -1e30, 1e300, float("nan"),
    float("inf"), "", "0", "x", "1e999", "\ud800", "\0", "/etc/passwd", "../" * 9, "a" * 5000, [], {}, [0], [None],
    ["x"], [[]], [{}], [[1, 2]], [[1e30, 2], [3, 4], [5, 6]], {"x": 1}, {"size": [1 << 40, 1], "counts": "0"},
)  # fmt: skip
_WORDS = (
    b"null", b"1e30", b"-1e30", b"1e999", b"NaN", b"9" * 5000, b"[" * 3000, b'"\\ud800"', b"\0", b"\xff\xfe",
    b"\xef\xbb\xbf", b"\xfc", b"-", b"0.0", b"\n", b"\r", b"\x85", b"#", b":", b"- ", b"{", b"]", b'"',
)  # fmt: skip
# Names that an object's member may get
_NAMES = ("images", "regions", "shapes", "objects", "_via_img_metadata", "project", "metadata", "x")


def label_files(reader: str, seed: int) -> Files:
    """Make a small data set of the format `reader`, one of READERS, with one to three of its label files' parts
    changed.

    `seed` decides which, and how: `None` for a number, a list cut short, bytes in another encoding and so on.
    """
    rng = random.Random(f"{reader} {seed}")
    files = dict(valid(reader))
    names = sorted(name for name in files if _is_label(name))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(names)
        files[name] = changed(name, files[name], rng)
    return files


def read_all(folder: Path) -> int:
    """Count the objects of all parts of the data set in `folder`, after a look at each as training would.

    Raises:
        UserError: the data set is refused, as it may be.
        AssertionError: nonsense reached a sample.
    """
    from maskrcnn.data import find_data, read_data
    from maskrcnn.data.quality.check import check

    count, classes = 0, ()
    for source in find_data(folder):
        if source is None:
            continue
        data = read_data(source, classes)
        report = check(data)
        for line in report.lines():
            assert len(line.splitlines()) == 1, line
            assert len(line) <= 310, line
        data = report.usable()
        classes = data.class_names
        assert len(classes) < 1000
        for i in range(data.num_images):
            count += _look(data, i)
    return count


def _look(data: Any, i: int) -> int:
    """Count the objects of image i, after a look at each number that training would use."""
    truth = data.ground_truth(i)
    height, width = data.sizes[i].tolist()
    assert (height, width) == (HEIGHT, WIDTH), "only pictures of this size were written"
    boxes = truth.boxes.numpy()
    assert np.isfinite(boxes).all()
    assert (boxes >= 0).all()
    assert (boxes <= [WIDTH, HEIGHT] * 2).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert ((truth.labels >= 0) & (truth.labels < len(data.class_names))).all()
    bitmaps = truth.masks.to_bitmaps((height, width))
    assert bitmaps.shape == (len(boxes), height, width)
    assert len(truth.masks.filled()) == len(boxes)
    return len(boxes)


def outcome(reader: str, seed: int, folder: Path) -> str:
    """Read one mutated set: "read", "refused" (one line of at most 300 characters) or a failure's last lines."""
    place(label_files(reader, seed), folder)
    return outcome_of(lambda: read_all(folder))


def _is_label(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix in LABELS or any(folder in path.parts for folder in _PAINTED)


# --- how a file is changed


def changed(name: str, content: bytes, rng: random.Random) -> bytes:
    """Change a label file: a value of a JSON, a picture's mode or size, or bytes of any file."""
    if name.endswith(".png"):
        return _changed_picture(content, rng) if rng.random() < 0.5 else _changed_bytes(content, rng)
    if name.endswith(".json") and rng.random() < 0.8:
        try:
            tree = json.loads(content)
        except (ValueError, RecursionError):
            return _changed_bytes(content, rng)
        for _ in range(rng.choice((1, 1, 2, 4))):
            tree = _changed_tree(tree, rng)
        return json.dumps(tree).encode()
    return _changed_bytes(content, rng)


def _changed_tree(tree: Any, rng: random.Random) -> Any:
    """Change JSON: one of its values replaced, removed, doubled, wrapped or exchanged."""
    places: list[tuple[Any, Any]] = []  # (container, key)
    todo = [tree]
    while todo:
        node = todo.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        places += [(node, k) for k in keys]
        todo += [node[k] for k in keys]
    if not places or rng.random() < 0.02:
        return _junk(rng)
    # Deep and shallow places alike: most values of a label file are coordinates.
    holder = rng.choice(
        places if rng.random() < 0.5 else [p for p in places if not isinstance(p[0], list)] or places
    )
    node, key = holder
    match rng.randrange(6):
        case 0 | 1 | 2:
            node[key] = _junk(rng)
        case 3:
            del node[key]
        case 4:
            node[key] = [node[key]] if rng.random() < 0.5 else {"0": node[key]}
        case 5 if isinstance(node, dict):
            node[rng.choice(_NAMES)] = node.pop(key)
        case 5:
            node.insert(key, copy.deepcopy(node[key]))
    return tree


def _junk(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(JUNK))  # which may be changed in its turn


def _changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Change a file: bytes flipped, cut, put in or doubled, or in another encoding."""
    a, b = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    b = min(b, a + 40)
    match rng.randrange(8):
        case 0:
            return content[:a]
        case 1:
            return content[:a] + content[b:]
        case 2:
            return content[:a] + rng.choice(_WORDS) + content[rng.choice((a, b)) :]
        case 3:
            return content[:b] + content[a:b] * rng.choice((1, 50)) + content[b:]
        case 4:
            flipped = bytearray(content)
            for _ in range(min(len(content), rng.choice((1, 4, 30)))):
                flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case 5:
            text = content.decode("latin-1")
            return text.encode(rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32")))
        case 6:  # a number becomes another
            parts = content.split(b" ")
            parts[rng.randrange(len(parts))] = rng.choice(_WORDS)
            return b" ".join(parts)
    return rng.choice((b"", b"\n", b"{}", b"[]", b"null", b"0", bytes(100), rng.randbytes(300)))


def _changed_picture(content: bytes, rng: random.Random) -> bytes:
    """Change the label picture's mode, size or format."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            picture = picture.copy()
    except Exception:  # it is broken already
        return _changed_bytes(content, rng)
    match rng.randrange(6):
        case 0:
            picture = picture.resize((rng.choice((1, 7, WIDTH)), rng.choice((1, HEIGHT))))
        case 1:
            picture = picture.convert("RGB").convert(
                rng.choice(("1", "L", "RGB", "RGBA", "P", "CMYK", "F", "I"))
            )
        case 2:
            pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 1 << 16, (HEIGHT, WIDTH))
            picture = Image.fromarray(pixels.astype(rng.choice((np.uint8, np.uint16))))
        case 3:
            pixels = np.asarray(picture.convert("I")) - rng.choice((1, 1 << 30))
            picture = Image.fromarray(pixels.astype(np.int32))
        case 4:
            alpha = Image.new("L", picture.size)
            alpha.paste(rng.choice((1, 128, 255)), (5, 5, 20, 20))
            picture = picture.convert("RGB")
            picture.putalpha(alpha)
    written = io.BytesIO()
    for form in rng.sample(("PNG", "TIFF", "JPEG", "GIF"), 4):
        try:
            picture.save(written, form)
            break
        except (OSError, ValueError):  # a mode that this format has not
            written = io.BytesIO()
    return written.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(READERS)} (all)")
    parser.add_argument(
        "--cases", type=int, default=10_000, help="in all, shared out among the readers (10000)"
    )
    parser.add_argument("--first", type=int, default=0, help="seed to begin with (0)")
    args = parser.parse_args()
    readers, failed = args.readers or READERS, 0
    for reader in readers:
        began, counts = time.perf_counter(), Counter[str]()
        with tempfile.TemporaryDirectory() as temporary:
            for seed in range(args.first, args.first + max(1, args.cases // len(readers))):
                said = outcome(reader, seed, Path(temporary) / "set")
                counts[said if said in ("read", "refused") else "failed"] += 1
                if said not in ("read", "refused"):
                    print(f"  {reader} {seed}: {said}")
        failed += counts["failed"]
        told = ", ".join(f"{counts[word]} {word}" for word in ("read", "refused", "failed"))
        print(f"{reader}: {told} in {time.perf_counter() - began:.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
