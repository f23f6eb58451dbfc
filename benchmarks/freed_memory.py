"""What keeping freed memory (`maskrcnn.engines.heap`, as `maskrcnn predict` and `evaluate` do) and large pages
(`THP_MEM_ALLOC_ENABLE`, as `import maskrcnn` sets) save and cost: R50-FPN on one image of 800x1067.

    python benchmarks/freed_memory.py [--rounds 3] [--threads 2]     # writes benchmarks/results/freed_memory.json

Each measurement is a process of its own, the four kinds by turns: the median of five images after one, and the most
resident memory that it ever had, with PyTorch and all. The table has medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "freed_memory.json"
KINDS = {
    f"{kept}, {pages}": (kept == "kept", pages == "large pages")
    for kept in ("given back", "kept")
    for pages in ("small pages", "large pages")
}


def child(precision: str, kept: bool, threads: int) -> None:
    import torch

    import maskrcnn
    from maskrcnn.engines.heap import keep_freed_memory
    from maskrcnn.engines.prepare import prepare
    from maskrcnn.memory import peak_mib

    if kept:
        assert keep_freed_memory(), "the C library does not keep memory"
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = prepare(maskrcnn.build("mask_rcnn_R_50_FPN_3x"), precision)  # type: ignore[arg-type]
    image = torch.randint(0, 255, (3, 800, 1067), dtype=torch.uint8)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        model.detect(model.preprocess([image]))
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": statistics.median(seconds[1:]), "peak_mib": round(peak_mib() or 0)}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.child[1] == "True", args.threads)
        return
    rows = []
    for precision in ("fp32", "bf16"):
        found: dict[str, list[dict]] = {kind: [] for kind in KINDS}
        for _ in range(args.rounds):
            for kind, (kept, large) in KINDS.items():
                command = [sys.executable, __file__, "--threads", str(args.threads)]
                command += ["--child", precision, str(kept)]
                env = {**os.environ, "THP_MEM_ALLOC_ENABLE": str(int(large))}
                done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
                found[kind].append(json.loads(done.stdout))
        for kind, runs in found.items():
            medians = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "peak_mib")}
            rows.append({"precision": precision, "memory": kind, **medians})
            print(json.dumps(rows[-1]), flush=True)
    about = {"machine": f"{os.cpu_count()}-core {platform.machine()}", "threads": args.threads}
    about |= {"torch": version("torch"), "rounds": args.rounds, "rows": rows}
    RESULT.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
