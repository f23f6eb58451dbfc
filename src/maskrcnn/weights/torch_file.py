"""Files of `torch.save`, read without running anything that the file asks for (see `weights.unpickle`).

Two formats: since PyTorch 1.6 a zip file with the object as `NAME/data.pkl` and each storage as `NAME/data/KEY`;
before, several pickles one after the other, then the storages. Both are read here, and not by `torch.load`, which
refuses the numpy scalars and settings that MMDetection and others keep beside the weights.

Storages are mapped, not read: tensors take no memory until they are used, and an optimiser's state never any.
"""

from __future__ import annotations

import io
import math
import mmap
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from maskrcnn.errors import UserError
from maskrcnn.weights.unpickle import NAMES, Budget, Notes, Reader, StandIn, built, is_shape, reason

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file before PyTorch 1.6
LEGACY_PROTOCOL = 1001
MAX_PICKLE_BYTES = 1 << 28
_LOCAL_HEADER = 30  # bytes of a zip entry's header before its name


def read_torch(path: str | Path) -> Any:
    """The object of a file of `torch.save`; tensors, down to the third level of dictionaries, on the CPU.

    Raises:
        UserError: the file asks for something that is not data, is cut off, or is no such file.
    """
    try:
        with open(path, "rb") as file:
            read = _read_zip if file.read(2) == b"PK" else _read_legacy
            file.seek(0)
            return read(file, path)
    except UserError:
        raise
    except OSError as e:
        raise UserError(f"{path}: cannot read: {(e.strerror or str(e)).lower()}.") from None
    # A file that is damaged or made to do harm fails in any of a dozen ways.
    except Exception as e:
        raise UserError(f"{path}: expected a whole torch file, got a damaged one ({reason(e)}).") from None


# --- tensors, by stand-ins


class _Storage(StandIn):
    """Notes for a storage: `count` elements, and from where `data()` gets them."""

    __slots__ = ("count", "data", "dtype")

    def __init__(self, dtype: Any, count: Any, data: Callable[[torch.dtype, int], Tensor]) -> None:
        if not isinstance(dtype, torch.dtype) or not is_shape((count,)):
            raise ValueError("storage")
        self.dtype, self.count, self.data = dtype, count, data


class _Tensor(Notes):
    """Notes for a tensor: a view of a storage."""

    __slots__ = ("offset", "shape", "storage", "stride")

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> None:
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    def build(self, budget: Budget) -> Tensor:
        if not isinstance(self.storage, _Storage) or not is_shape(self.shape) or not is_shape(self.stride):
            raise ValueError("tensor without storage or shape")
        if len(self.shape) != len(self.stride) or not is_shape((self.offset,)):
            raise ValueError("tensor whose shape and strides do not agree")
        # Strides of 0 and storages that many share cost no memory here, but do as soon as somebody copies them.
        budget.spend(num_bytes=math.prod(self.shape) * self.storage.dtype.itemsize)
        end = self.offset + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        if end > self.storage.count:
            raise ValueError(f"tensor of {end} elements in a storage of {self.storage.count}")
        flat = self.storage.data(self.storage.dtype, self.storage.count)
        return flat.as_strided(self.shape, self.stride, self.offset)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    # A subclass of Tensor, made of a storage or of a tensor; what it adds is not kept.
    if type(args) is not tuple or not args or not isinstance(args[0], _Storage | _Tensor):
        raise ValueError("a tensor's kin without a storage")
    return args[0] if isinstance(args[0], _Tensor) else _Tensor(*args)


def _size(items: Any = ()) -> tuple[Any, ...]:
    return tuple(items)


def _word(*args: Any) -> str:
    # A device: its type and number. No text of anything else, which may be without end.
    if not all(type(arg) is int or (type(arg) is str and len(arg) < 100) for arg in args):
        raise ValueError("a word of what is none")
    return " ".join(map(str, args))


_DTYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip

_TORCH_NAMES: dict[tuple[str, str], Any] = {
    **NAMES,
    **{("torch", f"{name}Storage"): dtype for name, dtype in _DTYPES.items()},
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _DTYPES.values()},
    ("torch._utils", "_rebuild_tensor"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch", "Tensor"): _word,
    ("torch.nn.parameter", "Parameter"): _word,
    ("torch", "Size"): _size,
    ("torch", "device"): _word,
}


