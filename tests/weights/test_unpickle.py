"""Pickles of arrays are read; pickles that ask for anything else are refused, without doing what they ask."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.errors import UserError
from maskrcnn.weights.unpickle import read_pickle

PROTOCOLS = range(6)


class Calls:
    """Object that pickles as a call of `function` with `args`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> Any:
        return self.reduced


def written(folder: Path, content: bytes) -> Path:
    path = folder / "weights.pkl"
    path.write_bytes(content)
    return path


def sample_arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "conv": rng.standard_normal((4, 3, 2, 2)).astype(np.float32),
        "fortran": np.asfortranarray(rng.standard_normal((3, 5))),
        "strided": rng.standard_normal((6, 4))[::2, ::-1],
        "big_endian": np.arange(5, dtype=">i4"),
        "half": np.ones(3, np.float16),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.float32(1.5),
        "zero_d": np.array(7, np.int64),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("old_numpy", [False, True])
def test_arrays_come_back_equal(tmp_path: Path, protocol: int, old_numpy: bool) -> None:
    arrays = sample_arrays()
    content = pickle.dumps({"model": OrderedDict(arrays), "__author__": "someone"}, protocol)
    if old_numpy:  # the module's name before numpy 2, of another length: framing and lengths want care
        content = pickle.dumps({"model": OrderedDict(arrays), "__author__": "someone"}, min(protocol, 3))
        content = content.replace(b"numpy._core.", b"numpy.core.")
    read = read_pickle(written(tmp_path, content))
    assert read["__author__"] == "someone"
    assert list(read["model"]) == list(arrays)
    for name, array in arrays.items():
        got = read["model"][name]
        np.testing.assert_array_equal(got, array, err_msg=name)
        assert got.dtype == np.asarray(array).dtype.newbyteorder("=")
        assert got.flags.writeable


def test_python_2_files_are_read(tmp_path: Path) -> None:
    # Python 2 wrote an array's bytes as its plain text type, which protocol 2 cannot tell from names.
    values = np.array([1.5, -2.0, 3e7], "<f4")
    content = (
        b"\x80\x02}U\x05modelq\x01}U\x01wq\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\x00\x85U\x01b\x87Rq\x03(K\x01K\x03\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x0c" + values.tobytes() + b"tbss."
    )
    np.testing.assert_array_equal(read_pickle(written(tmp_path, content))["model"]["w"], values)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "make",
    [
        lambda marker: Calls(os.system, f"touch {marker}"),
        lambda marker: Calls(eval, f"open({str(marker)!r}, 'w')"),
        lambda marker: Calls(exec, f"open({str(marker)!r}, 'w')"),
        lambda marker: Calls(open, str(marker), "w"),
        lambda marker: Calls(subprocess.check_call, ["touch", str(marker)]),
        lambda marker: Calls(__import__, "os"),
        lambda marker: Calls(np.save, str(marker), 1),
        lambda marker: Calls(np.ndarray.tofile, 1, str(marker)),
        lambda marker: Calls(map, print, [1]),
        lambda marker: OrderedDict([("model", {"w": Calls(os.mkdir, str(marker))})]),
    ],
)
def test_calls_are_refused_and_not_made(tmp_path: Path, make: Any, protocol: int) -> None:
    marker = tmp_path / "marker"
    path = written(tmp_path, pickle.dumps(make(marker), protocol))
    with pytest.raises(
        UserError, match=r"weights\.pkl: expected (arrays only, got a file that asks for|a whole)"
    ):
        read_pickle(path)
    assert not marker.exists()


def _stack_global(module: bytes, name: bytes, rest: bytes = b".") -> bytes:
    def text(t: bytes) -> bytes:
        return b"\x8c" + bytes([len(t)]) + t

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + rest


HAND_MADE = {
    "dotted name from an allowed module": _stack_global(b"numpy", b"f2py.os.system", b"\x8c\x04true\x85R."),
    "attribute of an allowed name": _stack_global(b"collections", b"OrderedDict.__init__.__globals__"),
    "subclasses of an allowed name": _stack_global(b"numpy", b"ndarray.__subclasses__", b")R."),
    "dotted name, protocol 2": b"\x80\x02cnumpy\nndarray.__class__\n.",
    "INST": b"(S'true'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'true'\no.",
    "NEWOBJ of an allowed name": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "NEWOBJ_EX": b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93)}\x92.",
    "extension registry": b"\x80\x02\x82\x01.",
    "persistent id": b"\x80\x02U\x01aQ.",
    "module that runs when imported": b"cantigravity\nfly\n.",
    "decompressor as text encoding": b"c_codecs\nencode\n(U\x01aU\x04zlibtR.",
    "a name for a value": b"\x80\x02}U\x05modelcnumpy\nndarray\ns.",
    "class of a stand-in changed": b"\x80\x02cnumpy\ndtype\n(N}U\x09__class__cnumpy\nndarray\nstb.",
    "state of a callable changed": b"\x80\x02c_codecs\nencode\n}U\x09_functionNsb.",
    "object dtype": b"\x80\x02cnumpy\ndtype\nU\x02O8\x85R.",
    "scalar of an object": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x02O8tRU\x01atR.",
    "dtype without its state": b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x02O8\x85R\x86R.",
    "array without state": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR.",
    "buffer from outside": b"\x80\x05\x97.",
    "endless memo": b"\x80\x02Nr\xff\xff\xff\xff\x82\x01.",
}


@pytest.mark.parametrize("content", HAND_MADE.values(), ids=HAND_MADE)
def test_hand_made_tricks_are_refused(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(os, "system", ran.append)
    before = set(sys.modules)
    with pytest.raises(UserError, match=r"weights\.pkl: expected"):
        read_pickle(written(tmp_path, content))
    assert ran == []
    assert not {"antigravity", "numpy.f2py"} & (set(sys.modules) - before)
    # Whatever it tried to change is as it was for the next file.
    good = written(tmp_path, pickle.dumps({"w": np.arange(3)}))
    np.testing.assert_array_equal(read_pickle(good)["w"], np.arange(3))


def test_an_array_cannot_be_larger_than_its_bytes(tmp_path: Path) -> None:
    content = pickle.dumps({"w": np.zeros((7, 11), np.float32)}, 2)
    for lie in (content.replace(b"K\x07K\x0b", b"K\xffK\xff"), content.replace(b"f4", b"f8")):
        assert lie != content
        with pytest.raises(UserError, match="damaged"):
            read_pickle(written(tmp_path, lie))


GOOD = pickle.dumps({"model": sample_arrays(), "__author__": "someone"}, 2)


def test_the_sample_uses_the_names_that_it_should() -> None:
    names = {arg for op, arg, _ in pickletools.genops(io.BytesIO(GOOD)) if op.name == "GLOBAL"}
    assert {"numpy ndarray", "numpy dtype", "_codecs encode"} <= names


@given(cut=st.integers(0, len(GOOD) - 1))
@settings(max_examples=60, deadline=None)
def test_a_cut_off_file_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "weights.pkl"
    path.write_bytes(GOOD[:cut])
    with pytest.raises(UserError, match="got a damaged one"):
        read_pickle(path)


@given(
    changes=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8)
)
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(GOOD)
    for place, value in changes:
        content[place] = value
    path = tmp_path_factory.mktemp("damaged") / "weights.pkl"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        read_pickle(path)
