"""Runs that are killed (SIGKILL) at a chosen write to the disk, and resumed.

From a script: `killed_runs(count, seed)`, or  python -m tests.training.kills 300
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from maskrcnn.config import Config
from maskrcnn.training import runlog
from maskrcnn.training.checkpoint import checkpoints, iteration_of
from maskrcnn.training.runlog import read_log
from tests.training.small_run import PRELOAD, small_config, small_run

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"ema_decay": 0.9},
    "accumulated": {"accumulation_steps": 2, "ema_decay": 0.9},
    "precise norms": {"precise_norm_batches": 2, "checkpoint_every": 3},
    "few kept": {"keep_checkpoints": 1, "log_every": 5},
}


def config_of(settings: str) -> Config:
    """Short runs, of two checkpoints that stay and one that is removed, and two evaluations."""
    short = {"iterations": 6, "checkpoint_every": 2, "evaluate_every": 3, "keep_checkpoints": 2}
    values = {**short, **SETTINGS[settings]}
    steps = values.pop("accumulation_steps", 1)
    config = small_config(**values)
    config.optim.accumulation_steps = steps
    return config


class Writes:
    """Counter of the process's writes to files, which kills it before the write number `die_at`.

    A line of the log, and a folder's removal, are half done by then.
    """

    def __init__(self, run: Path, die_at: int | None = None) -> None:
        self.run, self.die_at, self.done = run, die_at, list[str]()

    def install(self) -> None:
        self._wrap(os, "fsync", lambda d: self._name(os.readlink(f"/proc/self/fd/{d}")))
        self._wrap(os, "replace", lambda source, target: self._name(target))
        self._wrap(shutil, "rmtree", lambda path, **_: self._name(path), half=_half_removal)
        self._wrap(runlog, "_write_all", lambda file, _: self._name(file.name), half=_half_line)

    def _wrap(
        self, module: Any, function: str, name: Callable[..., str], half: Callable[..., None] | None = None
    ) -> None:
        original = getattr(module, function)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if function == "rmtree" and not os.path.exists(args[0]):
                return original(*args, **kwargs)
            self.done.append(f"{function.strip('_')} {name(*args, **kwargs)}")
            if self.die_at == len(self.done) - 1:
                if half:
                    half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(module, function, wrapped)

    def _name(self, path: Any) -> str:
        path = os.path.relpath(path, self.run)
        return re.sub(r"\.(\w+)\.\d+\.[0-9a-f]{6}\.tmp", r"new \1", path)


def _half_line(file: Any, content: bytes) -> None:
    file.write(content[: len(content) // 2])


def _half_removal(path: Path, **_: Any) -> None:
    for file in sorted(Path(path).glob("*"))[:2]:
        file.unlink()


def child(run: Path, settings: str, die_at: int | None, trace: Path | None) -> None:
    """Run or resume a training, until it ends or dies."""
    torch.set_num_threads(1)
    writes = Writes(run, die_at)
    writes.install()
    small_run(run, config_of(settings), resume=True)
    if trace:
        trace.write_text("\n".join(writes.done))


def run_child(run: Path, settings: str, die_at: int | None = None, trace: Path | None = None) -> int:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, __name__])
    process = context.Process(target=child, args=(run, settings, die_at, trace))
    process.start()
    process.join(120)
    process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def writes_of(run: Path, settings: str) -> list[str]:
    """Run to the end: names of all the writes on the way."""
    trace = run.with_name(f"{run.name}.trace")
    assert run_child(run, settings, trace=trace) == 0
    return trace.read_text().splitlines()


def first_of_each_kind(writes: Sequence[str]) -> dict[int, str]:
    """Numbers of writes that differ by more than the iteration, with their names.

    What is done to the first checkpoint as a whole is a kind of its own.
    """
    first = next(w for w in writes if re.search(r"iteration_\d+$", w))[-6:]
    kinds: dict[str, int] = {}
    for k, write in enumerate(writes):
        kinds.setdefault(write if write.endswith(first) else re.sub(r"\d{6}", "N", write), k)
    return {k: name for name, k in kinds.items()}


def kill_and_resume(run: Path, settings: str, deaths: Sequence[int]) -> int:
    """Kill the run at the write number `deaths[0]`, the resumed one at `deaths[1]`, and so on; then let it end.

    Returns:
        How often it was killed; less than asked for where it ended first.
    """
    killed = 0
    for die_at in deaths:
        code = run_child(run, settings, die_at)
        if code == 0:
            return killed
        assert code == -signal.SIGKILL
        killed += 1
    small_run(run, config_of(settings), resume=True)
    return killed


def cut_back(whole: Path, run: Path, iteration: int) -> None:
    """Copy a finished run, cut back to one that was killed after the checkpoint of `iteration`."""
    shutil.copytree(whole, run)
    (run / "model.safetensors").unlink()
    for folder in checkpoints(run):
        if iteration_of(folder) > iteration:
            shutil.rmtree(folder)


def differences(whole: Path, run: Path) -> list[str]:
    """List the differences of a run from another, apart from the clock's times."""
    clock = ("clock.json", "SHA256SUMS", "log.jsonl")
    left, right = ({str(p.relative_to(r)): p for p in r.rglob("*") if p.is_file()} for r in (whole, run))
    found = [f"only one has {name}" for name in sorted(left.keys() ^ right.keys())]
    for name in sorted(left.keys() & right.keys()):
        if Path(name).name not in clock and left[name].read_bytes() != right[name].read_bytes():
            found.append(f"{name} differs")
    if told(whole) != told(run):
        found.append("the log differs")
    return found


def told(run: Path) -> list[Any]:
    """Read the log without the fields that depend on the clock."""
    names = ("kind", "iteration", "losses", "lr", "bbox", "segm", "validation_losses", "best")
    entries = [e for e in read_log(run / "log.jsonl") if e["kind"] in ("train", "eval")]
    return [{name: e.get(name) for name in names} for e in entries]


def killed_runs(count: int, seed: int = 0) -> tuple[int, list[str]]:
    """Kill until `count` kills are reached, at random writes, some of them during the resuming of a killed run.

    Returns:
        How often runs were killed, and a line for each run that did not end as it would have without.
    """
    dice, killed, failed = random.Random(seed), 0, list[str]()
    with tempfile.TemporaryDirectory() as folder:
        wholes = {s: Path(folder, s) for s in SETTINGS}
        writes = {s: writes_of(whole, s) for s, whole in wholes.items()}
        while killed < count:
            settings = dice.choice(list(SETTINGS))
            deaths = [dice.randrange(len(writes[settings])) for _ in range(dice.randint(1, 3))]
            run = Path(folder, "run")
            try:
                killed += kill_and_resume(run, settings, deaths)
                found = differences(wholes[settings], run)
            except Exception as e:  # any failure is a result of this trial
                found = [f"{type(e).__name__}: {e}"]
            failed += [f"{settings}, killed at {deaths}: {'; '.join(found)}"] if found else []
            shutil.rmtree(run, ignore_errors=True)
    return killed, failed


if __name__ == "__main__":
    torch.set_num_threads(1)
    killed, failed = killed_runs(int(sys.argv[1]))
    print(*failed, f"{killed} kills, {len(failed)} runs that ended otherwise", sep="\n")
