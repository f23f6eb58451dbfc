"""Checks of a GPU against the CPU and against other implementations, without pytest or anything but PyTorch.

    python benchmarks/gpu_checks.py --out DIR
    python benchmarks/gpu_checks.py --device cpu --tiny --out DIR      to see that the script works

kernels      RoIAlign beside torchvision's, DCNv3 and deformable attention beside their `grid_sample` form, forward and
             backward, in each precision; the reference is computed in float64
             suppression and mask targets beside the CPU's
training     losses and gradients of a step in the fixed-size form, and detections, on the device and on the CPU's free
             form, in float32; with recorded graphs and without them
loop         the training loop from image files, in bf16 and fp16; CUDA itself refuses a step that waits for the device
determinism  two steps with deterministic algorithms give the same bits
finiteness   a step with a loss that is not finite changes no weight

DIR/checks.json and DIR/checks.md, written after each check; exit status 1 if any check fails.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA: determinism asks for it

import deformable
import torch
import torchvision
from torch import Tensor
from torchvision_twin import make_twins, objects, photograph

from maskrcnn import presets
from maskrcnn.data.synthetic import make_synthetic
from maskrcnn.engines.cuda_graphs import trained_as_cuda_graphs
from maskrcnn.models.build import build_model
from maskrcnn.ops.roi_align import roi_align
from maskrcnn.ops.suppression import suppress
from maskrcnn.training.distributed import Process
from maskrcnn.training.train import batches_of, open_data
from maskrcnn.training.trainer import Trainer

DTYPES = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


class Check(NamedTuple):
    """Result of one check: the difference found, of the reference's largest value, and what is allowed."""

    name: str
    difference: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed  # a NaN fails


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, of the largest absolute value that was expected."""
    expected = expected.double().cpu()
    spread = float(expected.abs().max().clamp(min=1e-12)) if expected.numel() else 1.0
    return float((found.double().cpu() - expected).abs().max()) / spread if expected.numel() else 0.0


def value_and_gradients(op: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = op(*inputs)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, inputs, weight.to(out.device, out.dtype))]


def check_roi_align(device: torch.device, tiny: bool) -> Iterator[Check]:
    dice = torch.Generator().manual_seed(0)
    channels, height, width, count = (8, 16, 24, 20) if tiny else (256, 200, 336, 1000)
    x = torch.randn(2, channels, height, width, generator=dice).double()
    corner = torch.rand(count, 2, generator=dice) * torch.tensor([width * 3.6, height * 3.6]) - 8
    side = torch.rand(count, 2, generator=dice) * torch.tensor([width * 2.0, height * 2.0])
    boxes = torch.cat([torch.arange(count)[:, None] % 2, corner, corner + side], 1)
    for dtype, allowed in DTYPES.items():
        real = torch.promote_types(dtype, torch.float32)
        mine = x.to(device, dtype).to(memory_format=torch.channels_last)
        of_both = boxes.to(device, real)
        for size in (7, 14):
            ours = value_and_gradients(lambda x, s=size, b=of_both: roi_align(x, b, s, 0.25, 0, True), [mine])
            theirs = value_and_gradients(
                lambda x, s=size, b=of_both: torchvision.ops.roi_align(x, b.double(), s, 0.25, 0, True),
                [mine.double()],
            )
            for what, a, b in zip(("", ", backward"), ours, theirs, strict=True):
                yield Check(f"RoIAlign {size}x{size} {dtype}{what}", relative(a, b), allowed)


def check_deformable(device: torch.device, tiny: bool) -> Iterator[Check]:
    cases = dict(list(deformable.CASES.items())[3:5] if tiny else deformable.CASES)
    for name, make in cases.items():
        torch.manual_seed(0)
        tensors, ours, reference = make()
        for dtype, allowed in DTYPES.items():
            inputs = [t.to(device, dtype) for t in tensors]
            found = value_and_gradients(ours, inputs)
            expected = value_and_gradients(reference, [t.double() for t in inputs])
            # A place that rounding puts on the other side of a cell's border has another slope: not the places' own.
            for what, a, b in zip(("", ", backward of the input"), found[:2], expected[:2], strict=True):
                yield Check(f"{name} {dtype}{what}", relative(a, b), 4 * allowed)


def check_mask_targets(device: torch.device, tiny: bool) -> Iterator[Check]:
    masks = objects(480, 640)[0].masks
    assert masks is not None
    dice = torch.Generator().manual_seed(0)
    index = torch.randint(-1, len(masks), (50 if tiny else 512,), generator=dice)
    boxes = masks.tight_boxes((0, 0, 640, 480))[index] + 20 * torch.randn(len(index), 4, generator=dice)
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    for kind, some in (("polygons", masks), ("bitmaps", masks.filled())):
        there, here = some.rasterize(boxes.to(device), index.to(device), 28), some.rasterize(boxes, index, 28)
        apart = float((there.cpu() != here).float().mean())
        yield Check(f"mask targets of {kind}: share of cells that differ from the CPU's", apart, 0.005)


def check_suppression(device: torch.device, tiny: bool) -> Iterator[Check]:
    """An overlap that is the threshold but for its last bit may fall on either side: a share may differ."""
    dice, count, most = torch.Generator().manual_seed(0), 200 if tiny else 4000, 1000
    corner = torch.rand(2, count, 2, generator=dice) * 600
    boxes = torch.cat([corner, corner + 20 + 100 * torch.rand(2, count, 2, generator=dice)], 2)
    scores = torch.rand(2, count, generator=dice)
    scores[:, ::7] = -torch.inf
    groups = torch.randint(0, 5, (2, count), generator=dice)
    here = suppress(boxes, scores, groups, 5, 0.5, most)
    there = suppress(boxes.to(device), scores.to(device), groups.to(device), 5, 0.5, most).cpu()
    for one, other in zip(here.tolist(), there.tolist(), strict=True):
        share = 1 - len(set(one) & set(other)) / len(set(one) | set(other))
        yield Check("suppression: share of boxes that one of the two has chosen", share, 0.01)


def check_model(device: torch.device, tiny: bool) -> Iterator[Check]:
    size = (96, 128) if tiny else (480, 640)
    picture = torch.from_numpy(photograph(*size)).permute(2, 0, 1)
    target, _ = objects(*size)
    losses, gradients, detections = [], [], []
    for where in (torch.device("cpu"), device):
        model, _ = make_twins(min(size), max(size))
        model.to(where).train()
        model.fixed_size = bool(losses)  # on the device: as the loop runs there
        found = model(model.preprocess([picture]), [target.to(where)])
        torch.stack(list(found.values())).sum().backward()
        losses.append(torch.stack([loss.detach() for loss in found.values()]).cpu())
        norms = [p.grad.double().norm().cpu() for p in model.parameters() if p.grad is not None]
        gradients.append(torch.stack(norms))
        model.fixed_size = False
        detections.append(model.eval().detect(model.preprocess([picture]))[0].to("cpu"))
    yield Check("training step: losses, of the CPU's", relative(losses[1], losses[0]), 1e-3)
    yield Check("training step: gradients' norms, of the CPU's", relative(gradients[1], gradients[0]), 1e-2)
    cpu, gpu = detections
    yield Check("detections: number", abs(len(gpu) - len(cpu)), 0)
    if len(gpu) == len(cpu):
        yield Check("detections: scores", float((gpu.scores - cpu.scores).abs().max()), 1e-3)
        same = gpu.labels == cpu.labels  # equal scores may change places
        yield Check("detections: share of other classes", 1 - float(same.float().mean()), 0.02)
        apart = (gpu.boxes - cpu.boxes).abs().amax(1)
        yield Check("detections: share of boxes 0.05 px off", float((apart > 0.05).float().mean()), 0.02)


def check_graphs(device: torch.device, tiny: bool) -> Iterator[Check]:
    """Three steps: the first records, the second and third replay what the first has written to."""
    size = (96, 128) if tiny else (480, 640)
    picture = torch.from_numpy(photograph(*size)).permute(2, 0, 1)
    target = objects(*size)[0].to(device)
    model, _ = make_twins(min(size), max(size))
    model.to(device).train()
    record = None if device.type == "cuda" else lambda network, _: lambda *x: network(*x)
    graphed = trained_as_cuda_graphs(model, [], record)
    found: list[tuple[Tensor, Tensor]] = []
    for one in (model, graphed):
        losses: dict[str, Tensor] = {}
        for _ in range(3):
            model.zero_grad()
            torch.manual_seed(1)
            losses = one(model.preprocess([picture]), [copy.deepcopy(target)])
            torch.stack(list(losses.values())).sum().backward()
        norms = [p.grad.double().norm() for p in model.parameters() if p.grad is not None]
        found.append((torch.stack([loss.detach() for loss in losses.values()]), torch.stack(norms)))
    for what, plain, replayed in zip(("losses", "gradients' norms"), *found, strict=True):
        yield Check(f"recorded graphs: {what}, of the model's own", relative(replayed, plain), 1e-2)


def check_loop(device: torch.device, tiny: bool) -> Iterator[Check]:
    cuda = device.type == "cuda"
    size = (96, 128) if tiny else (480, 640)
    for precision, graphs in (
        (("bf16", False), ("fp16", False), ("bf16", True)) if cuda else (("bf16", False),)
    ):
        what = f"training loop in {precision}" + ", recorded graphs" * graphs
        config = presets.get("mask_rcnn_R_50_FPN_1x", tiny=tiny)
        config.data.batch_size, config.data.num_workers = 2, 0
        config.train.precision, config.train.cuda_graphs = precision, graphs  # pyright: ignore
        config.optim.clip_grad_norm = 10.0
        with tempfile.TemporaryDirectory() as folder:
            config.data.train = str(make_synthetic(Path(folder) / "data", 8, 1, size))
            data, _ = open_data(config.data, lambda _: None, config.model)
            torch.manual_seed(0)
            process = Process(device)
            run = Trainer(
                build_model(config.model), config, Path(folder) / "run", batches=batches_of(config, data, process),
                process=process, display=Mock(),  # the real one wants a package more
            )  # fmt: skip
            losses = steps_of(run, count=8, refuse_waits_from=4 if cuda and not graphs else None)
        yield Check(
            f"{what}: steps with a loss that is not finite", sum(not math.isfinite(x) for x in losses), 0
        )
        yield Check(f"{what}: steps that were not read", 8 - len(losses), 0)


def steps_of(run: Trainer, count: int, refuse_waits_from: int | None) -> list[float]:
    """Take steps as the loop does; the sum of the losses of each. CUDA raises an error where one waits."""
    losses, stream = [], run.batches(0)
    for number in range(count):
        refuse = refuse_waits_from is not None and number >= refuse_waits_from
        try:
            if refuse:
                torch.cuda.set_sync_debug_mode("error")
            run.late.add(run._step(*next(stream), lr=1e-4))
        finally:
            if refuse:
                torch.cuda.set_sync_debug_mode("default")
        losses += [sum(step.read()[0][:-1]) for step in run.late.due(None if number < count - 1 else 0)]
    return losses


def check_determinism(device: torch.device, tiny: bool) -> Iterator[Check]:
    size = (96, 128) if tiny else (480, 640)
    picture = torch.from_numpy(photograph(*size)).permute(2, 0, 1)
    target, _ = objects(*size)
    weights = []
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for _ in range(2):
            model, _ = make_twins(min(size), max(size))
            model.to(device).train()
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3, fused=True)
            for _ in range(2):
                optimizer.zero_grad()
                found = model(model.preprocess([picture]), [target.to(device)])
                torch.stack(list(found.values())).sum().backward()
                optimizer.step()
            weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]).cpu())
    finally:
        torch.use_deterministic_algorithms(False)
    yield Check("determinism: weights after two steps", float((weights[0] != weights[1]).sum()), 0)


def check_finiteness(device: torch.device, tiny: bool) -> Iterator[Check]:
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        model = torch.nn.Linear(8, 8).to(device)
        optimizer: Any = kind(model.parameters(), lr=0.1, fused=True)
        moved = []
        for loss in (model(torch.ones(1, 8, device=device)).sum(), model.weight.sum() * torch.inf):
            before = model.weight.detach().clone()
            optimizer.zero_grad()
            loss.backward()
            optimizer.found_inf = 1.0 - loss.detach().isfinite().float()
            optimizer.step()
            moved.append(float((model.weight.detach() - before).abs().max()))
        yield Check(f"finiteness: {kind.__name__} moves after a finite loss", float(moved[0] == 0), 0)
        yield Check(f"finiteness: {kind.__name__} stays after an infinite one", moved[1], 0)


CHECKS = (
    check_roi_align,
    check_deformable,
    check_mask_targets,
    check_suppression,
    check_model,
    check_graphs,
    check_loop,
    check_determinism,
    check_finiteness,
)


def failed_with(check: Callable[..., Any], error: Exception) -> Check:
    """A check that ended in an error is one that failed; the others go on."""
    text = str(error).splitlines()[0][:200] if str(error) else ""
    return Check(f"{check.__name__}: {type(error).__name__}: {text}", float("nan"), 0)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--go-on", type=int, default=0, metavar="N", help="leave out the first N, which DIR has"
    )
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("gpu_checks: no CUDA device here, so nothing was checked", file=sys.stderr)
        return 2
    device = torch.device(args.device)
    found = kept(args.out) if args.go_on else []
    for number, check in enumerate(CHECKS[args.go_on :], args.go_on):
        error = None
        try:
            for one in check(device, args.tiny):
                found.append(one)
                print(f"{'ok    ' if one.passed else 'FAILED'} {one.difference:9.2e} {one.name}", flush=True)
        except Exception as e:
            traceback.print_exc()
            error = e
            found.append(failed_with(check, e))
            print(f"FAILED {found[-1].name}", flush=True)
        write(found, args.out, device, args.tiny)  # at once: this may be ended at any time
        if error and number + 1 < len(CHECKS) and context_is_lost(device):
            print("CUDA is lost to this process: another one goes on", flush=True)
            sys.stderr.flush()
            os.execv(sys.executable, [sys.executable, *sys.argv, "--go-on", str(number + 1)])
    return 0 if all(c.passed for c in found) else 1


def context_is_lost(device: torch.device) -> bool:
    """Tell whether every call fails from now on, as after a kernel that reads where it must not."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def kept(folder: Path) -> list[Check]:
    rows = json.loads((folder / "checks.json").read_text())["checks"]
    return [Check(row["name"], row["difference"], row["allowed"]) for row in rows]


def write(found: list[Check], folder: Path, device: torch.device, tiny: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, a trial of the script"
    rows = [{**one._asdict(), "passed": one.passed} for one in found]
    about = {"device": name, "torch": torch.__version__, "tiny": tiny, "checks": rows}
    (folder / "checks.json").write_text(json.dumps(about, indent=1) + "\n")
    lines = [
        f"| {c.name} | {c.difference:.2e} | {c.allowed:.0e} | {'yes' if c.passed else '**no**'} |"
        for c in found
    ]
    head = f"# Checks on {name}, torch {torch.__version__}\n\n"
    head += "| check | difference | allowed | passed |\n|---|---|---|---|\n"
    (folder / "checks.md").write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
