"""Training loop: the numbers it computes, the lines it says and the files it writes."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from maskrcnn.config import ModelConfig, from_dict, from_file
from maskrcnn.errors import UserError
from maskrcnn.training.checkpoint import checkpoints, load_checkpoint
from maskrcnn.training.distributed import Process
from maskrcnn.training.runlog import Display, read_log
from maskrcnn.training.trainer import NonFiniteLossError, Trainer
from tests.training.small_run import SmallModel, batches, small_config, small_run, validate


def one_step(config: Any, **kwargs: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Weights and losses after a single step from fixed weights, without dropout."""
    torch.manual_seed(3)
    trainer = Trainer(SmallModel(dropout=0.0), config, Path(), batches=batches(), **kwargs)
    step = trainer._step(*next(batches()(0)), lr=0.1)
    means = step.means[:, :-1].mean(0).tolist()
    return trainer.model.state_dict(), dict(zip(step.names, means, strict=True))


def test_a_step_is_plain_sgd_on_the_sum_of_the_losses():
    torch.manual_seed(3)
    model = SmallModel(dropout=0.0)
    images, targets, _ = next(batches()(0))
    losses = model(model.preprocess(images), targets)
    torch.stack(list(losses.values())).sum().backward()
    weights, said = one_step(small_config())
    for name, p in model.named_parameters():
        assert p.grad is not None
        decay = 0.0 if name.startswith("norm") else 1e-4
        torch.testing.assert_close(weights[name], p.detach() - 0.1 * (p.grad + decay * p.detach()))
    assert said == pytest.approx({k: v.item() for k, v in losses.items()})


def test_accumulation_averages_the_micro_batches():
    config = small_config()
    config.optim.accumulation_steps = 2
    torch.manual_seed(3)
    model = SmallModel(dropout=0.0)
    images, targets, _ = next(batches()(0))
    for part in (slice(0, 2), slice(2, 4)):
        losses = model(model.preprocess(images[part]), targets[part])
        (torch.stack(list(losses.values())).sum() / 2).backward()
    weights, _ = one_step(config)
    p = model.head.weight
    assert p.grad is not None
    torch.testing.assert_close(weights["head.weight"], p.detach() - 0.1 * (p.grad + 1e-4 * p.detach()))


def test_clipping_bounds_the_step():
    config = small_config()
    config.optim.clip_grad_norm, config.optim.weight_decay = 0.01, 0.0
    torch.manual_seed(3)
    before = SmallModel().state_dict()
    after, _ = one_step(config)
    moved = math.sqrt(sum((after[k] - before[k]).square().sum().item() for k in before))
    assert moved == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_frozen_parameters_stay(tmp_path):
    model = SmallModel()
    model.backbone.requires_grad_(False)
    before = model.backbone.weight.clone()
    Trainer(model, small_config(), tmp_path, batches=batches(), display=quiet()).run()
    assert torch.equal(model.backbone.weight, before)
    assert not torch.equal(model.head.weight, SmallModel().head.weight)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precisions_train(tmp_path, precision):
    small_run(tmp_path, small_config(precision=precision))
    assert all(v.dtype == torch.float32 for v in load_file(tmp_path / "model.safetensors").values())


def test_a_run_leaves_its_files_and_a_log_that_tells_it_all(tmp_path):
    config = small_config(keep_checkpoints=2)
    result = small_run(tmp_path, config)
    assert (result.iterations, result.stopped_by) == (12, "iterations")
    assert [f.name for f in checkpoints(tmp_path)] == ["iteration_000009", "iteration_000012"]
    assert (tmp_path / "last").read_text().strip() == "checkpoints/iteration_000012"
    assert from_file(tmp_path / "config.json") == config
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert from_dict(ModelConfig, json.loads(file.metadata()["config"]), "metadata") == config.model
    log = read_log(tmp_path / "log.jsonl")
    assert [e["iteration"] for e in log if e["kind"] == "train"] == [2, 4, 6, 8, 10, 12]
    evaluations = [e for e in log if e["kind"] == "eval"]
    assert [e["iteration"] for e in evaluations] == [4, 8, 12]
    assert max(e["segm"]["AP"] for e in evaluations) == result.best["segm"]["AP"]  # pyright: ignore[reportOptionalSubscript]
    line = next(e for e in log if e["kind"] == "train")
    assert line["loss"] == pytest.approx(sum(line["losses"].values()))
    assert {"losses", "lr", "images_per_second", "seconds"} <= line.keys()
    assert not list(tmp_path.rglob(".*"))


