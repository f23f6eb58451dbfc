"""Measurement of one model in one precision on one card, in this process: largest batch, training, inference.

`python -m maskrcnn.bench.card JSON` is such a process: it measures one `CardTask` and prints one JSON line. With the
JSON `{"facts": "cuda"}` it prints what the card is.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from maskrcnn import presets, processor
from maskrcnn.bench.largest import free_memory, largest_fitting, runs_in_memory
from maskrcnn.bench.measure import Task, build_task, device_name, inference_call, set_tf32, training_step
from maskrcnn.data.synthetic import make_synthetic
from maskrcnn.errors import UserError
from maskrcnn.evaluation.inference import autocast
from maskrcnn.training.distributed import Process
from maskrcnn.training.train import batches_of, open_data
from maskrcnn.training.trainer import Batch

PICTURES, PICTURE_SIZE, TINY_PICTURE_SIZE = 16, (480, 640), (64, 96)


@dataclass(frozen=True, kw_only=True)
class CardTask:
    """Settings of one measurement. seconds: at most so long for each figure, after the warm-up."""

    model: str
    precision: str
    size: tuple[int, int] = (800, 1333)
    device: str = "cuda"
    tiny: bool = False
    seconds: float = 5.0
    warm_up: int = 5
    iterations: int = 50  # at most
    max_batch: int = 512
    workers: int = 8
    engine: str = "eager"  # of inference

    def task(self, mode: str, batch: int) -> Task:
        """Task of `bench.measure` at this batch."""
        values: dict[str, Any] = {"mode": mode, "precision": self.precision, "engine": self.engine}
        return Task(
            model=self.model, size=self.size, batch=batch, device=self.device, tiny=self.tiny, **values
        )


def card_facts(name: str) -> dict[str, Any]:
    """Facts of the device and of the software that figures depend on.

    Raises:
        UserError: no such device on this machine.
    """
    device = processor.find_device(name)
    facts: dict[str, Any] = {
        "card": device_name(device),
        "device": device.type,
        "memory_gib": None,
        "capability": None,
        "driver": None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": None,
        "machine": processor.describe().line(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "driver": _nvidia_smi("driver_version"),
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def _nvidia_smi(field: str) -> str | None:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip().splitlines() or [None])[0] if done.returncode == 0 else None


def measure_card(task: CardTask) -> dict[str, Any]:
    """Measure all figures of a model in a precision; `error` says why there are none."""
    set_tf32(task.precision == "tf32")
    torch.set_float32_matmul_precision("high" if task.precision == "tf32" else "highest")
    result: dict[str, Any] = {"model": task.model, "precision": task.precision, "error": None}
    largest = largest_fitting(lambda batch: _fits(task, batch), limit=task.max_batch)
    if largest is None:
        result["error"] = _too_small(task)
        return result
    result["largest_batch"], result["largest_is_the_limit"] = largest, largest == task.max_batch
    batches = sorted({1, max(1, largest // 4), max(1, largest // 2), largest})
    result["training"] = [_training(task, batch) for batch in batches]
    result["training_from_files"] = _training_from_files(task, max(1, min(16, largest // 2)))
    result["inference"] = list(_inference(task))
    return result


def _too_small(task: CardTask) -> str:
    device = torch.device(task.device)
    had = "its memory"
    if device.type == "cuda":
        had = f"{torch.cuda.get_device_properties(device).total_memory / 2**30:.1f} GiB of {device_name(device)}"
    return f"{task.model}: not one image of {task.size[0]}x{task.size[1]} fits in {had} in {task.precision}"


def _fits(task: CardTask, batch: int) -> bool:
    """Tell whether two training steps fit: the optimiser's own memory is there from the first to the second."""

    def steps() -> None:
        one = task.task("training", batch)
        step = training_step(build_task(one).to(task.device), one)
        step()
        step()
        _wait(task.device)

    return runs_in_memory(steps)


def _training(task: CardTask, batch: int) -> dict[str, Any]:
    """Train on a batch that lies on the device already: normalised pixels, 8 polygons an image."""
    one = task.task("training", batch)
    step = training_step(build_task(one).to(task.device), one)
    return _throughput(task, step, batch)


