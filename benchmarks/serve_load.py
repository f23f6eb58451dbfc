"""A service under load: a steady mix of good, broken and huge pictures, slow clients, clients that go away.

    python benchmarks/serve_load.py --model RUN [--minutes 15] [--seconds 30] [--share 0.6] [--out DIR]

plain       `predict` on the same pictures in a process without a service, one after the other
one by one  the service with one client that waits for each answer
batches     eight clients that always wait, --max-batch 1 and 4 in turns: pictures a second
mix         --minutes of requests at --share of what the service can do, whether answers come or not: 80 % good, 8 %
            broken, 4 % of too many pixels, 4 % that send slowly, 4 % that go away. A failure is any answer other than
            the one that is due; 503 is counted apart
burst       64 good pictures at once, four times what may wait: answered or refused with Retry-After

The service is a process of its own on the loopback; this process, which makes the load, shares the processor with it.
Everything is bounded by --minutes and --seconds. Results go to DIR/serve_load.json and DIR/serve_load.md.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from maskrcnn.data.synthetic import random_scene

RESULTS = Path(__file__).resolve().parent / "results"
SIZES = [(480, 640), (640, 480), (600, 800)]
MIX = {"good": 80, "broken": 8, "huge": 4, "slow": 4, "leaves": 4}
DUE = {"good": 200, "broken": 400, "huge": 413, "slow": 200, "leaves": 0}
CLIENTS, BURST, MEMORY_EVERY = 8, 64, 5.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each of the other parts")
    parser.add_argument("--share", type=float, default=0.6)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        print(json.dumps(plain(args.model, args.seconds)))
        return
    found = asyncio.run(measure(args))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "serve_load.json").write_text(json.dumps(found, indent=1) + "\n")
    (args.out / "serve_load.md").write_text(as_markdown(found))
    print(as_markdown(found))


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    from maskrcnn import processor

    command = [sys.executable, __file__, "--plain", "--model", args.model, "--seconds", str(args.seconds)]
    alone = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    found: dict[str, Any] = {
        "machine": processor.describe().line(),
        "torch": version("torch"),
        "model": Path(args.model).name,
        "minutes": args.minutes,
        "plain": alone,
        "throughput": {},
    }
    for max_batch in (1, 4):
        with service(args.model, max_batch) as address:
            if max_batch == 1:
                found["one by one"] = times(await one_by_one(address, args.seconds))
            found["throughput"][str(max_batch)] = await throughput(address, args.seconds)
    rate = args.share * found["throughput"]["1"]["pictures_per_second"]
    with service(args.model, 1) as address:
        found["mix"] = await mix(address, args.minutes * 60, rate)
        found["burst"] = await burst(address)
    return found


# --- the pictures


def pictures() -> list[bytes]:
    """JPEGs of three sizes, the same in every part."""
    encoded = []
    for number in range(12):
        out = io.BytesIO()
        scene = random_scene(np.random.default_rng([3, number]), SIZES[number % len(SIZES)])
        Image.fromarray(scene.image()).save(out, "JPEG", quality=90)
        encoded.append(out.getvalue())
    return encoded


def huge() -> bytes:
    """A PNG of 64 megapixels of one colour: few bytes, many pixels."""
    out = io.BytesIO()
    Image.new("L", (8000, 8000)).save(out, "PNG")
    return out.getvalue()


# --- the parts


def plain(model_name: str, seconds: float) -> dict[str, float]:
    import maskrcnn
    from maskrcnn.engines.heap import keep_freed_memory

    keep_freed_memory()  # as the service does
    model, encoded, taken = maskrcnn.load(model_name), pictures(), []
    model.predict(io.BytesIO(encoded[0]))
    until, number = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        start = time.perf_counter()
        json.dumps(model.predict(io.BytesIO(encoded[number % len(encoded)])).to_coco())
        taken.append(time.perf_counter() - start)
        number += 1
    return times(taken)


@contextmanager
def service(model: str, max_batch: int) -> Iterator[str]:
    """Address of a service process; it is to end with status 0."""
    command = [sys.executable, "-m", "maskrcnn", "serve", "--port", "0", "--model", f"m={model}"]
    command += ["--max-batch", str(max_batch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().rsplit(" ", 1)[-1].strip()
        try:
            for _ in range(600):
                if httpx.get(f"{address}/readyz").status_code == 200:
                    break
                time.sleep(0.1)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
    assert status == 0, f"the service ended with status {status}"


async def one_by_one(address: str, seconds: float) -> list[float]:
    encoded, taken = pictures(), []
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            start = time.perf_counter()
            answer = await client.post("/predict", content=encoded[len(taken) % len(encoded)])
            assert answer.status_code == 200, answer.text
            taken.append(time.perf_counter() - start)
    return taken


async def throughput(address: str, seconds: float) -> dict[str, float]:
    encoded, taken = pictures(), []
    until = time.perf_counter() + seconds

    async def one_client(first: int) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            number = first
            while time.perf_counter() < until:
                start = time.perf_counter()
                answer = await client.post("/predict", content=encoded[number % len(encoded)])
                assert answer.status_code == 200, answer.text
                taken.append(time.perf_counter() - start)
                number += 1

    began = time.perf_counter()
    await asyncio.gather(*(one_client(3 * i) for i in range(CLIENTS)))
    return times(taken) | {"pictures_per_second": len(taken) / (time.perf_counter() - began)}


async def mix(address: str, seconds: float, rate: float) -> dict[str, Any]:
    """Requests at a fixed rate, each kind in its share, and the service's memory meanwhile."""
    rng, encoded, large = np.random.default_rng(0), pictures(), huge()
    kinds, weights = list(MIX), np.array(list(MIX.values())) / 100
    outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    taken: list[float] = []
    memory: list[tuple[float, int]] = []
    running: set[asyncio.Task[None]] = set()

    async def request(client: httpx.AsyncClient, kind: str, picture: bytes) -> None:
        start = time.perf_counter()
        status = await send(client, kind, large if kind == "huge" else picture)
        outcomes[kind][str(status)] += 1
        if kind == "good" and status == 200:
            taken.append(time.perf_counter() - start)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
        began = time.perf_counter()
        next_memory, due = began, began
        while (now := time.perf_counter()) - began < seconds:
            if now >= next_memory:
                memory.append((round(now - began, 1), await resident(client)))
                next_memory += MEMORY_EVERY
            kind = str(rng.choice(kinds, p=weights))
            task = asyncio.create_task(request(client, kind, encoded[int(rng.integers(len(encoded)))]))
            running.add(task)
            task.add_done_callback(running.discard)
            due += float(rng.exponential(1 / rate))
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await asyncio.gather(*running)
        memory.append((round(time.perf_counter() - began, 1), await resident(client)))
    return {
        "requests_per_second": rate,
        "outcomes": {kind: dict(counts) for kind, counts in outcomes.items()},
        "failures": failures(outcomes),
        "good": times(taken),
        "memory": memory,
    }