def test_best_holds_the_weights_of_the_best_evaluation(tmp_path):
    scores = iter([0.1, 0.5, 0.3])
    seen = []

    def score_in_turn(model):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"bbox": {"AP": 0.0}, "segm": {"AP": next(scores)}}

    result = small_run(tmp_path, small_config(), validate=score_in_turn)
    best = load_file(tmp_path / "best.safetensors")
    assert all(torch.equal(best[k], seen[1][k]) for k in best)
    assert result.best["iteration"] == 8  # pyright: ignore[reportOptionalSubscript]


def test_early_stopping_waits_for_its_patience(tmp_path):
    scores = iter([0.5, 0.6, 0.4, 0.6, 0.9])

    def falling(model):
        return {"segm": {"AP": next(scores)}}

    result = small_run(tmp_path, small_config(iterations=100, early_stopping=2), validate=falling)
    assert (result.stopped_by, result.iterations) == ("early stopping", 16)
    again = small_run(tmp_path, small_config(iterations=100, early_stopping=2), resume=True)
    assert (again.stopped_by, again.iterations) == ("early stopping", 16)


def test_evaluation_does_not_change_training(tmp_path):
    small_run(tmp_path / "with", small_config())
    small_run(tmp_path / "without", small_config(), validate=None)
    assert_same_weights(tmp_path / "with", tmp_path / "without")


def test_the_average_is_evaluated_and_kept(tmp_path):
    seen = []

    def look(model):
        seen.append(model.head.weight.detach().clone())
        return validate(model)

    small_run(tmp_path, small_config(ema_decay=0.9), validate=look)
    final = load_file(tmp_path / "model.safetensors")
    kept = load_checkpoint(checkpoints(tmp_path)[-1])
    assert torch.equal(final["head.weight"], seen[-1])
    assert torch.equal(final["head.weight"], kept.average["head.weight"])  # pyright: ignore[reportOptionalSubscript]
    assert not torch.equal(final["head.weight"], kept.model["head.weight"])


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    small_run(tmp_path / "whole", small_config(ema_decay=0.9))
    run = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        small_run(run, small_config(ema_decay=0.9), batches=interrupted(7))
    small_run(run, small_config(ema_decay=0.9), resume=True)
    assert_same_weights(tmp_path / "whole", run)
    assert told(run) == told(tmp_path / "whole")


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    small_run(tmp_path / "whole", small_config())
    run = tmp_path / "parts"
    small_run(run, small_config(), resume=True, batches=batches())
    assert_same_weights(tmp_path / "whole", run)
    early = tmp_path / "early"
    with pytest.raises(KeyboardInterrupt):
        small_run(early, small_config(), batches=interrupted(1))
    small_run(early, small_config(), resume=True)
    assert_same_weights(tmp_path / "whole", early)


def test_a_finished_run_can_be_resumed_for_longer_but_not_differently(tmp_path):
    small_run(tmp_path, small_config())
    changed = small_config()
    changed.optim.lr = 0.1
    with pytest.raises(UserError, match=r"--optim.lr: .*has 0.05, got 0.1"):
        small_run(tmp_path, changed, resume=True)
    assert from_file(tmp_path / "config.json").optim.lr == 0.05
    result = small_run(tmp_path, small_config(iterations=15), resume=True)
    assert result.iterations == 15
    messages = [e["message"] for e in read_log(tmp_path / "log.jsonl") if e["kind"] == "event"]
    assert "train.iterations: 12 before, now 15" in messages


def test_a_folder_with_something_in_it_is_not_touched(tmp_path):
    small_run(tmp_path, small_config(iterations=3))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"not empty.*--resume"):
        small_run(tmp_path, small_config())
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="no run to resume"):
        small_run(other, small_config(), resume=True)


def test_output_trouble_is_found_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="got a file"):
        small_run(tmp_path / "file", small_config())
    full = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    with pytest.raises(UserError, match="MB needed"):
        small_run(tmp_path / "full", small_config())


def test_a_loss_that_is_not_finite_stops_and_loses_nothing(tmp_path):
    with pytest.raises(NonFiniteLossError) as caught:
        small_run(tmp_path, small_config(), batches=batches(bad=(7,)))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("iteration 8", "loss_area", "nan", "700, 701, 702, 703", "iteration_000006"):
        assert part in message
    details = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (details["iteration"], details["terms"]) == (8, ["loss_area"])
    assert details["image_ids"] == [700, 701, 702, 703]
    kept = load_checkpoint(checkpoints(tmp_path)[-1])
    assert kept.state["iteration"] == 6
    assert all(v.isfinite().all() for v in kept.model.values())


