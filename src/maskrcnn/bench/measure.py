"""Measurement of a model's speed and memory on this machine: seconds an image, a training step, peak memory.

Each measurement is a process of its own, so that its peak memory is its own and a model too large for the machine
ends only its own row. Weights are random, which changes nothing of the work but how many proposals and detections
come out: so as many boxes of all sizes as the model keeps proposals stand in for these, and 100 of them for the
detections that the mask and key-point heads get.

`python -m maskrcnn.bench.measure JSON` is such a process: it measures one `Task` and prints one JSON line.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from maskrcnn.memory import forget_peak, peak_mib, resident_mib

if TYPE_CHECKING:
    import torch

    from maskrcnn.models.mask_rcnn import MaskRCNN
    from maskrcnn.structures import GroundTruth, ImageBatch, Instances

DETECTIONS = 100
OBJECTS = 8  # of each image that is trained on
Mode = Literal["inference", "training"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Model and settings of one measurement."""

    model: str
    mode: Mode = "inference"
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    size: tuple[int, int] = (800, 1216)
    batch: int = 1
    device: str = "cpu"
    threads: int | None = None
    repeats: int = 3
    checkpointing: bool = False
    tiny: bool = False
    engine: str | None = (
        None  # of inference, and `cuda-graph` and `compile` of training too; None: the fastest for the device
    )


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Result of a task: the median of `repeats` after a warm-up. memory_mib is the peak above the process's memory
    after its imports (CPU: resident; GPU: allocated). error: why there is no number.
    """

    task: Task
    device_name: str = ""
    machine: str = ""  # `processor.describe` in a line
    seconds: float | None = None
    memory_mib: float | None = None
    error: str | None = None


def measure_all(tasks: Sequence[Task], timeout: float | None = None) -> Iterator[Measurement]:
    """Measure each task in a process of its own, one after the other."""
    for task in tasks:
        yield _in_process(task, timeout)


def largest_batch(task: Task, limit: int = 1024) -> Measurement | None:
    """Find the largest batch from the task's own on that fits the device, each tried in a process of its own: its
    measurement, or None if not even the task's own fits.
    """
    from dataclasses import replace

    from maskrcnn.bench.largest import largest_fitting

    found: dict[int, Measurement] = {}

    def fits(batch: int) -> bool:
        found[batch] = _in_process(replace(task, batch=batch), None)
        return found[batch].error is None

    best = largest_fitting(fits, task.batch, limit)
    return None if best is None else found[best]


def _in_process(task: Task, timeout: float | None) -> Measurement:
    environment = dict(os.environ)
    if task.threads:
        environment["OMP_NUM_THREADS"] = str(task.threads)
    answer, error = in_process("maskrcnn.bench.measure", asdict(task), timeout, environment)
    return Measurement(task=task, error=error) if answer is None else from_dict(answer)


def in_process(
    module: str, question: dict[str, Any], timeout: float | None, environment: dict[str, str] | None = None
) -> tuple[dict[str, Any] | None, str | None]:
    """Run a module with a JSON argument in a process of its own: the JSON of its last line, or why there is none."""
    command = [sys.executable, "-m", module, json.dumps(question)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return None, f"took more than {timeout:.0f} s"
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1]), None
    if done.returncode < 0:
        return None, f"killed by signal {-done.returncode}: out of memory?"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return None, last[:200]


def from_dict(values: dict[str, Any]) -> Measurement:
    task = values.pop("task")
    return Measurement(task=Task(**{**task, "size": tuple(task["size"])}), **values)


def measure(task: Task) -> Measurement:
    """Measure a task in this process."""
    import torch

    from maskrcnn import processor
    from maskrcnn.models import build  # noqa: F401 (before the memory is read: imports do not count)

    processor.use_cores(task.threads)
    set_tf32(task.precision == "tf32")
    device = torch.device(task.device)
    memory = _MemoryMeter(device)
    model = build_task(task).to(device)
    call = inference_call(model, task) if task.mode == "inference" else training_step(model, task)
    seconds = _timed(call, task.repeats, device)
    return Measurement(
        task=task,
        device_name=device_name(device),
        machine=processor.describe().line(),
        seconds=statistics.median(seconds),
        memory_mib=memory.peak(),
    )


def build_task(task: Task) -> MaskRCNN:
    import torch

    from maskrcnn import presets
    from maskrcnn.backbones.resnet import BottleneckBlock
    from maskrcnn.models.build import build_model

    torch.manual_seed(0)
    config = presets.get(task.model, tiny=task.tiny).model
    if task.checkpointing:
        if not hasattr(config.backbone, "checkpointing"):
            raise ValueError(f"{task.model}: its backbone has no gradient checkpointing")
        config.backbone.checkpointing = True  # pyright: ignore[reportAttributeAccessIssue]
    model = build_model(config)
    for block in model.modules():
        if isinstance(block, BottleneckBlock) and block.conv3.norm is not None:
            # As training does: random residual blocks alone would double the signal at each.
            torch.nn.init.constant_(block.conv3.norm.weight, 0.2)  # pyright: ignore[reportArgumentType]
    return model


def _batch(model: MaskRCNN, task: Task) -> ImageBatch:
    """Batch of random noise at the network's size, equal in every call."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (model.config.input.num_channels, *task.size)
    image = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return model.preprocess([image] * task.batch)


