"""Pickle files of numpy arrays, read without running anything that the file asks for.

A pickle is a program: it may name any function and call it. This reader knows a few names, those that numpy
and the standard library write for arrays, and refuses every other. Even those names do not lead to numpy or
to the standard library but to stand-ins of our own, which note down what an array is made of; the array is
built from the notes afterwards, by checked sizes. So neither a callable nor a class, nor numpy's C code,
is ever within the file's reach. What trainers keep beside the weights (settings, histories) becomes an empty
stand-in. `weights.torch_file` adds the names that PyTorch writes for tensors.

A pickle can also be made to use up memory or time: a few hundred bytes may hold an object of 2**40 parts. So a file
has a budget of steps and of bytes (`Budget`); no object of its own is ever hashed, compared, copied whole or written
into a message, but text and small numbers; and nothing goes deeper into what was read than three dictionaries.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from maskrcnn.errors import UserError, shown

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


MAX_STEPS = 1 << 21  # the file of a trainer with its optimiser takes some 300 a parameter
_SPARE_BYTES = 1 << 24
NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


def read_pickle(path: str | Path) -> Any:
    """The object of a pickle file; texts of Python 2 are decoded as latin-1. Arrays are numpy's, and writable.

    Arrays are made for the values of dictionaries down to the third level and for a bare array; that is where
    published weights keep them.

    Raises:
        UserError: the file asks for something that is not data or for too much of it, is cut off, or is no pickle.
    """
    try:
        with open(path, "rb") as file:
            budget = Budget(file)
            return built(Reader(file, path, NAMES, budget).load(), 3, budget)
    except UserError:
        raise
    except OSError as e:
        raise UserError(f"{path}: cannot read: {(e.strerror or str(e)).lower()}.") from None
    # A pickle that is damaged or made to do harm fails in any of a dozen ways.
    except Exception as e:
        raise UserError(f"{path}: expected a whole pickle file, got a damaged one ({reason(e)}).") from None


class Budget:
    """Rest of what a file may ask for: steps of its pickles, and bytes of what is made from them.

    What a file holds is made once, or a few times where weights are shared; copies cost as if they were new.
    """

    __slots__ = ("bytes", "steps")

    def __init__(self, file: BinaryIO) -> None:
        self.steps = MAX_STEPS
        self.bytes = 4 * os.fstat(file.fileno()).st_size + _SPARE_BYTES

    def spend(self, steps: int = 0, num_bytes: int = 0) -> None:
        self.steps -= steps
        self.bytes -= num_bytes
        if self.steps < 0:
            raise ValueError(f"more than {MAX_STEPS} objects")
        if self.bytes < 0:
            raise ValueError("more data than the file is large")


class StandIn:
    """Object that a file may describe, in its own way; any other keeps what it was made with."""

    __slots__ = ()

    def describe(self, state: Any) -> None:
        """Take what the file says of the object; refuse what does not belong."""
        raise ValueError(f"state of {type(self).__name__}")


class _Counted(dict[int, Any]):
    """Reader's table of operations, each of which costs a step."""

    __slots__ = ("budget",)

    def __init__(self, operations: Mapping[int, Any], budget: Budget) -> None:
        super().__init__(operations)
        self.budget = budget

    def __getitem__(self, code: int) -> Any:
        self.budget.spend(1)
        if code not in self:
            raise ValueError(f"unknown operation {code}")
        return super().__getitem__(code)


