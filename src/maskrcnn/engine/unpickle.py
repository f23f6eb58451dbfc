"""Pickle files of numpy arrays, read without running anything that the file asks for.

A pickle is a program: it may name any function and call it. This reader knows a few names, those that numpy
and the standard library write for arrays, and refuses every other. Even those names do not lead to numpy or
to the standard library but to stand-ins of our own, which note down what an array is made of; the array is
built from the notes afterwards, by checked sizes. So neither a callable nor a class, nor numpy's C code,
is ever within the file's reach. What trainers keep beside the weights (settings, histories) becomes an empty
stand-in. `engine.torch_file` adds the names that PyTorch writes for tensors.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from maskrcnn.errors import UserError

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since numpy 2
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
# Classes that trainers write beside the weights: of MMDetection's and its kin's meta, of arguments and schedules.
_BESIDE_WEIGHTS = (
    ("addict.addict", "Dict"),
    ("argparse", "Namespace"),
    ("collections", "Counter"),
    ("collections", "defaultdict"),
    ("collections", "deque"),
    ("mmcv.utils.config", "ConfigDict"),
    ("mmengine.config.config", "ConfigDict"),
    ("mmengine.logging.history_buffer", "HistoryBuffer"),
    ("yacs.config", "CfgNode"),
)
_BUILTINS = ("builtins", "__builtin__")  # Python 3's name and Python 2's


def read_pickle(path: str | Path) -> Any:
    """The object of a pickle file; texts of Python 2 are decoded as latin-1. Arrays are numpy's, and writable.

    Arrays are made for the values of dictionaries down to the third level and for a bare array; that is where
    published weights keep them.

    Raises:
        UserError: the file asks for something that is not data, is cut off, or is no pickle.
    """
    try:
        with open(path, "rb") as file:
            return built(Reader(file, path, NAMES).load(), depth=3)
    except UserError:
        raise
    except OSError as e:
        raise UserError(f"{path}: cannot read: {(e.strerror or str(e)).lower()}.") from None
    # A pickle that is damaged or made to do harm fails in any of a dozen ways.
    except Exception as e:
        raise UserError(f"{path}: expected a whole pickle file, got a damaged one ({reason(e)}).") from None


# The reader in Python, not the one in C: in a damaged file a stray index makes that one reserve gigabytes.
class Reader(pickle._Unpickler):
    """Loads one pickle, in which `names` alone may be named: each is what a file gets for a (module, name)."""

    content = "arrays"  # for errors

    def __init__(self, file: BinaryIO, path: str | Path, names: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(file, encoding="latin1")
        self.file, self.path, self.names = file, path, names
        self.proto = 0  # set by the file's first byte

    def find_class(self, module: str, name: str) -> Any:
        # One look-up of the whole name: no import, and no attribute of anything is ever followed.
        if (module, name) not in self.names:
            if self.proto < 4 and not self.file.read(1):  # these protocols end a name by the line
                raise EOFError("cut off")
            raise UserError(
                f"{self.path}: expected {self.content} only, got a file that asks for {module}.{name}. "
                "It may be made to do harm: it was not read."
            )
        found = self.names[module, name]
        return _Callable(found) if callable(found) else found

    def persistent_load(self, pid: Any) -> Any:
        raise UserError(f"{self.path}: expected arrays only, got references to other files.")

    # A class is made by `cls.__new__` from protocol 2 on; a stand-in is called instead.
    def load_newobj(self) -> None:
        args = self.stack.pop()  # pyright: ignore[reportAttributeAccessIssue]
        self.stack[-1] = self.stack[-1](*args)  # pyright: ignore[reportAttributeAccessIssue]

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.NEWOBJ[0]: load_newobj}


class _Callable:
    """What the file gets for a name: an object of its own, so that nothing it sets on it lasts."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _DType:
    """Notes for a dtype: plain numbers only."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        kinds = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
        if code not in kinds:
            raise ValueError(f"dtype {code!r} is not a number")
        self.code, self.order = code, "|"

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, then nothing but fillers for numbers)
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("dtype state")
        self.order = state[1]

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class Notes:
    """What an array or a tensor is to be made of."""

    __slots__ = ()

    def build(self) -> Any:
        """The array or tensor; raises whatever fits where the notes do not agree."""
        raise NotImplementedError


class _Array(Notes):
    """Notes for an array: shape, dtype, order and bytes, filled in by `__setstate__` or by a maker below."""

    __slots__ = ("dtype", "fortran", "raw", "shape")

    def __init__(self, shape: Any, dtype: Any, fortran: Any, raw: Any) -> None:
        self.shape, self.dtype, self.fortran, self.raw = shape, dtype, fortran, raw

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def build(self) -> np.ndarray:
        if not isinstance(self.dtype, _DType) or not isinstance(self.shape, tuple):
            raise ValueError("array without dtype or shape")
        if not all(isinstance(n, int) and 0 <= n < 2**31 for n in self.shape) or len(self.shape) > 32:
            raise ValueError(f"array shape {self.shape}")
        # Python 2's bytes come as text.
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        if not isinstance(raw, bytes | bytearray):
            raise ValueError("array without bytes")
        flat = np.frombuffer(raw, self.dtype.dtype())
        array = flat.reshape(self.shape, order="F" if self.fortran else "C")
        return array.astype(array.dtype.newbyteorder("="), order="C", copy=True)


def _marker(*args: Any) -> Any:
    raise ValueError("numpy.ndarray is only named, never called")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array((), None, False, None)


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> _Array:
    if axis_order is not None:
        raise ValueError("array with permuted axes")
    return _Array(shape, dtype, order == "F", buffer)


def _scalar(dtype: Any, raw: Any) -> _Array:
    return _Array((), dtype, False, raw)


def _encode(text: Any, codec: Any) -> bytes:
    # How protocols 0 to 2 write bytes. Any other codec could be a decompressor.
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise ValueError("text encoding")
    return text.encode("latin1")


class _Dict(dict[Any, Any]):
    """An ordered dictionary without the attributes that one may be pickled with (`_metadata`)."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


