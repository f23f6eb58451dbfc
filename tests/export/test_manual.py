"""The manual's C++ for OpenVINO compiles. JavaScript runs with the page's tests, Python with all pages'."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOWTO = Path(__file__).resolve().parents[2] / "docs/howto"
pytestmark = pytest.mark.slow


def block(page: str, language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", (HOWTO / page).read_text(), re.MULTILINE | re.DOTALL)
    return text


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's compiler")
def test_the_openvino_c_plus_plus_compiles(tmp_path: Path) -> None:
    openvino, compiler = pytest.importorskip("openvino"), shutil.which("g++")
    include = Path(openvino.__file__).parent / "include"
    if compiler is None or not include.is_dir():
        pytest.skip("no g++, or an OpenVINO without its headers")
    (tmp_path / "main.cpp").write_text(block("export_openvino.md", "cpp"))
    command = [compiler, "-std=c++17", "-Wall", "-fsyntax-only", f"-I{include}", "main.cpp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
