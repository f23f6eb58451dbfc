"""A folder is one training's at a time, and nobody's after a kill."""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
from pathlib import Path

import pytest

from maskrcnn.errors import UserError
from maskrcnn.training.lock import run_lock
from maskrcnn.training.train import train
from tests.training.small_run import PRELOAD, small_config


def hold(run: Path, ready: multiprocessing.connection.Connection) -> None:
    with run_lock(run):
        worker = os.fork()  # as a data loading worker, which outlives its killed parent
        if worker:
            ready.send(worker)
        signal.pause()


def test_a_lock_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"\.lock: cannot write"), run_lock(tmp_path):
        pass


def test_a_second_training_is_refused_and_a_kill_frees_the_folder(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    ours, its = context.Pipe()
    holder = context.Process(target=hold, args=(tmp_path / "run", its))
    holder.start()
    worker = ours.recv()
    try:
        with pytest.raises(UserError, match="another process is training into this folder") as caught:
            train(small_config(), tmp_path / "run")
        assert "\n" not in str(caught.value)
        holder.kill()
        holder.join()
        with run_lock(tmp_path / "run"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
    assert not list((tmp_path / "run").iterdir())