# The reader in Python, not the one in C: in a damaged file a stray index makes that one reserve gigabytes.
class Reader(pickle._Unpickler):
    """Reader of one pickle, in which `names` alone may be named: each is what a file gets for a (module, name)."""

    content = "arrays"  # for errors
    # The base class's own, which its type stubs do not know.
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self, file: BinaryIO, path: str | Path, names: Mapping[tuple[str, str], Any], budget: Budget
    ) -> None:
        super().__init__(file, encoding="latin1")
        self.file, self.path, self.names, self.budget = file, path, names, budget
        self.proto = 0  # set by the file's first byte
        self.dispatch = _Counted(self.operations, budget)  # pyright: ignore[reportAttributeAccessIssue]

    def find_class(self, module: str, name: str) -> Any:
        # One look-up of the whole name: no import, and no attribute of anything is ever followed.
        if (module, name) not in self.names:
            if self.proto < 4 and not self.file.read(1):  # these protocols end a name by the line
                raise EOFError("cut off")
            raise UserError(
                f"{self.path}: expected {self.content} only, got a file that asks for {shown(f'{module}.{name}')}. "
                "It may be made to do harm: it was not read."
            )
        found = self.names[module, name]
        return _Callable(found) if callable(found) else found

    def persistent_load(self, pid: Any) -> Any:
        raise UserError(f"{self.path}: expected arrays only, got references to other files.")

    # --- operations that call, describe or hash, each with its limits

    def call(self, function: Any, args: Any) -> Any:
        if type(function) is not _Callable or type(args) is not tuple:
            raise ValueError("call of what is no function")
        for arg in (args, *args):
            if isinstance(arg, (str, bytes, bytearray)):
                self.budget.spend(num_bytes=len(arg))
            elif isinstance(arg, (tuple, list, dict, set, frozenset)):
                self.budget.spend(len(arg))
        return function.function(*args)

    def _instantiate(self, klass: Any, args: Any) -> None:  # of old-style classes
        self.append(self.call(klass, tuple(args)))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args)

    def load_build(self) -> None:
        state, described = self.stack.pop(), self.stack[-1]
        if not isinstance(described, StandIn):
            raise ValueError(f"state of {type(described).__name__}")
        described.describe(state)

    def load_append(self) -> None:
        self._append_items([self.stack.pop()])

    def load_appends(self) -> None:
        self._append_items(self.pop_mark())

    def _append_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list | _Beside):
            raise ValueError("items of what is no list")
        self.stack[-1].extend(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items((key, value))

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def _set_items(self, items: Any) -> None:
        filled = self.stack[-1]
        if not isinstance(filled, dict) or len(items) % 2:
            raise ValueError("items of what is no dictionary")
        if not isinstance(filled, _Beside):
            filled.update(zip(_plain(items[::2]), items[1::2], strict=True))

    def load_additems(self) -> None:
        items = self.pop_mark()
        if not isinstance(self.stack[-1], set):
            raise ValueError("items of what is no set")
        self.stack[-1].update(_plain(items))

    def load_frozenset(self) -> None:
        self.append(frozenset(_plain(self.pop_mark())))

    def load_bytearray8(self) -> None:
        length = int.from_bytes(self.read(8), "little")
        content = self.read(min(length, self.budget.bytes))  # never a space for more than there is
        if len(content) != length:
            raise EOFError("cut off")
        self.append(bytearray(content))

    operations: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[
            0
        ]: load_reduce,  # a class is made by `cls.__new__` from protocol 2 on; a stand-in is called
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }
    # Which data have no need of.
    for _code in (
        pickle.EXT1,
        pickle.EXT2,
        pickle.EXT4,
        pickle.NEWOBJ_EX,
        pickle.NEXT_BUFFER,
        pickle.READONLY_BUFFER,
    ):
        del operations[_code[0]]


def _plain(keys: Iterable[Any]) -> list[Any]:
    """Check that keys are text or small numbers; of any other, hashing alone may never end."""
    keys = list(keys)
    for key in keys:
        if type(key) is int and key.bit_length() > 64:
            raise ValueError("a key of more than 64 bits")
        if type(key) not in (str, bytes, int, float, bool, type(None)):
            raise ValueError(f"a {type(key).__name__} for a key")
    return keys


class _Callable:
    """Fresh stand-in for each allowed name, so that nothing is shared between files."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class _DType(StandIn):
    """Notes for a dtype: plain numbers only."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if type(code) is not str or code not in NUMBERS:
            raise ValueError("a dtype that is no number")
        self.code, self.order = code, "|"

    def describe(self, state: Any) -> None:
        # (version, byte order, then nothing but fillers for numbers)
        if (
            type(state) is not tuple
            or len(state) < 2
            or type(state[1]) is not str
            or state[1] not in tuple("<>|=")
        ):
            raise ValueError("dtype state")
        self.order = state[1]

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class Notes(StandIn):
    """Notes of what an array or a tensor is to be made of."""

    __slots__ = ()

    def build(self, budget: Budget) -> Any:
        """The array or tensor; raises whatever fits where the notes do not agree."""
        raise NotImplementedError


