"""Where the time of a training step and of inference goes, by kernel and by operator, for R50-FPN.

    python benchmarks/gpu_profile.py --out DIR [--precision bf16] [--batch 8]
    python benchmarks/gpu_profile.py --device cpu --tiny --out DIR     to see that the script works

DIR/profile_training.txt, DIR/profile_inference.txt: the operators that take longest, and how long the host waits for
the device (cudaStreamSynchronize and its like), which should be nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from maskrcnn.bench.measure import Task, build_task, inference_call, training_step

STEPS = 5
WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "aten::item",
    "aten::nonzero",
)


def profiled(task: Task) -> str:
    """Tables of five calls after five of warm-up."""
    model = build_task(task).to(task.device)
    call = training_step(model, task) if task.mode == "training" else inference_call(model, task)
    for _ in range(1 if task.tiny else 5):
        call()
    cuda = torch.device(task.device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as found:
        for _ in range(STEPS):
            call()
        if cuda:
            torch.cuda.synchronize()
    events = found.key_averages()
    by = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    waits = [
        f"{e.key}: {e.count / STEPS:g} a call, {e.self_cpu_time_total / STEPS / 1e3:.2f} ms a call"
        for e in events
        if e.key in WAITS
    ]
    head = f"{task}\n\nThe host waits in:\n" + "".join(f"  {line}\n" for line in waits or ["nothing"])
    tables = [
        events.table(sort_by=key, row_limit=40, max_name_column_width=70)
        for key in (by, "self_cpu_time_total")
    ]
    return head + "\n" + "\n".join(tables)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--model", default="mask_rcnn_R_50_FPN_1x")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "tf32", "bf16", "fp16"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("gpu_profile: no CUDA device here, so nothing was measured", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    for mode in ("training", "inference"):
        task = Task(
            model=args.model, mode=mode, precision=args.precision, size=(96, 128) if args.tiny else (800, 1333),
            batch=1 if args.tiny else args.batch, device=args.device, tiny=args.tiny, engine="eager",
        )  # fmt: skip
        text = profiled(task)
        (args.out / f"profile_{mode}.txt").write_text(text)
        print(text[: text.index("\n\n", text.index("waits"))])
    return 0


if __name__ == "__main__":
    sys.exit(main())
