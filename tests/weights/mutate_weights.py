"""Weight files of every kind, and damaged copies of them: by chance, and where it hurts (lengths, shapes, the
config).
"""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from maskrcnn import zoo
from maskrcnn.config import to_json
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.weights.load import load_weights, read_weights
from maskrcnn.weights.names.detectron2 import to_detectron2
from tests.outcome import outcome_of

MODEL = "mask_rcnn_R_50_FPN_3x"
BACKBONE = "mask_rcnn_deit_tiny_fpn_3x_coco"
KINDS = (".pkl", ".pth", "legacy .pth", ".safetensors", ".npz")
NUMBERS = (0, -1, 1, 2, 7, 1000, 10**5, 10**7, 10**8, 2**31, 2**63, 1e30, -0.5, True, None, "1", [], {})
OPERATIONS = bytes(range(0x28, 0x99))


@cache
def originals() -> dict[str, bytes]:
    """Make a whole file of each kind, as its writer writes it, of a tiny model."""
    torch.manual_seed(0)
    model = zoo.build(MODEL, 3, tiny=True)
    theirs = {to_detectron2(k): v for k, v in model.state_dict().items()}
    arrays = {k: v.numpy() for k, v in theirs.items() if k is not None}
    content = {"model": {k: torch.from_numpy(v) for k, v in arrays.items()}, "iteration": 7}
    return {
        ".pkl": pickle.dumps({"model": arrays, "__author__": "someone"}, 2),
        ".pth": _saved(content, zipped=True),
        "legacy .pth": _saved(content, zipped=False),
        ".safetensors": save(dict(model.state_dict()), {"config": to_json(model.config)}),
        ".npz": _npz(_jax()),
    }


def damaged(kind: str, content: bytes, seed: int) -> bytes:
    """Damage the file by one or two changes that follow from `seed`."""
    rng = random.Random(f"{kind} {seed}")
    special: dict[str, list[Callable[[bytes, random.Random], bytes]]] = {
        ".pkl": [_other_operation, _other_length],
        ".pth": [_other_entry, _other_index],
        "legacy .pth": [_other_operation, _other_length],
        ".safetensors": [_other_setting, _other_header],
        ".npz": [_other_entry, _other_array_header],
    }
    for _ in range(rng.choice((1, 1, 1, 2))):
        change = rng.choice([_cut, _flipped, _overwritten, _moved, *3 * special[kind]])
        try:
            content = change(content, rng)
        except Exception:  # the change before made it no such file
            content = _flipped(content, rng)
    return content


def use(path: Path) -> None:
    """Do with a weight file what a user does: rebuild its model, or fill one.

    Raises:
        UserError: the file is refused, as it may be.
    """
    file = read_weights(path)
    if file.config is not None:
        zoo.restore(path)
    elif file.kind == "backbone":
        load_weights(_model(BACKBONE), file)
    else:
        load_weights(_model(MODEL), file, new_head=True)


def outcome(kind: str, seed: int, folder: Path) -> str:
    """Read one damaged file: "read", "refused" (one line of at most 300 characters) or what went wrong."""
    path = folder / "weights"
    path.write_bytes(damaged(kind, originals()[kind], seed))
    return outcome_of(lambda: use(path))


@cache
def _model(name: str) -> MaskRCNN:
    return zoo.build(name, 3, tiny=True)


def _saved(content: Any, *, zipped: bool) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)  # pyright: ignore[reportArgumentType]
    return out.getvalue()


def _jax() -> dict[str, np.ndarray]:
    """Make a Vision Transformer of two heads and eight blocks as AugReg's files have it."""
    rng = np.random.default_rng(0)
    dim, hidden = 32, 128
    shapes = {
        "embedding/kernel": (16, 16, 3, dim),
        "embedding/bias": (dim,),
        "Transformer/posembed_input/pos_embedding": (1, 17, dim),
    }
    for block in range(8):
        at = f"Transformer/encoderblock_{block}/"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{at}{norm}/scale": (dim,), f"{at}{norm}/bias": (dim,)}
        attention = f"{at}MultiHeadDotProductAttention_1/"
        for part in ("query", "key", "value"):
            shapes |= {
                f"{attention}{part}/kernel": (dim, 2, dim // 2),
                f"{attention}{part}/bias": (2, dim // 2),
            }
        shapes |= {f"{attention}out/kernel": (2, dim // 2, dim), f"{attention}out/bias": (dim,)}
        for k, (a, b) in enumerate(((dim, hidden), (hidden, dim))):
            shapes |= {f"{at}MlpBlock_3/Dense_{k}/kernel": (a, b), f"{at}MlpBlock_3/Dense_{k}/bias": (b,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


# --- changes that know nothing of the format


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 4, 64))):
        changed[_place(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwritten(content: bytes, rng: random.Random) -> bytes:
    at, length = _place(content, rng), rng.choice((1, 4, 8, 500))
    new = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length), b"9" * length))
    return content[:at] + new + content[at + length :]


def _moved(content: bytes, rng: random.Random) -> bytes:
    """Drop or repeat a piece of the file."""
    at, length = _place(content, rng), rng.choice((1, 8, 200))
    piece = content[at : at + length]
    return content[:at] + rng.choice((b"", 2 * piece, 50 * piece)) + content[at + length :]


def _place(content: bytes, rng: random.Random) -> int:
    """Draw a place in the file, more often near the ends, where headers and tables are."""
    near = min(len(content), 4000)
    return rng.choice(
        (rng.randrange(len(content)), rng.randrange(near), len(content) - 1 - rng.randrange(near))
    )


# --- changes of one format


def _other_operation(content: bytes, rng: random.Random) -> bytes:
    """Insert or replace an operation of a pickle."""
    at = _place(content, rng)
    return (
        content[:at]
        + bytes(rng.choices(OPERATIONS, k=rng.choice((1, 2, 9))))
        + content[at + rng.randrange(2) :]
    )


def _other_length(content: bytes, rng: random.Random) -> bytes:
    """Replace a small number of four bytes by another."""
    found = re.compile(rb"[^\0].\0\0", re.DOTALL).search(content, _place(content, rng))
    if found is None:
        raise ValueError("no such number behind that place")
    at = found.start()
    return (
        content[:at] + struct.pack("<I", rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 10**8))) + content[at + 4 :]
    )