def inference_call(model: MaskRCNN, task: Task) -> Callable[[], Any]:
    import torch

    from maskrcnn.engines.prepare import prepare
    from maskrcnn.models.box_head import Detections
    from maskrcnn.models.rpn import Proposals

    prepare(model, "fp32" if task.precision == "tf32" else task.precision, task.engine)
    batch = _batch(model, task)
    boxes = _boxes(model.config.rpn.post_nms_topk_test, task.size).to(task.device)
    boxes = boxes.expand(task.batch, -1, -1)
    scores = torch.linspace(1, 0, boxes.shape[1], device=task.device).expand(task.batch, -1)
    valid = torch.ones_like(scores, dtype=torch.bool)
    proposals = Proposals(boxes, scores, valid)
    some, number = slice(0, DETECTIONS), torch.arange(boxes.shape[1], device=task.device)
    number = number.expand(task.batch, -1)[:, some]
    detections = Detections(
        boxes[:, some],
        scores[:, some],
        number % model.config.num_classes,
        number,
        valid[:, some],
        valid.sum(1),
    )

    @torch.inference_mode()
    def detect() -> list[Instances]:
        features = model.backbone(batch.pixels)
        model.rpn(features, batch.sizes)
        roi_features = model.roi_features(features)
        model.box_head(roi_features, proposals, batch.sizes)
        return model.describe(roi_features, detections, batch)

    return detect


def _boxes(count: int, size: tuple[int, int]) -> torch.Tensor:
    """Random boxes (count, 4) with sides from a 64th to two thirds of the image's, each size as often as twice it."""
    import torch

    generator = torch.Generator().manual_seed(0)
    image = torch.tensor([size[1], size[0]])
    side = min(size) / 64 * (64 * 2 / 3) ** torch.rand(count, 1, generator=generator)
    stretch = 2 ** (torch.rand(count, 1, generator=generator) - 0.5)
    centre = torch.rand(count, 2, generator=generator) * image
    half = torch.cat([side * stretch, side / stretch], 1) / 2
    return torch.cat([(centre - half).clamp(min=0), torch.minimum(centre + half, image)], 1)


