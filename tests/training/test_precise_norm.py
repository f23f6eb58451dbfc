"""Renewed statistics are those of all batches together, and belong to the weights as they are."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import nn

from maskrcnn.training.precise_norm import renew_statistics
from maskrcnn.training.runlog import Display
from maskrcnn.training.trainer import Trainer
from tests.training.small_run import SmallModel, batches, small_config, small_run, validate


class NormModel(SmallModel):
    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.norm = nn.BatchNorm2d(4)


def test_statistics_are_those_of_all_batches_together() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3))
    stream = [torch.randn(2, 3, 4, 4) * 2 + k for k in range(5)]
    for x in stream:  # something to forget
        model(x * 100)
    calls = iter(stream)
    renew_statistics(model, lambda: model(next(calls)), 5)
    norm = model[0]
    everything = torch.cat(stream).transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean, everything.mean(1))
    # Each batch's variance is its unbiased one: 32 numbers, so 1/31 more of the part within batches.
    torch.testing.assert_close(norm.running_var, everything.var(1, correction=0), rtol=1 / 31, atol=0)
    assert norm.momentum == 0.1
    assert norm.num_batches_tracked == 5


def test_norms_that_do_not_learn_or_are_not_reached_are_left_alone() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.fixed = (nn.BatchNorm2d(3) for _ in range(3))
            self.fixed.eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fixed(self.used(x))

    model = Two()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    renew_statistics(model, lambda: model(torch.randn(2, 3, 4, 4)), 2)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"used.running_mean", "used.running_var"}


def test_a_run_ends_with_statistics_of_its_last_weights(tmp_path: Path) -> None:
    config = small_config(precise_norm_batches=3, evaluate_every=0)
    torch.manual_seed(7)
    model = NormModel()
    Trainer(model, config, tmp_path, batches=batches(), display=Display(stream=io.StringIO())).run()
    stream = batches()(config.train.iterations)
    with torch.no_grad():
        maps = [model.backbone(model.preprocess(next(stream)[0]).pixels) for _ in range(3)]
    mean = torch.cat(maps).mean((0, 2, 3))
    torch.testing.assert_close(model.norm.running_mean, mean)


def test_what_is_evaluated_has_renewed_statistics_and_training_does_not_notice(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def look(model: NormModel):
        seen.append(model.state_dict()["norm.running_mean"].clone())
        return validate(model)

    ends = []
    for k in (0, 3):
        torch.manual_seed(7)
        model = NormModel()
        config = small_config(precise_norm_batches=k)
        out = tmp_path / str(k)
        display = Display(stream=io.StringIO())
        Trainer(model, config, out, batches=batches(), validate=look, display=display).run()
        ends.append(dict(model.named_parameters()))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    plain, renewed = seen[:3], seen[3:]
    assert len(renewed) == 3
    assert all(not torch.allclose(a, b) for a, b in zip(plain, renewed, strict=True))


def test_a_model_without_batch_norms_has_nothing_to_renew(tmp_path: Path) -> None:
    result = small_run(tmp_path, small_config(precise_norm_batches=3))
    assert result.iterations == 12


def test_momentum_comes_back_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))

    def broken() -> None:
        raise ValueError("no batch")

    with pytest.raises(ValueError, match="no batch"):
        renew_statistics(model, broken, 2)
    assert model[0].momentum == 0.1