def _entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression, compresslevel=1) as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)
    return out.getvalue()


def _other_entry(content: bytes, rng: random.Random) -> bytes:
    """Rewrite a zip file, whole, with one of its entries longer, shorter, empty, zeros, of another name or gone."""
    entries = _entries(content)
    name = rng.choice(list(entries))
    entry = entries.pop(name)
    match rng.randrange(6):
        case 0:
            entries[name] = entry + b"\0" * rng.choice((1, 4, 10**6))
        case 1:
            entries[name] = entry[: rng.randrange(len(entry) + 1)]
        case 2:
            entries[name] = bytes(len(entry))
        case 3:
            entries[rng.choice(("../../x", "x\n\x1b[2J", "é" * 300, "data.pkl", name + "/"))] = entry
        case 4:
            entries[name] = _flipped(entry or b"\0", rng)
    return _zipped(entries, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def _other_index(content: bytes, rng: random.Random) -> bytes:
    """Rewrite a zip file of torch.save, whole, with another pickle in it."""
    entries = _entries(content)
    name = next(name for name in entries if name.endswith("data.pkl"))
    for _ in range(rng.choice((1, 3))):
        change = rng.choice((_other_operation, _other_length, _flipped, _moved))
        entries[name] = change(entries[name], rng)
    return _zipped(entries)


def _other_array_header(content: bytes, rng: random.Random) -> bytes:
    """Rewrite an .npz, whole, with another shape or type in the header of one of its arrays."""
    entries = _entries(content)
    name = rng.choice(list(entries))
    dtype = rng.choice(("<f4", ">f4", "<f8", "|O", "<U9", "<c8", "|V2", "<i4", "f4,f4", "x", 3))
    number = rng.choice(NUMBERS)
    shape = rng.choice([(number,), (number, 10**6), number, (32, 32), (1,) * 70, (0, 2**40), [32]])
    header = repr({"descr": dtype, "fortran_order": rng.choice((True, False, 1)), "shape": shape}).encode()
    header += b" " * (117 - len(header)) + b"\n"
    body = entries[name][128:]
    entries[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body
    return _zipped(entries, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def _header(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _with_header(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def _other_setting(content: bytes, rng: random.Random) -> bytes:
    """Replace a value in the config that the file carries."""
    header, data = _header(content)
    config = json.loads(header["__metadata__"]["config"])
    part = config
    while True:
        name = rng.choice(list(part))
        if not isinstance(part[name], dict) or not part[name]:
            break
        part = part[name]
    part[name] = rng.choice((*NUMBERS, "x" * 1000, [10**6], [[1] * 100] * 100))
    header["__metadata__"]["config"] = json.dumps(config)
    return _with_header(header, data)


def _other_header(content: bytes, rng: random.Random) -> bytes:
    """Replace the name, type, shape or place of a tensor in the file's header."""
    header, data = _header(content)
    name = rng.choice([k for k in header if k != "__metadata__"])
    entry = header.pop(name)
    match rng.randrange(4):
        case 0:
            name = rng.choice(("", "x\n\x1b[2J", "é" * 300, name + "9" * 5000))
        case 1:
            entry["dtype"] = rng.choice(("I32", "F64", "F16", "BF16", "BOOL", "F8_E4M3", "C64", "U16", "x"))
        case 2:
            entry["shape"] = rng.choice(([], [0], [2**40, 0], [10**9], entry["shape"][::-1], [-1], "x"))
        case 3:
            entry["data_offsets"] = rng.choice(([0, 0], [0, 4], [2**60, 2**61], [8, 4], [0]))
    header[name] = entry
    return _with_header(header, data)