def training_step(model: MaskRCNN, task: Task) -> Callable[[], Any]:
    from contextlib import nullcontext

    import torch

    model.train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model.fixed_size = torch.device(task.device).type == "cuda"  # as the training loop does
    batch = _batch(model, task)
    targets = [_objects(model, task, seed) for seed in range(task.batch)]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-7, momentum=0.9, fused=True)
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    kind = torch.device(task.device).type
    forward = model
    if task.engine == "cuda-graph":
        from maskrcnn.engines.cuda_graphs import trained_as_cuda_graphs

        forward = trained_as_cuda_graphs(model, [])
    if task.engine == "compile":
        from maskrcnn.training.trainer import compile_backbone

        compile_backbone(model, torch.device(task.device), _refuse)
    scaler = torch.amp.GradScaler(kind, enabled=task.precision == "fp16")  # type: ignore[attr-defined]

    def step() -> None:
        optimizer.zero_grad()
        dtype = dtypes.get(task.precision)
        with torch.autocast(kind, dtype) if dtype else nullcontext():
            losses = forward(batch, targets)
        scaler.scale(torch.stack([loss.float() for loss in losses.values()]).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _refuse(reason: str) -> None:
    """End a measurement that would be of another engine than the one asked for."""
    raise RuntimeError(reason)


def _objects(model: MaskRCNN, task: Task, seed: int) -> GroundTruth:
    """Ground truth of many sizes: octagons, with key points inside where the model has any."""
    import numpy as np
    import torch

    from maskrcnn.masks import InstanceMasks
    from maskrcnn.structures import GroundTruth

    random = np.random.default_rng(seed)
    height, width = task.size
    angles = np.arange(8) * np.pi / 4
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    radius = np.geomspace(min(height, width) / 40, min(height, width) / 3, OBJECTS)
    centre = radius[:, None] + random.random((OBJECTS, 2)) * ([width, height] - 2 * radius[:, None])
    outlines = centre[:, None] + radius[:, None, None] * circle
    boxes = np.concatenate([outlines.min(1), outlines.max(1)], 1)
    truth = GroundTruth(
        torch.tensor(boxes, dtype=torch.float32, device=task.device),
        torch.arange(OBJECTS, device=task.device) % model.config.num_classes,
        InstanceMasks.from_coco([[o.flatten().tolist()] for o in outlines], (height, width)),
        seed=seed,
    )
    if model.config.keypoint_head is not None:
        points = centre[:, None] + radius[:, None, None] * (
            random.random((OBJECTS, model.config.keypoint_head.num_keypoints, 2)) - 0.5
        )
        visible = np.full((*points.shape[:2], 1), 2.0)
        truth.keypoints = torch.tensor(  # pyright: ignore[reportAttributeAccessIssue]
            np.concatenate([points, visible], 2), dtype=torch.float32, device=task.device
        )
    return truth


def _timed(call: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    if device.type == "cuda":  # kernels are chosen and clocks rise in the first calls
        for _ in range(3):
            call()
    seconds = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        call()
        wait()
        seconds.append(time.perf_counter() - start)
    return seconds


def set_tf32(allowed: bool) -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


class _MemoryMeter:
    """Meter of the peak memory since it was made, in MiB."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        forget_peak()
        self.before = resident_mib()

    def peak(self) -> float | None:
        if self.device.type == "cuda":
            import torch

            return torch.cuda.max_memory_allocated(self.device) / 2**20
        most = peak_mib()
        return None if most is None or self.before is None else most - self.before


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0]}, {len(names)} cores" if names else "CPU"


# ---------------------------------------------------------------------------------------------------
# Tables and charts


def table(found: Sequence[Measurement]) -> str:
    """Markdown table: a row for each model, a pair of columns (time, memory) for each kind of measurement."""

    columns = list(dict.fromkeys(_column(m.task) for m in found))
    rows: dict[str, dict[str, Measurement]] = {}
    for m in found:
        rows.setdefault(m.task.model, {})[_column(m.task)] = m
    heads = [f"{c}: s | MiB" for c in columns]
    lines = ["| model | " + " | ".join(heads) + " |", "|---|" + "---:|" * (2 * len(columns))]
    for model, row in rows.items():
        cells = []
        for column in columns:
            m = row.get(column)
            if m is None or m.seconds is None:
                cells.append("- | " + (m.error or "-" if m else ""))
            else:
                memory = "-" if m.memory_mib is None else f"{m.memory_mib:.0f}"
                cells.append(f"{m.seconds / m.task.batch:.3g} | {memory}")
        lines.append(f"| `{model}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _column(task: Task) -> str:
    kind = f"{task.mode} {task.precision} {task.size[0]}x{task.size[1]}"
    batch = f", batch {task.batch}" if task.batch > 1 else ""
    return kind + batch + (", checkpointing" if task.checkpointing else "")


def chart(found: Sequence[Measurement]) -> str:
    """Draw seconds an image of each model as horizontal bars (SVG), a colour for each kind of measurement."""
    from maskrcnn.charts import as_file, bar_chart

    columns = list(dict.fromkeys(_column(m.task) for m in found))
    rows: dict[str, dict[str, float]] = {m.task.model: {} for m in found}
    for m in found:
        if m.seconds is not None:
            rows[m.task.model][f"{_column(m.task)}: seconds an image"] = m.seconds / m.task.batch
    return as_file(bar_chart(rows, [f"{column}: seconds an image" for column in columns]))


if __name__ == "__main__":
    values = json.loads(sys.argv[1])
    result = measure(Task(**{**values, "size": tuple(values["size"])}))
    print(json.dumps(asdict(result)))
