"""Files of `numpy.savez`, read by their headers, which are compared with the file before any array is made."""

from __future__ import annotations

import math
import warnings
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from maskrcnn.errors import UserError, shown
from maskrcnn.weights.unpickle import NUMBERS, is_shape, reason

# Weights hardly get smaller when they are compressed; zeros do so a thousandfold, which could fill the memory.
MAX_EXPANSION = 20
_SPARE_BYTES = 1 << 26
_CHUNK = 1 << 20


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file that numpy or JAX saved; those of objects, which would be pickles, are refused.

    Raises:
        UserError: the file holds other things than numbers or more of them than it is large, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            allowed = MAX_EXPANSION * Path(path).stat().st_size + _SPARE_BYTES
            if sum(entry.file_size for entry in entries) > allowed:
                raise ValueError("more data than a file of its size holds")
            arrays = {}
            for entry in entries:
                if not entry.filename.endswith(".npy"):
                    raise ValueError(f"{shown(entry.filename)} is no array")
                with archive.open(entry) as stream:
                    arrays[entry.filename.removesuffix(".npy")] = _read_array(stream, entry.file_size)
            return arrays
    # A zip file that is damaged or made to do harm fails in any of a dozen ways.
    except Exception as e:
        raise UserError(
            f"{path}: expected a whole .npz file of numbers, got a damaged one ({reason(e)})."
        ) from None


def _read_array(stream: IO[bytes], size: int) -> np.ndarray:
    """The array of an entry that is `size` bytes long."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that Python 2 wrote it
        shape, fortran, dtype = _read_header(stream)
    if dtype.str[1:] not in NUMBERS or not is_shape(shape):
        raise ValueError("an array of other things than numbers")
    length = math.prod(shape) * dtype.itemsize
    if length != size - stream.tell():
        raise ValueError(f"an array of {length} bytes in {size - stream.tell()}")
    raw = bytearray()
    while chunk := stream.read(_CHUNK):
        raw += chunk
    array = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array, dtype.newbyteorder("=")).reshape(shape)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"version {version}")  # 3.0 is for records with names
