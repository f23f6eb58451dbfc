"""A container's share of time, as control groups of both versions tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskrcnn import cores, processor
from maskrcnn.cores import core_limit, usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_allowed", lambda: 8)


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/", {"cpu.max": "20000 100000\n"}, 1),
        ("0::/", {"cpu.max": "max 100000\n"}, None),
        ("0::/", {"cpu.max": "1600000 100000\n"}, None),  # of more cores than there are
        ("0::/", {"cpu.max": "what\n"}, None),
        ("0::/", {}, None),
        # The least of those above it; and in a container whose path is the host's.
        ("0::/a/b", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/kubepods/pod7", {"cpu.max": "400000 100000\n"}, 4),
        (
            "4:memory:/m\n3:cpu,cpuacct:/docker/x\n0::/",
            {"cpu/docker/x/cpu.cfs_quota_us": "150000\n", "cpu/docker/x/cpu.cfs_period_us": "100000\n"},
            2,
        ),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("3:memory:/", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ],
)
def test_a_share_of_time_is_a_number_of_cores(
    tmp_path: Path, groups: str, files: dict[str, str], limit: int | None
) -> None:
    assert core_limit(system(tmp_path, groups, files)) == limit


def test_a_system_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert core_limit(tmp_path) is None


def test_threads_are_no_more_than_a_share_of_time_is_good_for(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = [8]
    monkeypatch.setattr(processor.torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(processor.torch, "set_num_threads", threads.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for module in (cores, processor):
        monkeypatch.setattr(module, "core_limit", lambda: 3)
    assert usable_cores() == 3
    processor.use_cores()
    assert threads[1:] == [3]
    processor.use_cores(5)
    assert threads[1:] == [3, 5]
    monkeypatch.setenv("OMP_NUM_THREADS", "8")  # somebody has chosen
    processor.use_cores()
    assert threads[1:] == [3, 5]
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(processor, "core_limit", lambda: None)
    processor.use_cores()
    assert threads[1:] == [3, 5]
