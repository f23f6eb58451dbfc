"""Graphs of a model's seams: made once for a model, proved against the network, kept in the user's cache.

A model's graphs lie in `CACHE/engines/KEY`, where KEY stands for the model's config and weights, the runtime and the
versions of all that made them. The folder appears whole or not at all, and the least recently used go when there are
more than `MOST_KEPT`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from maskrcnn.config import to_dict
from maskrcnn.engines.seams import Run, Seam, seams_of
from maskrcnn.errors import UserError
from maskrcnn.files import cache_folder
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.version import __version__

MOST_KEPT = 8
# Difference of a graph's output from the network's, a share of its spread: in fp32 the largest, else the usual one.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.02}


class Runtime(Protocol):
    """Runtime as an engine sees it: its name and version, the files it writes, how one is run."""

    name: str
    version: str
    suffix: str

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None: ...
    def open(self, path: Path, precision: str) -> Run: ...


def run_as_graphs(model: MaskRCNN, runtime: Runtime, precision: str) -> None:
    """Let a runtime compute the seams of a model, which is on the CPU in float32 and evaluates.

    Raises:
        UserError: a graph cannot be made, or does not compute what the network does.
    """
    seams = list(seams_of(model))
    folder = cache_folder() / "engines" / f"{runtime.name}-{_key(model, runtime)}"
    runs = _kept(folder, seams, runtime, precision) or _new(folder, seams, runtime, precision)
    for seam, run in zip(seams, runs, strict=True):
        seam.put(run)


def _kept(folder: Path, seams: list[Seam], runtime: Runtime, precision: str) -> list[Run] | None:
    """Open the graphs of a folder; None if it is not there, or damaged, and then it goes."""
    if not folder.is_dir():
        return None
    try:
        runs = [runtime.open(_file(folder, seam, runtime), precision) for seam in seams]
        os.utime(folder)
        return runs
    except Exception:  # of kinds of the runtime's own
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _new(folder: Path, seams: list[Seam], runtime: Runtime, precision: str) -> list[Run]:
    """Make and prove the graphs, and keep them in a folder, where it can be written."""
    logging.getLogger("maskrcnn").info(f"{runtime.name}: making the graphs of this model, once")
    temporary = _temporary(folder.parent)
    try:
        runs = []
        for seam in seams:
            file = _file(temporary, seam, runtime)
            runtime.write(seam.export(), file)
            runs.append(run := runtime.open(file, precision))
            _prove(seam, run, runtime.name, precision)
        with contextlib.suppress(OSError):  # another process was faster, or it is on another disk
            temporary.rename(folder)
        _drop_old(folder.parent)
        return runs
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _file(folder: Path, seam: Seam, runtime: Runtime) -> Path:
    return folder / f"{seam.name}{runtime.suffix}"


def _temporary(root: Path) -> Path:
    """New folder to write in: in the cache, else among the temporary files."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=root, prefix="."))
    except OSError:
        return Path(tempfile.mkdtemp(prefix="maskrcnn-"))


def _prove(seam: Seam, run: Run, name: str, precision: str) -> None:
    """Compare a graph with the network that it stands for.

    Raises:
        UserError: they differ.
    """
    with torch.inference_mode():
        wanted, got = seam.network(*seam.examples), run(*seam.examples)
        slack = [0.0] * len(wanted)
        if not all(_close(*both, precision, 0.0) for both in zip(got, wanted, strict=True)):
            # A network may be so steep that its own rounding shows: as far as that goes a graph may differ too.
            exact = copy.deepcopy(seam.network).double()(*(_double(x) for x in seam.examples))
            slack = [4 * _apart(*both) for both in zip(wanted, exact, strict=True)]
    for theirs, ours, more in zip(got, wanted, slack, strict=True):
        if not _close(theirs, ours, precision, more):
            raise UserError(
                f"engine: {name}: expected what the network computes, got something else in its {seam.name} "
                f"({_apart(theirs, ours):.2g} at a spread of {_spread(ours):.2g}). Use --engine cpu or eager."
            )


def _close(a: Tensor, b: Tensor, precision: str, slack: float) -> bool:
    difference = (
        _apart(a, b) if precision == "fp32" else float((a.double() - b.double()).square().mean().sqrt())
    )
    return difference <= max(TOLERANCE[precision] * max(_spread(b), 1e-6), slack)


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


def _spread(x: Tensor) -> float:
    return float(x.double().std(correction=0))


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _key(model: MaskRCNN, runtime: Runtime) -> str:
    """Digest of a model's config and weights and of what makes graphs of them."""
    made_by = (__version__, torch.__version__, runtime.name, runtime.version)
    digest = hashlib.sha256(json.dumps([made_by, to_dict(model.config)], sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(memoryview(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()[:32]


def _drop_old(root: Path) -> None:
    """Remove the graphs that nobody has used for the longest time, and what a killed process left."""
    with contextlib.suppress(OSError):
        folders = sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: -p.stat().st_mtime)
        kept = [p for p in folders if not p.name.startswith(".")][:MOST_KEPT]
        for folder in folders:
            unfinished = folder.name.startswith(".")  # perhaps another process's, which is at it
            if folder not in kept and (not unfinished or time.time() - folder.stat().st_mtime > 86400):
                shutil.rmtree(folder, ignore_errors=True)


def per_thread(make: Callable[[], Run]) -> Run:
    """Function that keeps one runner for each thread that calls it: runners hold the memory of one call."""
    local = threading.local()

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        if not hasattr(local, "run"):
            local.run = make()
        return local.run(*inputs)

    return run