def _ordered_dict(items: Any = ()) -> _Dict:
    return _Dict(items)


def _empty_bytes(*args: Any) -> bytes:
    if args:
        raise ValueError("bytes with arguments")
    return b""


def _set(items: Any = ()) -> set[Any]:
    return set(items)


class _Beside(dict[Any, Any]):
    """An object that is not weights: whatever the file says of it is not kept."""

    __slots__ = ()

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


def _reconstructor(kind: Any, base: Any, state: Any) -> Any:
    # How protocols 0 and 1 make an object of a class.
    return kind()


NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _marker,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _ordered_dict,
    **{(module, "bytes"): _empty_bytes for module in _BUILTINS},
    **{(module, "set"): _set for module in _BUILTINS},
    **{(module, name): _Beside for module in _BUILTINS for name in ("object", "dict", "list", "int")},
    **{(module, "_reconstructor"): _reconstructor for module in ("copyreg", "copy_reg")},
    **{(module, "_reconstruct"): _reconstruct for module in _MULTIARRAY},
    **{(module, "scalar"): _scalar for module in _MULTIARRAY},
    **{(module, "_frombuffer"): _from_buffer for module in _NUMERIC},
    **dict.fromkeys(_BESIDE_WEIGHTS, _Beside),
}


def built(value: Any, depth: int) -> Any:
    """The arrays and tensors that `value` has notes of, down to `depth` dictionaries deep."""
    if isinstance(value, Notes):
        return value.build()
    if isinstance(value, dict) and depth:
        return {k: built(v, depth - 1) for k, v in value.items()}
    if isinstance(value, _Callable | _DType):
        raise ValueError("a bare name where data was expected")
    return value


def reason(error: Exception) -> str:
    """What went wrong, short enough for an error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else text[:97] + "..."
