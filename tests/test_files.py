"""Output files: checked before the work, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from maskrcnn.errors import UserError
from maskrcnn.files import atomic_path, check_writable, check_writable_folder, write_atomic

as_root = os.geteuid() == 0


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_writes_text_and_bytes_and_makes_folders(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a/b/c.json", "grün")
    write_atomic(tmp_path / "a/b/d.bin", b"\x00\xff")
    assert (tmp_path / "a/b/c.json").read_text(encoding="utf-8") == "grün"
    assert (tmp_path / "a/b/d.bin").read_bytes() == b"\x00\xff"
    assert listing(tmp_path / "a/b") == ["c.json", "d.bin"]


def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old"
    assert listing(tmp_path) == ["a.txt"]


def test_new_files_get_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    usual = (tmp_path / "plain").stat().st_mode
    with atomic_path(tmp_path / "atomic") as temporary:
        temporary.touch(mode=0o600)  # as some libraries do
    assert (tmp_path / "atomic").stat().st_mode == usual


def test_the_temporary_file_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"")
    assert listing(tmp_path) == ["a.png"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_checks_pass_where_writing_works(tmp_path: Path) -> None:
    assert check_writable(tmp_path / "new/a.json") == tmp_path / "new/a.json"
    assert check_writable_folder(tmp_path / "out") == tmp_path / "out"
    assert listing(tmp_path) == ["new", "out"]
    assert listing(tmp_path / "new") == listing(tmp_path / "out") == []


def test_wrong_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="got a folder"):
        check_writable(tmp_path)
    with pytest.raises(UserError, match="got a file"):
        check_writable_folder(tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot write: (not a directory|file exists)"):
        check_writable(tmp_path / "file/below.json")
    with pytest.raises(UserError, match=r"cannot write: (not a directory|file exists)"):
        write_atomic(tmp_path / "file/below.json", "")


def test_no_space_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"0\.0 MB left on the disk, 1\.0 MB needed"):
        check_writable(tmp_path / "a.json")
    with pytest.raises(UserError, match="left on the disk"):
        check_writable_folder(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_device_is_a_users_error_and_is_not_replaced() -> None:
    with pytest.raises(UserError, match="/dev/full: cannot write: no space left on device"):
        write_atomic("/dev/full", "x")
    assert not Path("/dev/full").is_file()


@pytest.mark.skipif(as_root, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="permission denied"):
        check_writable(tmp_path / "a.json")
