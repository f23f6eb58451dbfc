"""Abilities of the processor, which are found by trying; poorer processors give the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn import UserError, processor
from maskrcnn.config import TrainConfig, to_dict
from maskrcnn.engines.convolutions import adds_in_convolution
from tests.poorer import MACHINES, run_as
from tests.poorer_models import EACH_OPERATOR, FAMILIES, IN_FP16

OPERATORS = (
    "tests/backbones/test_layers.py",
    "tests/engines/test_winograd.py",
    "tests/ops/test_sampling.py",
    "tests/ops/test_deformable.py",
)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Results of the models on the processor at hand."""
    return said_as({}, tmp_path_factory.mktemp("native"), FAMILIES)


def said_as(machine: dict[str, str], folder: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    done = run_as(machine, "-W", "error", "-m", "tests.poorer_models", str(folder / "said.npz"), *names)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "said.npz") as file:
        return dict(file)


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_a_poorer_processor_gives_the_same_detections(
    machine: str, native: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """In float32 those of the processor at hand: 1e-5 of a logit's spread were measured on AVX2, 2e-5 on SSE4.

    In bfloat16 the heads' logits of given RoIs, since its rounding (1 % of the spread, 7 % where group norms magnify
    it) decides between detections of random weights.
    """
    names = FAMILIES if machine in ("AVX2", "SSE4", "no oneDNN") else EACH_OPERATOR
    found = said_as(MACHINES[machine], tmp_path, names)
    assert found.keys() == {key for key in native if key.split()[0] in names}
    for name in names:
        parts = sorted(key.split()[2] for key in found if key.startswith(f"{name} fp32 "))
        for part in set(parts) - {"boxes", "scores", "labels"}:
            wanted = native[f"{name} fp32 {part}"]
            exact, rough = (found[f"{name} {precision} {part}"] - wanted for precision in ("fp32", "bf16"))
            assert np.abs(exact).max() < 1e-4 * wanted.std(), (name, part)
            assert np.sqrt(np.mean(rough**2)) < 0.12 * wanted.std(), (name, part)
            if name in IN_FP16:  # 0.1 to 0.2 % of the spread
                half = found[f"{name} fp16 {part}"] - wanted
                assert np.sqrt(np.mean(half**2)) < 0.01 * wanted.std(), (name, part)
        same, all_of_them = detections_in_both(native, found, f"{name} fp32")
        assert all_of_them > 10
        assert same >= all_of_them - 1, name  # two boxes may overlap by just the limit
        assert np.isfinite(found[f"{name} bf16 boxes"]).all()
        assert len(found[f"{name} bf16 boxes"]) > 10


def detections_in_both(a: dict[str, np.ndarray], b: dict[str, np.ndarray], key: str) -> tuple[int, int]:
    """Count a's detections that are among b's, in the same class, place and score, and all of a's."""
    boxes, scores, labels = (
        (a[f"{key} {part}"][:, None], b[f"{key} {part}"][None]) for part in ("boxes", "scores", "labels")
    )
    same = (np.abs(boxes[0] - boxes[1]).max(2) < 0.05) & (np.abs(scores[0] - scores[1]) < 1e-3)
    return int((same & (labels[0] == labels[1])).any(1).sum()), len(same)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "files"), [("AVX2", OPERATORS), ("SSE4", OPERATORS[:2]), ("no oneDNN", OPERATORS[:1])]
)
def test_operators_hold_on_a_poorer_processor(machine: str, files: tuple[str, ...]) -> None:
    # Graphs and registered operators are alike on every processor, and take longest.
    some = ("-m", "not slow", "-k", "not compile and not trace and not export and not registered")
    options = ("-q", "-p", "tests.poorer", "-p", "no:cacheprovider", *some)
    done = run_as(MACHINES[machine], "-m", "pytest", *options, *files)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_the_kind_follows_what_onednn_may_use() -> None:
    """Also where flags of the processor say more."""
    say = "from maskrcnn import processor; print(processor.kind(), processor.describe().line(), sep='|')"
    for machine, kinds in (("AVX2", {"avx2", "other"}), ("SSE4", {"other"})):
        done = run_as(MACHINES[machine], "-c", say)
        kind, line = done.stdout.strip().split("|")
        assert kind in kinds, done.stderr
        assert "oneDNN below AVX512" in line
        assert "torch" in line