def failures(outcomes: dict[str, Counter[str]]) -> int:
    """Answers other than the one that is due for each kind of request, and than 503."""
    return sum(
        count
        for kind, counts in outcomes.items()
        for status, count in counts.items()
        if status not in (str(DUE[kind]), "503")
    )


async def send(client: httpx.AsyncClient, kind: str, picture: bytes) -> int | str:
    """Send one request of a kind; 0 for a client that has gone away, else its status or the fault's name."""
    content: bytes | AsyncIterator[bytes] = picture
    if kind == "broken":
        content = picture[: len(picture) // 3]
    elif kind == "slow":
        content = slowly(picture)
    try:
        if kind == "leaves":
            try:
                await asyncio.wait_for(client.post("/predict", content=content), 0.05)
            except TimeoutError:
                return 0
            return 0
        return (await client.post("/predict", content=content)).status_code
    except httpx.HTTPError as e:
        return type(e).__name__


async def slowly(picture: bytes) -> AsyncIterator[bytes]:
    """Five pieces, a second apart."""
    step = -(-len(picture) // 5)
    for first in range(0, len(picture), step):
        yield picture[first : first + step]
        await asyncio.sleep(1)


async def resident(client: httpx.AsyncClient) -> int:
    """Resident MiB of the service, by its own metrics."""
    for line in (await client.get("/metrics")).text.splitlines():
        if line.startswith("process_resident_memory_bytes "):
            return round(float(line.split()[1]) / 2**20)
    return 0


async def burst(address: str) -> dict[str, int]:
    encoded = pictures()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
        posts = [client.post("/predict", content=encoded[i % len(encoded)]) for i in range(BURST)]
        answers = await asyncio.gather(*posts)
    assert all("Retry-After" in a.headers for a in answers if a.status_code == 503)
    return dict(Counter(str(a.status_code) for a in answers))


def times(taken: list[float]) -> dict[str, float]:
    if len(taken) < 2:
        return {"count": len(taken)}
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    return {"count": len(taken), "p50": round(cuts[49], 4), "p99": round(cuts[98], 4)}


def as_markdown(found: dict[str, Any]) -> str:
    mixed, memory = found["mix"], found["mix"]["memory"]
    settled = [mib for second, mib in memory if second >= 0.2 * memory[-1][0]]
    rows = {
        "plain `predict`, one after the other": found["plain"],
        "service, one request at a time": found["one by one"],
        f"service, {CLIENTS} clients that wait, batches of 1": found["throughput"]["1"],
        f"service, {CLIENTS} clients that wait, batches up to 4": found["throughput"]["4"],
        f"service, the mix at {mixed['requests_per_second']:.1f} requests/s, good pictures": mixed["good"],
    }
    lines = [
        "# A service under load",
        "",
        f"{found['machine']}; torch {found['torch']}; {os.cpu_count()} cores, shared with the clients; "
        f"`{found['model']}`; written by `benchmarks/serve_load.py`, which says what is done.",
        "",
        "| | pictures | p50 s | p99 s | pictures/s |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        speed = row.get("pictures_per_second")
        told = f"{speed:.2f}" if speed else ""
        lines.append(f"| {name} | {row['count']} | {row['p50']:.3f} | {row['p99']:.3f} | {told} |")
    outcomes = mixed["outcomes"]
    lines += [
        "",
        f"The mix ran for {found['minutes']:g} minutes: {sum(sum(c.values()) for c in outcomes.values())} requests, "
        f"{mixed['failures']} failures.",
        "",
        "| kind | answers (status: count) |",
        "|---|---|",
    ]
    names = {"0": "gone"}
    for kind, counts in outcomes.items():
        told = ", ".join(f"{names.get(s, s)}: {n}" for s, n in sorted(counts.items()))
        lines.append(f"| {kind} | {told} |")
    lines += [
        "",
        f"Resident memory: {memory[0][1]} MiB at first, {min(settled)} to {max(settled)} MiB after the first fifth, "
        f"{memory[-1][1]} MiB at the end.",
        "",
        f"A burst of {BURST} pictures at once on a queue of 16: "
        + ", ".join(f"{count} x {status}" for status, count in sorted(found["burst"].items()))
        + ".",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
