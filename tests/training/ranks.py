"""Processes started as `torchrun` starts them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import torch

from maskrcnn.config import Config
from maskrcnn.errors import Interrupted, UserError
from tests.training.small_run import PRELOAD


def _rank(
    work: Any, rank: int, count: int, port: int, out: Path, config: Config, bad: tuple[int, ...]
) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of data loading workers, as in a command
    try:
        work(out, config, bad)
    except UserError:
        raise SystemExit(7) from None
    except Interrupted as e:
        raise SystemExit(e.status) from None


def run_ranks(
    work: Any,
    out: Path,
    config: Config,
    bad: tuple[int, ...] = (),
    expected_exit: int = 0,
    count: int = 2,
) -> None:
    ranks = start_ranks(work, out, config, bad, count)
    for rank in ranks:
        rank.join(300)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert codes == [expected_exit] * count


def start_ranks(work: Any, out: Path, config: Config, bad: tuple[int, ...], count: int) -> list[Any]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("forkserver")  # imports once for all
    context.set_forkserver_preload(PRELOAD)
    ranks = [
        context.Process(target=_rank, args=(work, r, count, port, out, config, bad)) for r in range(count)
    ]
    for rank in ranks:
        rank.start()
    return ranks
