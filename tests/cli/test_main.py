"""The frame of the command line: exit statuses, one line for a mistake, help without waiting for torch."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec

import pytest

from maskrcnn.cli import main as cli
from maskrcnn.errors import UserError
from maskrcnn.version import __version__

Verb = Callable[..., int]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Verb], None]:
    """Installer of a verb `fake` with the options --width N and --device, and the given main."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--width", type=int)
        parser.add_argument("--device", choices=("cpu", "cuda"))

    def install(main: Verb) -> None:
        module = types.ModuleType("maskrcnn.cli.fake", "A verb of the tests.")
        module.__spec__ = ModuleSpec("maskrcnn.cli.fake", None)
        module.__dict__.update(add_arguments=add_arguments, main=main)
        monkeypatch.setitem(sys.modules, "maskrcnn.cli.fake", module)
        monkeypatch.setitem(cli.VERBS, "fake", "for tests")

    return install


def refused(capsys: Captured, *argv: str) -> str:
    """Line that a refused command prints, its only one."""
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("maskrcnn: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.rstrip("\n")


def test_version_and_help(capsys: Captured) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"maskrcnn {__version__}\n"
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {v} " in out for v in cli.VERBS)


def test_a_verb_gets_its_options_and_gives_the_status(verb, capsys: Captured) -> None:
    verb(lambda args: args.width)
    assert cli.main(["fake", "--width", "3"]) == 3


def test_a_verb_that_takes_settings_gets_what_is_left(verb) -> None:
    seen = []

    def main(args: argparse.Namespace, extra: list[str]) -> int:
        seen.append((args.width, extra))
        return 0

    verb(main)
    assert cli.main(["fake", "--optim.lr", "0.01", "--width", "3", "--train.seed=1"]) == 0
    assert seen == [(3, ["--optim.lr", "0.01", "--train.seed=1"])]


def test_unknown_verb_names_the_nearest(capsys: Captured) -> None:
    assert "unknown command 'lisst'. Did you mean 'list'?" in refused(capsys, "lisst")
    assert "expected a command" in refused(capsys)


def test_option_mistakes_are_one_line(verb, capsys: Captured) -> None:
    verb(lambda args: 0)
    assert "fake: unknown option '--widht'. Did you mean '--width'?" in refused(
        capsys, "fake", "--widht", "3"
    )
    assert "fake: unknown option '--wid=3'. Did you mean '--width'?" in refused(capsys, "fake", "--wid=3")
    assert "fake: argument --width: invalid int value: 'x'" in refused(capsys, "fake", "--width", "x")
    assert "invalid choice: 'gpu'" in refused(capsys, "fake", "--device", "gpu")
    assert "fake: unexpected argument 'photo.jpg'" in refused(capsys, "fake", "photo.jpg")


def test_verb_help_is_status_0(verb, capsys: Captured) -> None:
    verb(lambda args: 1)
    assert cli.main(["fake", "--help"]) == 0
    assert "A verb of the tests." in capsys.readouterr().out


def test_users_mistakes_are_one_line_without_control_characters(verb, capsys: Captured) -> None:
    def main(args: argparse.Namespace) -> int:
        raise UserError("a\nb\x1b[31m.jpg: not an image.")

    verb(main)
    assert refused(capsys, "fake") == "maskrcnn: a b?[31m.jpg: not an image."


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOENT])
def test_what_the_file_system_refuses_is_one_line(verb, capsys: Captured, number: int) -> None:
    def main(args: argparse.Namespace) -> int:
        raise OSError(number, "The Reason", "out/a.json")

    verb(main)
    assert refused(capsys, "fake") == "maskrcnn: out/a.json: the reason."


def test_a_bug_keeps_its_traceback(verb) -> None:
    def main(args: argparse.Namespace) -> int:
        raise OSError(errno.EBADF, "Bad file descriptor")

    verb(main)
    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main(["fake"])


def test_interrupt_is_130(verb, capsys: Captured) -> None:
    def main(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    verb(main)
    assert cli.main(["fake"]) == 130
    assert capsys.readouterr().err == "maskrcnn: interrupted\n"


def test_a_reader_that_leaves_is_met_with_silence() -> None:
    code = (
        "import sys; from maskrcnn.cli import main as cli\n"
        "cli._help = lambda: 'line\\n' * 100_000\n"
        "sys.exit(cli.main(['--help']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], *([v, "--help"] for v in cli.VERBS)], ids=" ".join
)
def test_help_does_not_import_torch(argv: list[str]) -> None:
    code = (
        "import sys; from maskrcnn.cli.main import main\n"
        f"assert main({argv!r}) == 0\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'pydantic', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "maskrcnn", "nothing"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_names_that_the_terminal_has_no_letters_for_are_printed_all_the_same() -> None:
    code = (
        "import sys; from maskrcnn.cli import main as cli\n"
        "cli._help = lambda: 'gr\\u00fcn \\ud800'\n"
        "sys.argv = ['maskrcnn', '--help']; cli.run()"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"gr\\xfcn \\ud800\n", b"")


def test_a_limit_of_pixels_holds_for_the_verb(tmp_path, capsys, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("MASKRCNN_MAX_PIXELS", "")
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("names: [a]\ntrain: a.png\n")
    cli.main(["doctor", str(tmp_path), "--max-pixels", "199"])
    captured = capsys.readouterr()
    assert "limit of 199" in captured.out + captured.err
    assert cli.main(["doctor", str(tmp_path), "--max-pixels", "0"]) == 2


def test_a_fault_of_ours_names_the_machine(monkeypatch, capsys):
    """The traceback follows, with Python's status 1."""

    def fail(argv):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "main", fail)
    monkeypatch.setattr("sys.argv", ["maskrcnn", "list"])
    with pytest.raises(ZeroDivisionError):
        cli.run()
    said = capsys.readouterr().err
    assert said.startswith("A fault of maskrcnn")
    assert "torch" in said
    assert said.count("\n") == 1
