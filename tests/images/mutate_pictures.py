"""Damaged picture files, made from whole ones with a seed, and counts of the reader's answers to them.

    python -m tests.images.mutate_pictures --count 10000              any damage: nothing but UserError is raised
    python -m tests.images.mutate_pictures --damage --photos FOLDER   files cut or ended in zeros: how many are noticed

`photos` are any pictures; without, two that are made here. Both print a table and leave with status 1 where
something but a `UserError` was raised.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from maskrcnn.errors import UserError
from maskrcnn.images.read import read_image
from maskrcnn.memory import forget_peak, peak_mib

# The formats people have pictures in, with several forms of each.
FORMS = {
    "jpg": ("JPEG", {"quality": 90}),
    "progressive.jpg": ("JPEG", {"quality": 90, "progressive": True}),
    "restart.jpg": ("JPEG", {"quality": 90, "restart_marker_blocks": 4}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tif": ("TIFF", {}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate.tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
}


def made_pictures() -> list[Image.Image]:
    """Make a noisy picture and a smooth one with a flat lower half, 96 x 128 pixels."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    smooth = np.add.outer(np.arange(96), np.arange(128))[..., None] + np.array([0, 20, 30])
    smooth[48:] = 200
    return [Image.fromarray(noise), Image.fromarray(smooth.astype(np.uint8))]


def encoded(picture: Image.Image, form: str) -> bytes:
    """Encode the picture in one of FORMS: the bytes of its file."""
    format, options = FORMS[form]
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) // 10, len(data) * 19 // 20)]


def cut_and_closed(data: bytes, rng: random.Random) -> bytes:
    """Cut a JPEG file within its coded pixels, with an end of image behind."""
    return data[: rng.randrange(data.index(b"\xff\xda") + 20, len(data) * 19 // 20)] + b"\xff\xd9"


def ended_in_zeros(data: bytes, rng: random.Random) -> bytes:
    """Zero the end of a file, as if its last part never reached the disk."""
    kept = rng.randrange(len(data) // 10, len(data) * 19 // 20)
    return data[:kept] + bytes(len(data) - kept)


def flipped(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def flipped_head(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 2, 4))):
        out[rng.randrange(min(len(out), 200))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    return bytes(out)


def numbers_changed(data: bytes, rng: random.Random) -> bytes:
    """Replace two or four bytes of the head, where sizes and counts are, by a large or an odd number."""
    place, size = rng.randrange(4, min(len(data), 300) - 4), rng.choice((2, 4))
    number = rng.choice((0, 1, 2**15, 2 ** (8 * size - 1) - 1, 2 ** (8 * size) - 1))
    return data[:place] + number.to_bytes(size, rng.choice(("big", "little"))) + data[place + size :]


def spliced(data: bytes, rng: random.Random) -> bytes:
    """Leave out or double a part of the file, or replace it by noise."""
    a, b = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    middle = rng.choice((b"", data[a:b] * 2, rng.randbytes(min(b - a, 500))))
    return data[:a] + middle + data[b:]


MUTATIONS = (cut, ended_in_zeros, flipped, flipped_head, numbers_changed, spliced)


def mutated(photos: list[Image.Image], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield names and bytes of `count` damaged files, of every form and mutation in turn."""
    rng = random.Random(seed)
    whole: dict[tuple[str, int], bytes] = {}
    for number in range(count):
        form = list(FORMS)[number % len(FORMS)]
        mutation = MUTATIONS[number // len(FORMS) % len(MUTATIONS)]
        key = (form, rng.randrange(len(photos)))
        if key not in whole:
            whole[key] = encoded(photos[key[1]], form)
        yield f"{number:05}-{mutation.__name__}.{form}", mutation(whole[key], rng)


def outcome(path: Path) -> str:
    """Read one file: `read`, `refused`, or the exception that should not be."""
    try:
        picture = read_image(path)
    except UserError as e:
        message = str(e)
        return "refused" if "\n" not in message and len(message) <= 300 else f"message of {len(message)}"
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return "read" if picture.dtype == np.uint8 and picture.ndim == 3 else f"{picture.dtype} {picture.shape}"


def count_mutated(photos: list[Image.Image], count: int, seed: int, folder: Path) -> dict[str, Counter[str]]:
    """Count each `outcome` by form."""
    table: dict[str, Counter[str]] = {form: Counter() for form in FORMS}
    for name, data in mutated(photos, count, seed):
        path = folder / name
        path.write_bytes(data)
        said = outcome(path)
        if said not in ("read", "refused"):
            print(f"{name}: {said}", file=sys.stderr)
        else:
            path.unlink()
        table[name.split(".", 1)[1]][said] += 1
    return table


def count_noticed(photos: list[Image.Image], each: int, seed: int, folder: Path) -> dict[str, Counter[str]]:
    """Count each `outcome` by form and kind of missing end, `each` times a photo."""
    rng = random.Random(seed)
    table: dict[str, Counter[str]] = {}
    for form in FORMS:
        closed = (cut_and_closed,) if "jpg" in form else ()
        for damage in (cut, ended_in_zeros, *closed):
            counts = table.setdefault(f"{form}: {damage.__name__}", Counter())
            for photo in photos:
                data = encoded(photo, form)
                for _ in range(each):
                    path = folder / f"a.{form}"
                    path.write_bytes(damage(data, rng))
                    counts[outcome(path)] += 1
    return table


def main() -> int:
    import tempfile

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200, help="mutated files (200)")
    parser.add_argument(
        "--damage", action="store_true", help="count what is noticed of files without their end"
    )
    parser.add_argument(
        "--each", type=int, default=10, help="with --damage: files a photo, form and damage (10)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photos", type=Path, help="folder of JPEG and PNG files to begin with")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of Pillow, about tags
    photos = made_pictures()
    if args.photos:
        files = sorted(p for p in args.photos.iterdir() if p.suffix in (".jpg", ".png"))
        photos = [Image.fromarray(read_image(p)) for p in files]
    np.asarray(photos[0].resize((99, 99)))  # what is imported then is no picture's memory
    forget_peak()
    before, started = peak_mib() or 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if args.damage:
            table = count_noticed(photos, args.each, args.seed, Path(folder))
        else:
            table = count_mutated(photos, args.count, args.seed, Path(folder))
    for name, counts in table.items():
        print(f"{name:32}" + "  ".join(f"{said} {n}" for said, n in sorted(counts.items())))
    print(f"{time.perf_counter() - started:.1f} s; memory grew by {(peak_mib() or 0) - before:.0f} MiB")
    return int(any(said not in ("read", "refused") for counts in table.values() for said in counts))


if __name__ == "__main__":
    sys.exit(main())