def test_a_description_has_one_line_and_every_fact() -> None:
    description = processor.describe()
    line = description.line()
    assert "\n" not in line
    for fact in (description.processor, description.torch, description.torchvision, "bf16", "fp16", "MKL"):
        assert fact in line
    assert description.to_dict()["kind"] == processor.kind()


def test_switching_onednn_off_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not processor.has_onednn()
    assert not adds_in_convolution(torch.float32)
    assert "oneDNN off" in processor.describe().line()


@pytest.mark.parametrize(
    ("speed", "words"), [(0.07, "imitates bf16: 0.07"), (0.6, "is slower in bf16: 0.60")]
)
def test_a_slow_precision_is_told_in_one_line(
    speed: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "relative_speed", lambda dtype, training=False: speed)
    said = processor.remark("bf16", "cpu")
    assert said is not None
    assert words in said
    assert "\n" not in said
    assert processor.remark("fp32", "cpu") is None
    assert processor.fast_precision("cpu") == "fp32"


def test_a_fast_precision_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "relative_speed", lambda dtype, training=False: 2.0)
    assert processor.fast_precision("cpu") == "bf16"
    assert processor.remark("bf16", "cpu") is None


def test_speeds_are_measured() -> None:
    processor.relative_speed.cache_clear()
    threads = torch.get_num_threads()
    with torch.inference_mode():  # as a model may be loaded in
        speed = processor.relative_speed(torch.float64, training=True)
    assert 0 < speed < 2  # twice the bytes
    assert torch.get_num_threads() == threads


def test_a_type_that_cannot_convolve_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(dtype: torch.dtype, training: bool) -> float:
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(processor, "_convolution_seconds", fail)
    assert processor.relative_speed.__wrapped__(torch.float16) == 0


class TestDevices:
    def test_any_name_that_torch_knows_is_parsed(self) -> None:
        for name in ("cpu", "cuda:1", "mps", "xpu"):
            assert processor.parse_device(name).type == name.split(":")[0]

    def test_none_is_what_there_is(self) -> None:
        assert processor.find_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")

    @pytest.mark.parametrize("name", ["gpu", "tpu9", "", "cuda:x"])
    def test_no_device_of_torch(self, name: str) -> None:
        with pytest.raises(UserError, match="device: expected cpu, cuda, mps, xpu"):
            processor.find_device(name)

    @pytest.mark.parametrize("name", ["mps", "xpu", "cuda:77"])
    def test_none_on_this_machine(self, name: str) -> None:
        if name == "mps" and torch.backends.mps.is_available():
            pytest.skip("there is one here")
        with pytest.raises(UserError, match=f"no '{name}' on this machine"):
            processor.find_device(name)

    @pytest.mark.skipif(
        torch.cuda.is_available() or not torch.backends.cuda.is_built(), reason="a build for CUDA, no GPU"
    )
    def test_a_driver_that_is_too_old_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def begin() -> None:  # in PyTorch's words
            raise RuntimeError(
                "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
                "downloading and installing a new version."
            )

        monkeypatch.setattr(torch._C, "_cuda_init", begin)
        with pytest.raises(UserError) as caught:
            processor.find_device("cuda")
        assert str(caught.value) == (
            "device: no 'cuda' on this machine; there are 0 "
            "(The NVIDIA driver on your system is too old (found version 11040)). Use cpu."
        )


def test_a_config_keeps_the_precision_that_was_chosen(tmp_path: Path) -> None:
    """A run that began in float32 goes on in it, also where bfloat16 would be chosen now."""
    from maskrcnn import presets
    from maskrcnn.files import write_atomic
    from maskrcnn.training.distributed import Process
    from maskrcnn.training.train import settle_precision

    config = presets.get("mask_rcnn_mobilenet_v2_FPN")
    assert config.train.precision == "auto"
    said: list[str] = []
    process = Process(torch.device("cpu"))
    settle_precision(config, tmp_path, process, said.append)
    assert config.train.precision == processor.fast_precision("cpu")
    assert said[0].startswith(f"precision: {config.train.precision}")
    other = "bf16" if config.train.precision == "fp32" else "fp32"
    config.train.precision = other
    write_atomic(tmp_path / "config.json", json.dumps(to_dict(config)))
    again = presets.get("mask_rcnn_mobilenet_v2_FPN")
    settle_precision(again, tmp_path, process, said.append)
    assert again.train.precision == other
    assert TrainConfig().precision == "fp32"