def test_broken_weights_never_become_a_checkpoint(tmp_path):
    class Exploding(SmallModel):
        def forward(self, batch, targets):
            losses = super().forward(batch, targets)
            # the square root's derivative at 0 is infinite: a finite loss with a gradient that is not
            return {**losses, "loss_root": (self.head.bias * 0).abs().sqrt().sum()}

    with pytest.raises(NonFiniteLossError, match=r"weights .* not finite"):
        Trainer(
            Exploding(), small_config(checkpoint_every=1), tmp_path, batches=batches(), display=quiet()
        ).run()
    assert checkpoints(tmp_path) == []


def test_the_clock_ends_a_run_with_a_time_budget(tmp_path, monkeypatch):
    now = iter(range(10_000))
    monkeypatch.setattr("maskrcnn.training.runlog.time.monotonic", lambda: float(next(now)))
    config = small_config(iterations=1000, max_minutes=0.5, evaluate_every=0)
    config.optim.milestones = (500,)
    result = small_run(tmp_path, config)
    assert result.stopped_by == "time"
    assert 30 <= result.seconds < 35
    rates = [(e["seconds"], e["lr"]) for e in read_log(tmp_path / "log.jsonl") if e["kind"] == "train"]
    assert {lr for s, lr in rates if 5 < s <= 15} == {0.05}
    assert [lr for s, lr in rates if s > 17] == pytest.approx([0.005] * sum(s > 17 for s, _ in rates))
    longer = small_config(iterations=1000, max_minutes=1, evaluate_every=0)
    longer.optim.milestones = (500,)
    assert 60 <= small_run(tmp_path, longer, resume=True).seconds < 65


@pytest.mark.parametrize(
    ("section", "name", "value", "match"),
    [
        ("data", "batch_size", 3, "multiple of 2"),
        ("train", "precision", "fp16", "bf16"),
        ("train", "iterations", 0, "a number from 1"),
        ("train", "max_minutes", 0.0, "more than 0"),
        ("train", "ema_decay", 1.0, "between 0 and 1"),
        ("train", "precise_norm_batches", -1, "a number from 0"),
        ("train", "loss_scale", 0.0, "a number from 1e-09"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, section, name, value, match):
    config = small_config()
    config.optim.accumulation_steps = 2
    setattr(getattr(config, section), name, value)
    with pytest.raises(UserError, match=match):
        Trainer(SmallModel(), config, tmp_path, batches=batches(), process=Process(torch.device("cpu")))


def test_precise_norms_and_averaged_weights_exclude_each_other(tmp_path):
    config = small_config(precise_norm_batches=2, ema_decay=0.9)
    with pytest.raises(UserError, match=r"precise_norm_batches.*ema_decay"):
        Trainer(SmallModel(), config, tmp_path, batches=batches())


@pytest.mark.parametrize("share", [(0.0, 1.0), (0.9, 0.5), (0.9, 1.1)])
def test_windows_that_cannot_be_are_refused(tmp_path, share):
    config = small_config()
    config.data.augment.window_share = share
    with pytest.raises(UserError, match="window_share"):
        Trainer(SmallModel(), config, tmp_path, batches=batches())


def test_lines_where_there_is_no_terminal_and_a_bar_where_there_is(tmp_path):
    stream = io.StringIO()
    small_run(tmp_path / "lines", small_config(), display=Display(stream=stream))
    text = stream.getvalue()
    assert "learning rate 0.05 = 0.05 x 4/4" in text
    assert "12/12  loss" in text
    assert "images/s" in text
    assert "left" in text
    assert "\x1b" not in text

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    small_run(tmp_path / "bar", small_config(), display=Display(stream=stream))
    assert "\x1b[" in stream.getvalue()


def quiet() -> Display:
    return Display(stream=io.StringIO())


def interrupted(at: int) -> Any:
    def stream(iteration):
        for batch in batches()(iteration):
            if batch[2][0] == at * 100:
                raise KeyboardInterrupt
            yield batch

    return stream


def assert_same_weights(a: Path, b: Path) -> None:
    for name in ("model.safetensors", "checkpoints/iteration_000012/model.safetensors"):
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[k], right[k]) for k in left)


def told(run: Path) -> list[Any]:
    """Read the log without the fields that depend on the clock."""
    return [
        (e["kind"], e["iteration"], e.get("losses"), e.get("lr"), e.get("segm"), e.get("best"))
        for e in read_log(run / "log.jsonl")
        if e["kind"] in ("train", "eval")
    ]
