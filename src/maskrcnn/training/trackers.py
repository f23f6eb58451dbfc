"""Trackers of runs: the config, losses, rates, scores and pictures of predictions go to services that people know.

`--train.trackers tensorboard,wandb` names any of them; each is an extra of its name. They get what `RUN/log.jsonl`
gets, which stays the record. What a service of theirs fails at is told once and ends no training.
"""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from maskrcnn.config import flat
from maskrcnn.errors import UserError, one_line

Say = Callable[[str], object]


class Tracker(Protocol):
    def config(self, flat: Mapping[str, Any]) -> None:
        """Take the resolved config, by dotted names."""

    def numbers(self, values: Mapping[str, float], iteration: int) -> None: ...

    def picture(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        """Take a picture (H, W, 3) uint8 RGB."""

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: Path, resume_at: int | None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _absent("tensorboard", "tensorboard") from None
        # purge_step hides what an interrupted run wrote after the checkpoint
        self._board = SummaryWriter(
            str(run / "tensorboard"), purge_step=None if resume_at is None else resume_at + 1
        )

    def config(self, flat: Mapping[str, Any]) -> None:
        rows = "\n".join(f"| {name} | {value} |" for name, value in flat.items())
        self._board.add_text("config", f"| setting | value |\n|---|---|\n{rows}", 0)

    def numbers(self, values: Mapping[str, float], iteration: int) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, iteration)

    def picture(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        self._board.add_image(name, pixels, iteration, dataformats="HWC")

    def close(self) -> None:
        self._board.close()


class Wandb:
    """Weights & Biases, or Trackio, which has its interface. The run goes on where it was when it is resumed.

    Project and mode are theirs to say (`WANDB_PROJECT`, `WANDB_MODE=offline`); files lie in RUN.
    """

    def __init__(self, run: Path, resume_at: int | None, module: str = "wandb") -> None:
        try:
            self._wandb: Any = importlib.import_module(module)
        except ImportError:
            raise _absent(module, module) from None
        project = os.environ.get(f"{module.upper()}_PROJECT", "maskrcnn")
        how: dict[str, Any] = {"name": run.name, "resume": "allow"}
        if module == "wandb":
            how |= {"id": _kept_id(run / "wandb_id", resume_at) or uuid.uuid4().hex, "dir": str(run)}
            (run / "wandb_id").write_text(how["id"])
        self._run = self._wandb.init(project=project, **how)
        self._own_steps = module == "trackio"
        if not self._own_steps:  # W&B's own only grow, and scores may come later than the next steps' losses
            self._run.define_metric("*", step_metric="iteration")

    def config(self, flat: Mapping[str, Any]) -> None:
        self._run.config.update(dict(flat))

    def numbers(self, values: Mapping[str, float], iteration: int) -> None:
        self._log(values, iteration)

    def picture(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        self._log({name: self._wandb.Image(pixels)}, iteration)

    def _log(self, values: Mapping[str, Any], iteration: int) -> None:
        if self._own_steps:
            self._wandb.log(dict(values), step=iteration)
        else:
            self._wandb.log({**values, "iteration": iteration})

    def close(self) -> None:
        self._wandb.finish()


class MLflow:
    """MLflow, at MLFLOW_TRACKING_URI, or in files in RUN/mlruns."""

    def __init__(self, run: Path, resume_at: int | None) -> None:
        try:
            import mlflow
        except ImportError:
            raise _absent("mlflow", "mlflow-skinny") from None
        self._mlflow: Any = mlflow
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            mlflow.set_tracking_uri((run / "mlruns").resolve().as_uri())
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "maskrcnn"))
        known = _kept_id(run / "mlflow_id", resume_at)
        started = mlflow.start_run(run_id=known, run_name=None if known else run.name)
        (run / "mlflow_id").write_text(started.info.run_id)

    def config(self, flat: Mapping[str, Any]) -> None:
        self._mlflow.log_params({name: str(value)[:500] for name, value in flat.items()})

    def numbers(self, values: Mapping[str, float], iteration: int) -> None:
        self._mlflow.log_metrics(dict(values), step=iteration)

    def picture(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        self._mlflow.log_image(pixels, artifact_file=f"{name}/{iteration:07d}.png")

    def close(self) -> None:
        self._mlflow.end_run()


KINDS: dict[str, Callable[[Path, int | None], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": lambda run, resume_at: Wandb(run, resume_at, "trackio"),
    "mlflow": MLflow,
}


class Trackers:
    """Several trackers as one. One that fails is told and left out: the run is worth more than its copy."""

    def __init__(self, names: Sequence[str], run: Path, resume_at: int | None, say: Say) -> None:
        self._say = say
        self._all = {name: KINDS[name](run, resume_at) for name in dict.fromkeys(names)}

    def __bool__(self) -> bool:
        return bool(self._all)

    def config(self, values: Mapping[str, Any]) -> None:
        self._each(lambda t: t.config(flat(values)))

    def entry(self, kind: str, iteration: int, fields: Mapping[str, Any]) -> None:
        """Take a line of the record: its numbers, named KIND/FIELD."""
        told = {name: value for name, value in fields.items() if name not in ("kind", "iteration")}
        if values := dict(_numbers(told, f"{kind}/")):
            self._each(lambda t: t.numbers(values, iteration))

    def pictures(self, pictures: Mapping[str, np.ndarray], iteration: int) -> None:
        for name, pixels in pictures.items():
            self._each(
                lambda t, name=name, pixels=pixels: t.picture(f"predictions/{name}", pixels, iteration)
            )

    def close(self) -> None:
        self._each(lambda t: t.close())

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._all.items()):
            try:
                do(tracker)
            except Exception as e:  # of kinds of its own; a full disk or a lost network among them
                del self._all[name]
                self._say(
                    f"tracker {name}: left out from now on: {type(e).__name__}: {one_line(str(e))[:200]}"
                )


def _kept_id(path: Path, resume_at: int | None) -> str | None:
    """Name of the run at a service, of a run that is resumed."""
    return path.read_text().strip() if resume_at is not None and path.is_file() else None


def _absent(extra: str, package: str) -> UserError:
    return UserError(
        f"--train.trackers: expected the package {package}, got none. Run: pip install 'maskrcnn[{extra}]'"
    )


def _numbers(fields: Mapping[str, Any], prefix: str) -> list[tuple[str, float]]:
    numbers: list[tuple[str, float]] = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            numbers += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers.append((prefix + name, value))
    return numbers