class _TorchReader(Reader):
    content = "tensors"

    def __init__(
        self, file: BinaryIO, path: str | Path, storage: Callable[[Any], _Storage], budget: Budget
    ) -> None:
        super().__init__(file, path, _TORCH_NAMES, budget)
        self.storage = storage

    def persistent_load(self, pid: Any) -> Any:
        # ("storage", dtype, key, device, count), in old files also (key of a view, offset, count) or None
        if type(pid) is not tuple or len(pid) < 5 or type(pid[0]) not in (str, bytes):
            raise ValueError("reference to something that is no storage")
        if pid[0] not in ("storage", b"storage") or not _is_key(pid[2]):
            raise ValueError("reference to something that is no storage")
        return self.storage(pid)


def _is_key(value: Any) -> bool:
    """Return True for a storage's name, which is a number: as text, or in files of Python 2 as such."""
    return (type(value) is str and len(value) < 100) or is_shape((value,))


# --- containers


def _read_zip(file: BinaryIO, path: str | Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        found = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if any(name.endswith("constants.pkl") for name in entries):
            raise UserError(f"{path}: expected weights, got a TorchScript program. Save its state_dict.")
        if len(found) != 1:
            raise UserError(f"{path}: expected a file of torch.save, got a zip file of something else.")
        root = found[0].removesuffix("data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("compressed")  # never by torch.save: it could be made to fill the memory
        if entries[found[0]].file_size > MAX_PICKLE_BYTES:
            raise ValueError("too large an index")
        order = "little"
        if f"{root}byteorder" in entries:
            with archive.open(f"{root}byteorder") as entry:
                order = entry.read(len("little")).decode()
        content = archive.read(found[0])
    if order not in ("little", "big"):
        raise ValueError("unknown order of bytes")
    mapped = _mapped(file)

    def storage(pid: Any) -> _Storage:
        _, dtype, key, _, count = pid
        entry = entries[f"{root}data/{key}"]

        def data(dtype: torch.dtype, count: int) -> Tensor:
            header = mapped[entry.header_offset : entry.header_offset + _LOCAL_HEADER]
            name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
            begin = entry.header_offset + _LOCAL_HEADER + name + extra
            if entry.file_size != count * dtype.itemsize:
                raise ValueError(f"storage {key} of {entry.file_size} bytes for {count} elements")
            return _slice(mapped, begin, dtype, count, order)

        return _Storage(dtype, count, data)

    budget = Budget(file)
    return built(_TorchReader(io.BytesIO(content), path, storage, budget).load(), 3, budget)


def _read_legacy(file: BinaryIO, path: str | Path) -> Any:
    places: dict[Any, tuple[int, int]] = {}  # of each storage: where its elements begin, and how many
    mapped = _mapped(file)
    budget = Budget(file)

    def storage(pid: Any) -> _Storage:
        _, dtype, key, _, count, *view = pid
        view_offset, view_count = 0, count
        if view and view[0] is not None:
            _, view_offset, view_count = view[0]

        def data(dtype: torch.dtype, count: int) -> Tensor:
            begin, there = places[key]
            if not is_shape((view_offset,)) or view_offset + count > there:
                raise ValueError(f"storage {key} of {there} elements")
            return _slice(mapped, begin + view_offset * dtype.itemsize, dtype, count, order)

        made = _Storage(dtype, view_count, data)
        types[key] = made.dtype
        return made

    def load() -> Any:
        return _TorchReader(file, path, storage, budget).load()

    types: dict[Any, torch.dtype] = {}
    for expected in (LEGACY_MAGIC, LEGACY_PROTOCOL):
        if type(found := load()) is not int or found != expected:
            raise ValueError("unknown version")
    order = "little" if load().get("little_endian", True) is not False else "big"
    content, keys = load(), load()
    if not isinstance(keys, list) or not all(map(_is_key, keys)):
        raise ValueError("no list of storages")
    for key in keys:
        count = int.from_bytes(file.read(8), order, signed=True)
        places[key] = (file.tell(), count)
        end = file.tell() + count * types[key].itemsize
        if count < 0 or end > len(mapped):
            raise EOFError("cut off")
        file.seek(end)
    return built(content, 3, budget)


def _mapped(file: BinaryIO) -> mmap.mmap:
    """Map the whole file as memory that is read when it is looked at; writes to it stay private."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _slice(mapped: mmap.mmap, begin: int, dtype: torch.dtype, count: int, order: str) -> Tensor:
    size = count * dtype.itemsize
    if begin + size > len(mapped):
        raise EOFError("cut off")
    if count == 0:
        return torch.empty(0, dtype=dtype)
    raw = torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=begin)
    if order != sys.byteorder and dtype.itemsize > 1:
        raw = raw.view(count, dtype.itemsize).flip(1).flatten()
    if begin % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype)
