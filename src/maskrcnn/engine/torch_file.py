"""Files of `torch.save`, read without running anything that the file asks for (see `engine.unpickle`).

Two formats: since PyTorch 1.6 a zip file with the object as `NAME/data.pkl` and each storage as `NAME/data/KEY`;
before, several pickles one after the other, then the storages. Both are read here, and not by `torch.load`, which
refuses the numpy scalars and settings that MMDetection and others keep beside the weights.

Storages are mapped, not read: tensors take no memory until they are used, and an optimiser's state never any.
"""

from __future__ import annotations

import io
import mmap
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from maskrcnn.engine.unpickle import NAMES, Notes, Reader, built, reason
from maskrcnn.errors import UserError

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


class _Storage:
    """Notes for a storage: `count` elements, and from where `data()` gets them."""

    __slots__ = ("count", "data", "dtype")

    def __init__(self, dtype: Any, count: Any, data: Callable[[torch.dtype, int], Tensor]) -> None:
        if not isinstance(dtype, torch.dtype) or not isinstance(count, int) or not 0 <= count < 2**48:
            raise ValueError("storage")
        self.dtype, self.count, self.data = dtype, count, data


class _Tensor(Notes):
    """Notes for a tensor: a view of a storage."""

    __slots__ = ("offset", "shape", "storage", "stride")

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> None:
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    def build(self) -> Tensor:
        sizes = (self.offset, *self.shape, *self.stride)
        if not isinstance(self.storage, _Storage) or len(self.shape) != len(self.stride):
            raise ValueError("tensor without storage or shape")
        if not all(type(n) is int and 0 <= n < 2**48 for n in sizes) or len(self.shape) > 32:
            raise ValueError(f"tensor shape {self.shape}")
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
    return function(*args)


def _size(items: Any = ()) -> tuple[Any, ...]:
    return tuple(items)


def _word(*args: Any) -> str:
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

    def __init__(self, file: BinaryIO, path: str | Path, storage: Callable[[Any], _Storage]) -> None:
        super().__init__(file, path, _TORCH_NAMES)
        self.storage = storage

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or not pid or pid[0] not in ("storage", b"storage"):
            raise ValueError("reference to something that is no storage")
        return self.storage(pid)


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
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in entries else b"little"
        content = archive.read(found[0])
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
            return _slice(mapped, begin, dtype, count, order.decode())

        return _Storage(dtype, count, data)

    return built(_TorchReader(io.BytesIO(content), path, storage).load(), depth=3)


def _read_legacy(file: BinaryIO, path: str | Path) -> Any:
    places: dict[Any, tuple[int, int]] = {}  # of each storage: where its elements begin, and how many
    mapped = _mapped(file)

    def storage(pid: Any) -> _Storage:
        _, dtype, key, _, count, *view = pid
        view_offset, view_count = 0, count
        if view and view[0] is not None:
            _, view_offset, view_count = view[0]

        def data(dtype: torch.dtype, count: int) -> Tensor:
            begin, there = places[key]
            if type(view_offset) is not int or view_offset < 0 or view_offset + count > there:
                raise ValueError(f"storage {key} of {there} elements")
            return _slice(mapped, begin + view_offset * dtype.itemsize, dtype, count, order)

        types[key] = dtype
        return _Storage(dtype, view_count, data)

    def load() -> Any:
        return _TorchReader(file, path, storage).load()

    types: dict[Any, torch.dtype] = {}
    if load() != LEGACY_MAGIC or load() != LEGACY_PROTOCOL:
        raise ValueError("unknown version")
    order = "little" if load().get("little_endian", True) else "big"
    content = load()
    for key in load():
        count = int.from_bytes(file.read(8), order, signed=True)
        places[key] = (file.tell(), count)
        end = file.tell() + count * types[key].itemsize
        if count < 0 or end > len(mapped):
            raise EOFError("cut off")
        file.seek(end)
    return built(content, depth=3)


def _mapped(file: BinaryIO) -> mmap.mmap:
    """The whole file as memory that is read when it is looked at; what is written to it stays private."""
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
