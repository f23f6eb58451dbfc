"""What the README and the manual show can be typed: Python blocks run, commands and settings exist.

Nothing is downloaded: models are tiny ones with random weights, and the files that pages speak of are made here.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import maskrcnn
from maskrcnn import presets
from maskrcnn.cli.main import VERBS, Parser, _add_max_pixels
from maskrcnn.config import field_names
from maskrcnn.data.synthetic import make_synthetic
from maskrcnn.weights.convert import write_as

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = "mask_rcnn_mobilenet_v2_FPN"


class Line(NamedTuple):
    page: str
    words: list[str]  # what follows `maskrcnn`
    whole: bool  # a line of a shell block, that can be typed as it is


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(page.read_text()) if language in languages]


def typed(text: str) -> Iterator[list[str]]:
    """The words after `maskrcnn` in each line of a shell block."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "maskrcnn" in words and (words[0] == "maskrcnn" or words[0] == "torchrun"):
            yield words[words.index("maskrcnn") + 1 :]


def commands() -> list[Line]:
    found = []
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        found += [Line(name, words, True) for text in blocks(page, "sh") for words in typed(text)]
        prose = FENCE.sub("", page.read_text())
        spans = [*re.findall(r"`([^`]+)`", prose), *"".join(blocks(page, "")).splitlines()]
        found += [Line(name, span.split()[1:], False) for span in spans if span.startswith("maskrcnn ")]
    return found


@pytest.fixture(scope="module")
def settings() -> set[str]:
    return {name for preset in presets.PRESETS for name in field_names(presets.get(preset))}


def parser_of(verb: str) -> Parser:
    parser = Parser(prog=f"maskrcnn {verb}", allow_abbrev=False)
    importlib.import_module(f"maskrcnn.cli.{verb}").add_arguments(parser)
    if "--max-pixels" not in parser._option_string_actions:  # `serve` has a limit of its own
        _add_max_pixels(parser)
    return parser


@pytest.mark.parametrize("line", commands(), ids=lambda line: f"{line.page}: {' '.join(line.words)}")
def test_commands_are_of_a_verb_and_its_options(line: Line, settings: set[str]) -> None:
    verb, *rest = line.words
    if verb.startswith("-"):
        assert verb in ("--help", "--version")
        return
    assert verb in VERBS
    parser = parser_of(verb)
    options = {word.split("=")[0] for word in rest if word.startswith("-") and "." not in word}
    assert options <= set(parser._option_string_actions)
    if verb == "train":
        assert {w[2:].split("=")[0] for w in rest if w.startswith("--") and "." in w} <= settings
    if line.whole:
        _, extra = parser.parse_known_args(rest)  # what is required is there, and of its type
        assert not extra or (verb == "train" and "." in extra[0])


def test_settings_in_the_prose_exist(settings: set[str]) -> None:
    unknown = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(r"`--([a-z_]+\.[a-z_.]+)", page.read_text())
        if name.rstrip(".") not in settings
    }
    assert not unknown


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        t for page in PAGES for text in blocks(page, "sh") for t in re.findall(r"^make (\w+)", text, re.M)
    }
    assert named
    assert named <= targets


def test_hooks_are_the_tools_of_make_lint() -> None:
    makefile = (ROOT / "Makefile").read_text()
    lint = makefile[makefile.index("\nlint:") : makefile.index("# What people install")]
    tools = [line.removesuffix(" .") for line in re.findall(r"\$\(BIN\)/(.+)", lint)]
    hooks = re.findall(r"entry: \.venv/bin/(.+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert [hook.removesuffix(" --force-exclude") for hook in hooks] == tools


def test_a_link_that_leads_nowhere_fails_the_manual(tmp_path: Path) -> None:
    (command,) = re.findall(r"\$\(BIN\)/(mkdocs .+)", (ROOT / "Makefile").read_text())
    text = (ROOT / "mkdocs.yml").read_text()
    settings = text[text.index("validation:") : text.index("\nnav:\n")]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: one\ntheme: mkdocs\n{settings}\n")
    (tmp_path / "docs").mkdir()
    statuses = []
    for page in ("# One\n", "# One\n\n[two](two.md)\n", "# One\n\n[there](#nowhere)\n"):
        (tmp_path / "docs" / "index.md").write_text(page)
        done = subprocess.run(
            [sys.executable, "-m", *command.split()], cwd=tmp_path, capture_output=True, text=True
        )
        statuses.append(done.returncode)
    assert statuses == [0, 1, 1], done.stderr


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {maskrcnn.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages' Python speaks of: photo.jpg, labels/ and a run."""
    folder = tmp_path_factory.mktemp("docs")
    make_synthetic(folder / "labels", num_train=3, num_val=1)
    shutil.copy(next((folder / "labels" / "train").glob("*.jpg")), folder / "photo.jpg")
    config = presets.get(NAME, tiny=True).model
    config.num_classes, config.class_names = 2, ("cell", "other")
    write_as(folder / "tiny.safetensors", config, maskrcnn.build(NAME, 2, tiny=True).state_dict())
    (folder / "runs" / "cells").mkdir(parents=True)
    shutil.copy(folder / "tiny.safetensors", folder / "runs" / "cells" / "model.safetensors")
    return folder


PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_blocks_run(
    page: Path, home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if any("nuclei.onnx" in text for text in blocks(page, "python")):
        shutil.copy(request.getfixturevalue("small_onnx"), home / "nuclei.onnx")
    monkeypatch.chdir(home)
    monkeypatch.setattr("maskrcnn.presets.get", _tiny(presets.get))
    monkeypatch.setattr("maskrcnn.zoo.by_name.published_weights", lambda name: _weights_of(home, name))
    names: dict[str, object] = {"__name__": "page"}
    for text in blocks(page, "python"):  # a page's blocks go on where the one before ended
        exec(compile(text, str(page), "exec"), names)


def _tiny(get):
    return lambda name, *, tiny=False: get(name, tiny=True)


def _weights_of(home: Path, name: str) -> Path:
    path = home / f"{name}.safetensors"
    model = maskrcnn.build(name, tiny=True)
    write_as(path, model.config, model.state_dict())
    return path
