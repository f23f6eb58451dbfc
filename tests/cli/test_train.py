"""Arguments of `maskrcnn train`, without training."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from maskrcnn.cli import train
from maskrcnn.config import field_names, to_json
from maskrcnn.errors import UserError
from maskrcnn.presets import get


def parsed(*words: str) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    train.add_arguments(parser)
    return parser.parse_known_args([*words, "--out", "run"])


def test_options_and_settings_reach_the_config():
    config = train.config_from(
        *parsed(
            "--model", "mask_rcnn_R_50_FPN_1x", "--data", "cells", "--weights", "w.pkl",
            "--optim.lr", "0.01", "--data.augment.min_sizes=64,96", "--train.max_minutes", "5",
        )
    )  # fmt: skip
    assert (config.data.train, config.train.weights) == ("cells", "w.pkl")
    assert (config.optim.lr, config.data.augment.min_sizes, config.train.max_minutes) == (0.01, (64, 96), 5.0)


def test_a_config_file_is_taken_back(tmp_path):
    config = get("mask_rcnn_R_50_FPN_3x", tiny=True)
    (tmp_path / "config.json").write_text(to_json(config))
    assert train.config_from(*parsed("--config", str(tmp_path / "config.json"))) == config


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--optim.lrr", "1"], r"--optim\.lrr: no such setting\. Did you mean 'optim\.lr'"),
        (["--optim.lr"], "expected a value"),
        (["--optim.lr", "fast"], r"--optim\.lr 'fast'"),
        (["--wieghts", "x"], "Did you mean 'weights'"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_mistakes_are_named(words, match):
    with pytest.raises(UserError, match=match) as caught:
        train.config_from(*parsed("--model", "mask_rcnn_R_50_FPN_1x", *words))
    assert "\n" not in str(caught.value)


def test_one_of_model_and_config_is_needed():
    with pytest.raises(UserError, match="one of --model NAME and --config FILE"):
        train.config_from(*parsed())


def test_help_lists_the_settings_without_torch():
    code = (
        "import sys; from maskrcnn.cli.main import main; status = main(['train', '--help']); "
        "assert status == 0 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in field_names(get("mask_rcnn_R_50_FPN_1x")):
        assert f"--{name} " in done.stdout or name in train.FROM_THE_DATA_SET