class _Array(Notes):
    """Notes for an array: shape, dtype, order and bytes, filled in by `describe` or by a maker below."""

    __slots__ = ("dtype", "fortran", "raw", "shape")

    def __init__(self, shape: Any, dtype: Any, fortran: Any, raw: Any) -> None:
        self.shape, self.dtype, self.fortran, self.raw = shape, dtype, fortran, raw

    def describe(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def build(self, budget: Budget) -> np.ndarray:
        if not isinstance(self.dtype, _DType) or not is_shape(self.shape):
            raise ValueError("array without dtype or shape")
        if not isinstance(self.raw, str | bytes | bytearray):
            raise ValueError("array without bytes")
        budget.spend(num_bytes=len(self.raw))
        # Python 2's bytes come as text.
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        flat = np.frombuffer(raw, self.dtype.dtype())
        array = flat.reshape(self.shape, order="F" if self.fortran is True else "C")
        return array.astype(array.dtype.newbyteorder("="), order="C", copy=True)


def is_shape(value: Any) -> bool:
    """Return True for a tuple of few whole numbers that sizes can be."""
    return type(value) is tuple and len(value) <= 32 and all(type(n) is int and 0 <= n < 2**48 for n in value)


def _marker(*args: Any) -> Any:
    raise ValueError("numpy.ndarray is only named, never called")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array((), None, False, None)


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> _Array:
    if axis_order is not None:
        raise ValueError("array with permuted axes")
    return _Array(shape, dtype, type(order) is str and order == "F", buffer)


def _scalar(dtype: Any, raw: Any) -> _Array:
    return _Array((), dtype, False, raw)


def _encode(text: Any, codec: Any) -> bytes:
    # How protocols 0 to 2 write bytes. Any other codec could be a decompressor.
    if type(text) is not str or type(codec) is not str or codec not in ("latin1", "latin-1"):
        raise ValueError("text encoding")
    return text.encode("latin1")


class _Dict(dict[Any, Any], StandIn):
    """An ordered dictionary without the attributes that one may be pickled with (`_metadata`)."""

    __slots__ = ()

    def describe(self, state: Any) -> None:
        pass


def _ordered_dict(items: Any = ()) -> _Dict:
    # Python 2 wrote lists of pairs.
    if not all(type(pair) in (tuple, list) and len(pair) == 2 for pair in items):
        raise ValueError("an ordered dictionary of what are no pairs")
    return _Dict(zip(_plain(key for key, _ in items), (value for _, value in items), strict=True))


def _empty_bytes(*args: Any) -> bytes:
    if args:
        raise ValueError("bytes with arguments")
    return b""


def _set(items: Any = ()) -> set[Any]:
    return set(_plain(items))


class _Beside(dict[Any, Any], StandIn):
    """An object that is not weights: whatever the file says of it is not kept."""

    __slots__ = ()

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def describe(self, state: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


def _reconstructor(kind: Any, base: Any, state: Any) -> Any:
    # How protocols 0 and 1 make an object of a class.
    if type(kind) is not _Callable or kind.function is not _Beside:
        raise ValueError("reconstruction of what is no class")
    return _Beside()


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


def built(value: Any, depth: int, budget: Budget) -> Any:
    """The arrays and tensors that `value` has notes of, down to `depth` dictionaries deep.

    What several names share is made once.
    """
    made: dict[tuple[int, int], Any] = {}

    def build(value: Any, depth: int) -> Any:
        if isinstance(value, _Callable | _DType):
            raise ValueError("a bare name where data was expected")
        if not isinstance(value, Notes) and not (isinstance(value, dict) and depth):
            return value
        key = (id(value), -1 if isinstance(value, Notes) else depth)
        if key not in made:
            if isinstance(value, Notes):
                made[key] = value.build(budget)
            else:
                budget.spend(len(value))
                made[key] = {k: build(v, depth - 1) for k, v in value.items()}
        return made[key]

    return build(value, depth)


def reason(error: Exception) -> str:
    """Reason of an exception, short enough for an error in one line."""
    return shown(str(error), 100) or type(error).__name__
