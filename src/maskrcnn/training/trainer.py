"""Training loop, given a model, batches and a validation function.

A run is a function of its config (on a CPU, with as many threads and processes): the batches come from the seed and
the iteration, and a checkpoint holds every process's random numbers, so that a run which was killed and resumed ends
with the same bits. A run with a time budget (`train.max_minutes`) follows the clock and is the exception; it resumes
with the time that it had used.

A step with a loss that is not finite changes no weight, which the device decides; the run ends when the host reads the
loss (on a GPU two steps later, see `training.late`), before anything is kept.

The first SIGTERM or SIGINT ends the run with a checkpoint at the end of the iteration, or in an evaluation at once.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maskrcnn.backbones.sync_norm import sync_on_cpu
from maskrcnn.config import Config, to_dict, to_json
from maskrcnn.engines.cuda_graphs import few_sizes, trained_as_cuda_graphs
from maskrcnn.errors import Interrupted, UserError, shown
from maskrcnn.evaluation.inference import autocast
from maskrcnn.files import check_writable_folder, write_atomic
from maskrcnn.structures import GroundTruth
from maskrcnn.training import checkpoint as disk
from maskrcnn.training import distributed
from maskrcnn.training.distributed import Process
from maskrcnn.training.generators import generator_state, restore_generators, seed_generators
from maskrcnn.training.interrupt import StopRequest
from maskrcnn.training.late import LateLosses, StepLosses
from maskrcnn.training.optim import Schedule, WeightAverage, build_optimizer, scaled_lr, set_learning_rate
from maskrcnn.training.precise_norm import renew_statistics
from maskrcnn.training.runlog import Display, RunLog, Stopwatch, Window
from maskrcnn.training.settings import check_settings, compare_configs
from maskrcnn.weights.write import write_weights

Batch = tuple[
    list[Tensor], list[GroundTruth], list[Any]
]  # (3, h, w) uint8 images or (C, h, w) float32 bands, their objects, image ids


@dataclass(frozen=True)
class TrainResult:
    """Result of a finished run. evaluation, best: the last and the best `eval` line of the log, if any."""

    out: Path
    iterations: int
    seconds: float
    stopped_by: str  # "iterations", "time" or "early stopping"
    evaluation: dict[str, Any] | None = None
    best: dict[str, Any] | None = None


# Fields of an `eval` line, or what computes them from what was found, beside the next steps.
Later = dict[str, Any] | Callable[[], dict[str, Any]]


@dataclass
class PendingEvaluation:
    """Evaluation of the weights of an iteration, whose scores are computed beside the next steps."""

    iteration: int
    seconds: float
    started: float
    weights: dict[str, Tensor]
    scores: Future[dict[str, Any]]


KIND_NAMES = {"bbox": "box", "segm": "mask", "keypoints": "key-point"}


class NonFiniteLossError(UserError):
    """Training stopped at a loss that is NaN or infinite; `RUN/nonfinite.json` holds the details."""


class Trainer:
    """Training run on this process.

    batches: from an iteration, the endless batches of this process from there on.
    validate: a model in evaluation mode to the fields of an `eval` line (see `runlog`), alike on every process, or,
        in a run of one process, to a function that computes them; it is called beside the next steps.
    resume_from: the folder of the checkpoint to go on from; notes: what to say and log at the start.
    draw: a model in evaluation mode to pictures of what it finds, for trackers.
    pictures: a digest of the training images' names, kept to tell a resumed run of other ones; empty: unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        out: Path,
        *,
        batches: Callable[[int], Iterator[Batch]],
        validate: Callable[[Any], Later] | None = None,
        process: Process | None = None,
        resume_from: Path | None = None,
        display: Display | None = None,
        notes: Sequence[str] = (),
        pictures: str = "",
        draw: Callable[[Any], Mapping[str, np.ndarray]] | None = None,
    ):
        self.config, self.out, self.batches, self.validate = config, out, batches, validate
        self.draw = draw
        self.process = process or Process(torch.device("cpu"))
        self.display = display or Display(active=self.process.is_main)
        check_settings(config, self.process)
        layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        self.model: Any = model.to(self.process.device, memory_format=layout).train()  # type: ignore[call-overload]
        if self.process.device.type == "cuda":
            self.model.fixed_size = True  # no shape that the host would have to wait for
        if config.train.tf32 and self.process.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        if self.process.world_size > 1 and self.process.device.type == "cpu":
            sync_on_cpu(self.model)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.average = (
            None if config.train.ema_decay is None else WeightAverage(self.model, config.train.ema_decay)
        )
        self.scaler = torch.amp.GradScaler(  # type: ignore[attr-defined]
            self.process.device.type,
            init_scale=config.train.loss_scale,
            enabled=config.train.precision == "fp16",
        )
        lr, self.lr_note = scaled_lr(config.optim, config.data.batch_size)
        minutes = config.train.max_minutes
        budget = None if minutes is None else minutes * 60
        self.schedule = Schedule(
            config=config.optim, lr=lr, iterations=config.train.iterations, budget_seconds=budget
        )
        self.iteration = 0
        self.others_stop = False  # some process had a signal before the last exchange
        self.norms_renewed_at: int | None = None
        self.seconds = 0.0  # of training, without evaluations
        self.window = Window()
        self.pending: PendingEvaluation | None = None
        self.late = LateLosses(self.process.device)
        self.notes, self.pictures = list(notes), pictures
        self.resume_from = resume_from
        self.resumed: dict[str, Any] | None = None  # the state in the checkpoint
        self.stop = StopRequest(echoes=self.process.world_size > 1)
        if resume_from is not None:
            self._restore(resume_from)
        if config.train.compile:
            compile_backbone(self.model, self.process.device, self.display.say)
        self.forward: Any = self._distributed() if self.process.world_size > 1 else self.model
        if config.train.cuda_graphs:
            a, divisor = config.data.augment, config.model.input.size_divisor
            sizes = few_sizes(*(a.crop_size or (max(a.min_sizes), a.max_size)), divisor)
            self.forward = trained_as_cuda_graphs(self.model, sizes)
        self.watch = Stopwatch(self.seconds)
        self._scorer = ThreadPoolExecutor(1, thread_name_prefix="maskrcnn-score")

    # --- the loop

    def run(self) -> TrainResult:
        """Train to the end, and write what the head of `training.checkpoint` lists.

        Raises:
            UserError: a loss is not finite, or the disk is full; the last checkpoint stays.
            Interrupted: by SIGTERM or SIGINT, after writing a checkpoint.
        """
        self._begin()
        try:
            with self.stop:
                try:
                    return self._loop()
                except Interrupted as e:
                    self._leave(e.signal)  # within the block: an echo must not end the writing
        finally:
            self._scorer.shutdown(wait=False, cancel_futures=True)
            self.display.stop()
            self.log.close()

    def _loop(self) -> TrainResult:
        batches = self.batches(self.iteration)
        self._set_generators()  # after whatever may have drawn numbers on the way here
        self._evaluate_if_due()  # an evaluation that a kill interrupted
        self.watch.start()
        while not (reason := self._finished()):
            lr = self.schedule(self.iteration, self.seconds)
            step = self._step(*next(batches), lr)
            self.iteration += 1
            self.seconds = self._clock()
            step.iteration, step.seconds = self.iteration, self.seconds
            self.late.add(step)
            self._read_losses()
            self._end_evaluation(wait=False)
            if self._evaluation_is_due():
                self._read_losses(lag=0)
                self._renew_norms()  # before the checkpoint, which an evaluation must not change any more
            if self.iteration % self.config.train.checkpoint_every == 0:
                self._save()
            if self._asked_to_stop():
                raise Interrupted(self.stop.signal or signal.SIGTERM)  # none: another process had it
            self._evaluate_if_due()
        return self._end(reason)

    def _step(
        self, images: list[Tensor], targets: list[GroundTruth], ids: list[Any], lr: float
    ) -> StepLosses:
        """Take one optimiser step, unless a loss is not finite; returns its micro-batches' means over processes.

        With `accumulation_steps` n, the gradient is the mean of the gradients of n micro-batches of consecutive
        images, each of which normalises its losses itself. That equals the whole batch's gradient where the
        normaliser is the same for every micro-batch: always for the RPN's losses (a fixed count an image), for
        the box losses when every image gives its full number of RoIs. The mask loss is a mean over foreground
        RoIs: a micro-batch with few of them weighs each of them more than the whole batch would.
        """
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.config.optim.accumulation_steps
        size = len(images) // parts
        names: tuple[str, ...] = ()
        means, finite, mine = [], [], [slice(part * size, (part + 1) * size) for part in range(parts)]
        for part, images_of_part in enumerate(mine):
            with self._exchange_gradients(part == parts - 1):
                losses = self._losses(images[images_of_part], targets[images_of_part])
                names = tuple(losses)
                local = torch.stack([loss.detach().float() for loss in losses.values()])
                means.append(self._means(local))
                finite.append(local.isfinite().all())
                total = torch.stack(list(losses.values())).sum() / parts
                if self.scaler.is_enabled():  # which looks at gradients alone: have them not finite either
                    total = total * torch.where(finite[-1], 1.0, torch.nan)
                self.scaler.scale(total).backward()
        if self.config.optim.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_grad_norm)
        step = StepLosses(names, torch.stack(means), torch.stack(finite), [ids[m] for m in mine], lr)
        self._update(step)
        return step

    def _update(self, step: StepLosses) -> None:
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:  # a gradient scaler's word to a fused optimiser, which decides on the device
            optimizer: Any = self.optimizer
            optimizer.found_inf = step.any_not_finite()
            optimizer.step()
            del optimizer.found_inf
        if self.average:
            self.average.update(self.iteration + 1)

    def _losses(self, images: list[Tensor], targets: list[GroundTruth]) -> dict[str, Tensor]:
        device = self.process.device
        batch = self.model.preprocess(images)
        with autocast(device, self.config.train.precision):
            return self.forward(batch, [t.to(device) for t in targets])

    def _means(self, local: Tensor) -> Tensor:
        """Means of the losses over processes, and the share of processes that were asked to stop."""
        asked = local.new_full((1,), float(self.stop.signal is not None))  # all end after the same step
        return distributed.all_reduce_mean(torch.cat([local, asked]))

    def _read_losses(self, lag: int | None = None) -> None:
        """Read the losses that are due. One that is not finite ends the run, on all processes."""
        for step in self.late.due(lag):
            parts = step.read()
            sums: dict[str, float] = {}
            for part, (*values, share) in enumerate(parts):
                self.others_stop |= share > 0
                means = dict(zip(step.names, values, strict=True))
                bad = [name for name, value in means.items() if not math.isfinite(value)]
                if bad:
                    mine = [] if bool(step.finite[part]) else step.ids[part]
                    ids = [i for some in distributed.gather(mine) for i in some]
                    self._stop(step, bad, means, ids)
                sums = {name: sums.get(name, 0.0) + value / len(parts) for name, value in means.items()}
            self._record(step, sums)

    def _finished(self) -> str:
        """Reason why training is over, or nothing."""
        patience, evaluations = self.config.train.early_stopping, self.log.evaluations
        if patience and evaluations and len(evaluations) - 1 - best_of(evaluations) >= patience:
            return "early stopping"
        if self.iteration >= self.config.train.iterations:
            return "iterations"
        budget = self.schedule.budget_seconds
        return "time" if budget is not None and self.seconds >= budget else ""

    def _asked_to_stop(self) -> bool:
        return self.others_stop if self.process.world_size > 1 else self.stop.signal is not None

    def _clock(self) -> float:
        """Seconds of training. With a time budget, processes must agree on it: on the rate and on the end."""
        seconds = self.watch.seconds
        return seconds if self.schedule.budget_seconds is None else distributed.from_main(seconds)

    # --- what is said and kept

    def _begin(self) -> None:
        config, trained = self.config, [p for p in self.model.parameters() if p.requires_grad]
        moments = 2 if config.optim.optimizer == "adamw" else 1
        kept = config.train.keep_checkpoints
        needed = disk.bytes_to_keep(self.model, moments, self.average is not None, kept)
        resumed = self.resume_from is not None
        distributed.on_main(lambda: self._check_folder(0 if resumed else needed))
        self.log = RunLog(
            self.out,
            resume_at=self.iteration if resumed else None,
            active=self.process.is_main,
            trackers=config.train.trackers,
            say=self.display.say,
        )
        self.log.evaluations = distributed.from_main(self.log.evaluations)
        if resumed:
            self._event(f"resumed from {self.resume_from}")
        else:
            self.log.write(
                "config",
                0,
                config=to_dict(config),
                parameters=sum(p.numel() for p in self.model.parameters()),
                trained_parameters=sum(p.numel() for p in trained),
                device=str(self.process.device),
                processes=self.process.world_size,
            )
        for text in (*self.notes, self.lr_note, self.schedule.remark()):
            if text:
                self._event(text)
        self.display.start(self.iteration, config.train.iterations)

    def _check_folder(self, needed_bytes: int) -> None:
        """Check that the run has space, and write its `config.json`."""
        check_writable_folder(self.out, needs_bytes=needed_bytes)
        write_atomic(self.out / "config.json", to_json(self.config) + "\n")

    def _event(self, message: str) -> None:
        self.log.write("event", self.iteration, message=message)
        self.display.say(message)

    def _record(self, step: StepLosses, losses: dict[str, float]) -> None:
        self.window.add(losses)
        self.display.step(step.iteration)
        if step.iteration % self.config.train.log_every:
            return
        means, took = self.window.close(step.seconds)
        entry = {
            "losses": means,
            "loss": sum(means.values()),
            "lr": step.lr,
            "images_per_second": self.config.data.batch_size / took,
            "seconds": step.seconds,
        }
        left = (self.config.train.iterations - step.iteration) * took
        if self.schedule.budget_seconds is not None:
            left = min(left, self.schedule.budget_seconds - step.seconds)
        self.log.write("train", step.iteration, **entry)
        self.display.train_line(step.iteration, entry, left)

    def _evaluate_if_due(self, *, at_end: bool = False) -> None:
        if self.validate and self._evaluation_is_due(at_end=at_end):
            self._evaluate(self.validate)

    def _evaluation_is_due(self, *, at_end: bool = False) -> bool:
        every = self.config.train.evaluate_every
        due = at_end or (every and self.iteration and self.iteration % every == 0)
        known = {e["iteration"] for e in self.log.evaluations}
        known |= {self.pending.iteration} if self.pending else set()
        return bool(self.validate and due and self.iteration not in known)

    def _evaluate(self, validate: Callable[[Any], Later]) -> None:
        self._end_evaluation()
        self._renew_norms()
        self.watch.pause()
        started = time.monotonic()
        alone = self.process.world_size == 1  # several processes exchange results, which needs all of them
        with (
            torch.random.fork_rng(devices=_cuda_devices(self.process.device)),
            self.stop.at_once() if alone else contextlib.nullcontext(),
        ):
            model = self.averaged_model().eval()
            found = validate(model)
            if self.draw is not None and self.log.trackers:
                self.log.trackers.pictures(self.draw(model), self.iteration)
        scores: Future[dict[str, Any]] = Future()
        if callable(found):
            weights = {name: value.detach().to("cpu", copy=True) for name, value in self.weights().items()}
            scores = self._scorer.submit(found)
        else:
            weights = self.weights()
            scores.set_result(found)
        self.pending = PendingEvaluation(self.iteration, self.seconds, started, weights, scores)
        self._end_evaluation(wait=not callable(found))
        self.watch.start()

    def _end_evaluation(self, *, wait: bool = True) -> None:
        """Log the scores of the evaluation that is under way, and keep its weights if they are the best so far."""
        if self.pending is None or not (wait or self.pending.scores.done()):
            return
        pending, self.pending = self.pending, None
        found, before = pending.scores.result(), self.log.evaluations
        best = not before or score(found) > score(before[best_of(before)])
        if best and self.process.is_main:
            write_weights(
                self.out / "best.safetensors",
                pending.weights,
                self.config.model,
                iteration=pending.iteration,
            )
        took = time.monotonic() - pending.started
        self.log.write("eval", pending.iteration, **found, seconds=pending.seconds, best=best, took=took)
        numbers = [f"{name} AP {found[kind]['AP']:.3f}" for kind, name in KIND_NAMES.items() if kind in found]
        if "validation_loss" in found:
            numbers.append(f"validation loss {found['validation_loss']:.3f}")
        self.display.say(f"{pending.iteration}: {'  '.join(numbers)}{'  (best so far)' if best else ''}")

    def _renew_norms(self) -> None:
        """Renew batch norms' running statistics for the weights as they are now, where the config asks for it."""
        num_batches = self.config.train.precise_norm_batches
        if not num_batches or self.norms_renewed_at == self.iteration:
            return
        self.watch.pause()  # this is no training time
        batches = self.batches(self.iteration)
        with torch.random.fork_rng(devices=_cuda_devices(self.process.device)):
            renew_statistics(self.model, lambda: self._losses(*next(batches)[:2]), num_batches)
        self.norms_renewed_at = self.iteration
        self.watch.start()

    def averaged_model(self) -> Any:
        """A copy of the model with the weights to evaluate and keep: the averaged ones where there are."""
        model = copy.deepcopy(self.model)
        model.fixed_size, model.padded_sizes = False, []  # an evaluation drops no candidate, pads no further
        if self.average:
            model.load_state_dict(self.average.state_dict(), strict=False)
        return model

    def weights(self) -> dict[str, Tensor]:
        return {**self.model.state_dict(), **(self.average.state_dict() if self.average else {})}

    def _save(self) -> None:
        self._read_losses(lag=0)  # of all that the checkpoint is made of
        self._end_evaluation()  # one before the checkpoint is not done again after it
        generators = distributed.gather(generator_state(self.process))
        distributed.on_main(lambda: self._save_here(generators))

    def _save_here(self, generators: list[dict[str, Any]]) -> None:
        last = disk.checkpoints(self.out)[-1:]
        if last and disk.iteration_of(last[0]) == self.iteration:
            disk.remove_old(self.out, self.config.train.keep_checkpoints)  # a kill may have come before that
            return
        model = self.model.state_dict()
        broken = [
            name for name, value in model.items() if value.is_floating_point() and not value.isfinite().all()
        ]
        if broken:
            raise NonFiniteLossError(
                f"iteration {self.iteration}: the weights {broken[0]} are not finite. {_last_good(self.out)}"
            )
        self.log.sync()  # the log must reach as far as the checkpoint
        state = {
            "iteration": self.iteration,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generators": generators,
            "threads": torch.get_num_threads(),
            "pictures": self.pictures,
            "norms_renewed_at": self.norms_renewed_at,
            "window": self.window.state(),
        }
        clock = {"seconds": self.watch.seconds, "window": self.window.start}
        kept = disk.Checkpoint(model, self.weights() if self.average else None, state, clock)
        disk.save_checkpoint(self.out, kept, self.config.model)
        disk.remove_old(self.out, self.config.train.keep_checkpoints)

    def _restore(self, folder: Path) -> None:
        self.notes += distributed.on_main(lambda: compare_configs(self.out / "config.json", self.config))
        kept = disk.load_checkpoint(folder)
        self.model.load_state_dict(kept.model)
        if self.average and kept.average is not None:
            self.average.load_state_dict(kept.average)
        self.optimizer.load_state_dict(kept.state["optimizer"])
        self.scaler.load_state_dict(kept.state["scaler"])
        self.iteration, self.seconds = kept.state["iteration"], kept.clock["seconds"]
        self.norms_renewed_at = kept.state.get("norms_renewed_at")
        self.window = Window(kept.clock.get("window", self.seconds), **kept.state.get("window", {}))
        self.resumed = kept.state
        pictures = kept.state.get("pictures")  # older checkpoints do not know
        if pictures and self.pictures and pictures != self.pictures:
            self.notes.append("--data: other training pictures, or another order of them, than before")
        for what, before, now in (
            ("processes", len(kept.state.get("generators", ())), self.process.world_size),
            ("threads", kept.state.get("threads"), torch.get_num_threads()),
        ):
            if before and before != now:
                self.notes.append(
                    f"{now} {what}, {before} before: not the same bits as without the interruption"
                )

    def _set_generators(self) -> None:
        seed_generators(self.config.train.seed, self.process)
        if self.resumed is not None:
            restore_generators(self.resumed, self.process)
            self.resumed = None

    def _leave(self, number: signal.Signals) -> NoReturn:
        """Write a checkpoint of the last whole step and end."""
        self.watch.pause()
        self._save()
        newest = disk.checkpoints(self.out)[-1]
        text = f"{number.name}: stopped after {self.iteration} of {self.config.train.iterations} iterations"
        self.log.write("event", self.iteration, message=text)
        raise Interrupted(number, f"{text}. The checkpoint is {newest}: go on with --resume.")

    def _end(self, reason: str) -> TrainResult:
        self._read_losses(lag=0)
        self._renew_norms()
        self._save()
        self._evaluate_if_due(at_end=True)
        self._end_evaluation()
        if self.process.is_main:
            write_weights(
                self.out / "model.safetensors", self.weights(), self.config.model, iteration=self.iteration
            )
        self._event(f"stopped after {self.iteration} iterations, {self.seconds / 60:.1f} minutes: {reason}")
        evaluations = self.log.evaluations
        best = evaluations[best_of(evaluations)] if evaluations else None
        last = evaluations[-1] if evaluations else None
        return TrainResult(self.out, self.iteration, self.seconds, reason, last, best)

    def _stop(self, step: StepLosses, terms: list[str], losses: dict[str, float], ids: list[Any]) -> NoReturn:
        """End the run at a loss that is not finite; nothing is written over."""
        term, iteration = terms[0], step.iteration
        if self.process.is_main:
            told = {name: str(value) if name in terms else value for name, value in losses.items()}
            details = {
                "iteration": iteration,
                "terms": terms,
                "losses": told,
                "image_ids": ids,
                "lr": step.lr,
            }
            write_atomic(self.out / "nonfinite.json", json.dumps(details, indent=1) + "\n")
            self.log.write(
                "event", iteration - 1, message=f"{term} is {losses[term]} at iteration {iteration}"
            )
        raise NonFiniteLossError(
            f"iteration {iteration}: {term} is {losses[term]} on the images {shown(', '.join(map(str, ids)))} "
            f"(all in nonfinite.json). {_last_good(self.out)}"
        )

    # --- processes

    def _distributed(self) -> DistributedDataParallel:
        # Of the weights of a 1x1 convolution, whose strides are ambiguous in channels-last.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        cuda = self.process.device.type == "cuda"
        device_ids = [self.process.device] if cuda else None
        model = DistributedDataParallel(self.model, device_ids=device_ids, gradient_as_bucket_view=True)
        if not cuda:
            model.register_comm_hook(None, distributed.mean_of_each)
        return model

    def _exchange_gradients(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Have processes exchange gradients once a step, with the last micro-batch."""
        if last or self.process.world_size == 1:
            return contextlib.nullcontext()
        return self.forward.no_sync()


def score(evaluation: dict[str, Any]) -> float:
    """AP that selects the best checkpoint: key points', else masks', else boxes'."""
    kind = next((kind for kind in ("keypoints", "segm", "bbox") if kind in evaluation), "")
    value = evaluation.get(kind, {}).get("AP")
    return -math.inf if value is None or math.isnan(value) else value


def best_of(evaluations: list[dict[str, Any]]) -> int:
    """The position of the first evaluation with the highest score."""
    return max(range(len(evaluations)), key=lambda i: score(evaluations[i]))


def _last_good(out: Path) -> str:
    found = disk.checkpoints(out)
    if not found:
        return "There is no checkpoint yet. Start again with a lower --optim.lr, or with --optim.clip_grad_norm 10."
    return (
        f"Start a new run with --weights {found[-1]}, the last good checkpoint, and a lower --optim.lr, or with "
        "--optim.clip_grad_norm 10."
    )


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def compile_backbone(model: Any, device: torch.device, say: Callable[[str], object]) -> None:
    """`torch.compile` the backbone in place, the part with static shapes; say so and go on without if that fails."""
    model.backbone.compile(dynamic=True)
    model.eval()  # the trial must not move running statistics
    try:
        features = model.backbone(torch.zeros(1, model.config.input.num_channels, 64, 64, device=device))
        torch.stack([f.sum() for f in features]).sum().backward()
    except (
        Exception
    ) as e:  # whatever the compiler raises: no C compiler, an unsupported machine, its own bugs
        model.backbone._compiled_call_impl = None
        reason = str(e).strip().splitlines()[-1][:200] if str(e).strip() else type(e).__name__
        say(f"torch.compile failed ({type(e).__name__}: {reason}); training goes on without it")
    model.train()
    model.zero_grad(set_to_none=True)
