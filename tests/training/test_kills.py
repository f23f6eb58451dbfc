"""Killed at each of its writes, or met with a full disk, a run goes on and ends with the same bytes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from maskrcnn.errors import UserError
from maskrcnn.training import checkpoint as disk
from tests.training.kills import (
    differences,
    first_of_each_kind,
    kill_and_resume,
    killed_runs,
    writes_of,
)
from tests.training.small_run import batches, small_config, small_run

WRITES = {
    "config": r"(fsync|replace) (new )?config.json|fsync \.$",
    "log": r"log.jsonl",
    "first checkpoint": r"iteration_000002|last",
    "files of a checkpoint": r"iteration_N\.tmp/|fsync .*iteration_N\.tmp$",
    "later checkpoint": r"replace .*iteration_N$|fsync checkpoints$",
    "removal": r"(replace|rmtree) .*\.iteration_N\.tmp$",
    "best": r"best\.safetensors",
    "model": r"(fsync|replace) (new )?model\.safetensors",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, list[str]]:
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, writes_of(run, "averaged")


@pytest.mark.slow
@pytest.mark.parametrize("what", WRITES)
def test_killed_at_each_write_a_run_resumes_to_the_same_bytes(tmp_path, whole, what):
    reference, writes = whole
    kinds = first_of_each_kind(writes)
    chosen = [k for k, name in kinds.items() if re.search(WRITES[what], name)]
    assert chosen
    for k in chosen:
        run = tmp_path / str(k)
        assert kill_and_resume(run, "averaged", [k]) == 1
        assert differences(reference, run) == [], f"killed before: {writes[k]}"


def test_no_kind_of_write_is_left_out(whole):
    kinds = first_of_each_kind(whole[1]).values()
    assert [k for k in kinds if not any(re.search(w, k) for w in WRITES.values())] == []


@pytest.mark.slow
def test_killed_again_and_again_runs_of_every_setting_resume_to_the_same_bytes():
    killed, failed = killed_runs(12)
    assert killed >= 12
    assert failed == []


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """File system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no small file system: mounting one needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_in_one_line_and_it_goes_on_when_there_is_room(tmp_path, small_disk):
    """Filled in the fifth iteration, up to a few pages, the disk refuses another write each time."""
    torch.set_num_threads(1)
    config = small_config(ema_decay=0.9, keep_checkpoints=2)
    small_run(tmp_path / "whole", config)
    ballast, refused = small_disk / "ballast", set[str]()

    def filling(pages: int):
        def stream(iteration):
            for batch in batches()(iteration):
                if batch[2][0] == 400:
                    end_a_page(small_disk / "run" / "log.jsonl")
                    fill(ballast, leave=4096 * pages)
                yield batch

        return stream

    for pages in range(12):
        run = small_disk / "run"
        with pytest.raises(UserError, match=r"cannot write: .*no space") as caught:
            small_run(run, config, batches=filling(pages))
        assert "\n" not in str(caught.value)
        refused.add(Path(str(caught.value).split(": ")[0]).name)
        for folder in disk.checkpoints(run):
            disk.load_checkpoint(folder)
        ballast.unlink()
        small_run(run, config, resume=True)
        assert differences(tmp_path / "whole", run) == []
        subprocess.run(["rm", "-r", str(run)], check=True)
    assert {"log.jsonl", "model.safetensors", "state.pt"} <= refused


def end_a_page(log: Path) -> None:
    """Add a line that is none of the log's, so that its next line needs another page."""
    with log.open("ab") as file:
        file.write(b" " * (-file.tell() % 4096 - 1) + b"\n")


def fill(ballast: Path, leave: int) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - leave))