def _inference(task: CardTask) -> Iterator[dict[str, Any]]:
    """Detect at batch 1, which gives the latency, and at doubled batches until no more images come out a second."""
    best, batch = 0.0, 1
    while batch <= task.max_batch:
        row: dict[str, Any] = {}

        def detect(batch: int = batch, row: dict[str, Any] = row) -> None:
            one = task.task("inference", batch)
            call = inference_call(build_task(one).to(task.device), one)
            if batch == 1:
                row.update(_latency(task, call))
            row.update(_throughput(task, call, batch))

        if not runs_in_memory(detect):
            return
        yield row
        if batch > 1 and row["images_a_second"] < 1.02 * best:
            return
        best, batch = max(best, row["images_a_second"]), 2 * batch


def _throughput(task: CardTask, call: Callable[[], Any], batch: int) -> dict[str, Any]:
    """Images a second over calls that nobody waits for in between, and the peak of allocated memory."""
    for _ in range(task.warm_up):
        call()
    _wait(task.device)
    if torch.device(task.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(task.device)
    began, done = time.perf_counter(), 0
    while done < task.iterations and (not done or time.perf_counter() - began < task.seconds):
        call()
        done += 1
    _wait(task.device)
    took = time.perf_counter() - began
    peak = None
    if torch.device(task.device).type == "cuda":
        peak = round(torch.cuda.max_memory_allocated(task.device) / 2**20)
    return {
        "batch": batch,
        "images_a_second": round(batch * done / took, 3),
        "iterations": done,
        "peak_mib": peak,
    }


def _latency(task: CardTask, call: Callable[[], Any]) -> dict[str, Any]:
    """Milliseconds of single calls, each waited for: the median and the slowest tenth."""
    for _ in range(task.warm_up):
        call()
    milliseconds: list[float] = []
    began = time.perf_counter()
    while len(milliseconds) < 2 * task.iterations:
        _wait(task.device)
        start = time.perf_counter()
        call()
        _wait(task.device)
        milliseconds.append((time.perf_counter() - start) * 1e3)
        if time.perf_counter() - began > task.seconds:
            break
    slow = sorted(milliseconds)[int(0.9 * (len(milliseconds) - 1))]
    return {
        "latency_ms": round(statistics.median(milliseconds), 3),
        "latency_ms_p90": round(slow, 3),
    }


def _training_from_files(task: CardTask, batch: int) -> dict[str, Any]:
    """Train from JPEGs: decoding, resizing and flips in worker processes, and the way to the device, are in the
    clock. Sizes are those of the preset, so the images are smaller than 800x1333 on average.
    """
    preset = presets.get(task.model, tiny=task.tiny)
    if preset.model.keypoint_head is not None:
        return {"error": "the pictures have no key points"}
    preset.data.batch_size, preset.data.num_workers = batch, task.workers
    size, device = TINY_PICTURE_SIZE if task.tiny else PICTURE_SIZE, torch.device(task.device)
    with tempfile.TemporaryDirectory() as folder:
        preset.data.train = str(make_synthetic(Path(folder) / "data", PICTURES, 1, size))
        data, _ = open_data(preset.data, lambda _: None, preset.model)
        step = _step_on_files(task, batches_of(preset, data, Process(device))(0))
        return _throughput(task, step, batch)


def _step_on_files(task: CardTask, batches: Iterator[Batch]) -> Callable[[], None]:
    device, one = torch.device(task.device), task.task("training", 1)
    model: Any = build_task(one).to(device).train()
    model.to(memory_format=torch.channels_last)
    model.fixed_size = device.type == "cuda"  # as the training loop does
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-7, momentum=0.9, fused=True)
    precision = "fp32" if task.precision == "tf32" else task.precision
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")  # type: ignore[attr-defined]

    def step() -> None:
        images, targets, _ = next(batches)
        optimizer.zero_grad()
        with autocast(device, precision):
            losses = model(model.preprocess(images), [t.to(device) for t in targets])
        scaler.scale(torch.stack([loss.float() for loss in losses.values()]).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def main(question: dict[str, Any]) -> dict[str, Any]:
    """Answer of this process: facts of a card, or a measurement; `error` where a user's mistake is the reason."""
    try:
        if "facts" in question:
            return card_facts(question["facts"])
        task = CardTask(**{**question, "size": tuple(question["size"])})
        return {**measure_card(task), "task": asdict(task)}
    except UserError as e:
        return {"error": str(e)}
    finally:
        free_memory()


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
