"""Memory of a large COCO data set: shared arrays against parsed JSON objects, alone and with worker processes.

    python benchmarks/coco_memory.py [--images 100000] [--workers 4] [--out benchmarks/results/coco_memory]

Makes a JSON in a temporary folder (8 objects an image, 24 points a polygon, 5 % RLE), and measures each way of
holding it in a process of its own, beside controls that hold nothing. RSS is the resident memory of one process.
Several processes are summed by PSS, which divides each shared page by the number of processes that have it, so that
the sum is what the machine spends; pages of program libraries are left out, since programs outside share them too.
Before measuring, the process turns the objects of every image into arrays, as an epoch of training would; each
worker those of its share of the images.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

MB = 1e6
WAYS = {
    "none-spawn": "nothing, spawned workers",
    "none": "nothing, forked workers",
    "maskrcnn-spawn": "CocoData, spawned workers",
    "maskrcnn": "CocoData, forked workers",
    "hotcoco": "hotcoco `COCO`, forked workers",
    "json": "`json.load` kept, forked workers",
    "pycocotools": "pycocotools `COCO`, forked workers",
}


def write_json(path: Path, num_images: int) -> None:
    """Streams a data set of `num_images` images to `path`: 8 objects each."""
    from maskrcnn.masks import rle_encode

    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    bitmap = np.zeros((480, 640), np.uint8)
    yy, xx = np.mgrid[:480, :640]
    bitmap[((xx - 320) / 90) ** 2 + ((yy - 240) / 60) ** 2 < 1] = 1
    rle = rle_encode(bitmap)
    images = [
        {"id": i + 1, "file_name": f"{i + 1:012d}.jpg", "height": 480, "width": 640}
        for i in range(num_images)
    ]
    categories = [{"id": c, "name": f"class{c}", "supercategory": "thing"} for c in range(1, 81)]
    with open(path, "w") as file:
        file.write('{"images": ' + json.dumps(images) + ', "categories": ' + json.dumps(categories))
        file.write(', "annotations": [')
        owners = rng.permutation(np.repeat(np.arange(1, num_images + 1), 8))
        for start in range(0, len(owners), 8000):
            part = owners[start : start + 8000]
            centre, radius = (
                rng.uniform(120, 360, (len(part), 1, 2)),
                rng.uniform(10, 110, (len(part), 24, 1)),
            )
            points = (centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)).round(2)
            low, high = points.min(1), points.max(1)
            boxes = np.concatenate([low, high - low], 1).round(2).tolist()
            flat = points.reshape(len(part), -1).tolist()
            entries = []
            for k, image in enumerate(part.tolist()):
                number = start + k
                entry: dict[str, Any] = {"id": number + 1, "image_id": image, "category_id": number % 80 + 1}
                drawn = number % 20 != 0
                entry["segmentation"] = [flat[k]] if drawn else rle
                entry |= {"bbox": boxes[k] if drawn else [230, 180, 180, 120], "area": 1000.5, "iscrowd": 0}
                entries.append(json.dumps(entry))
            file.write((", " if start else "") + ", ".join(entries))
        file.write("]}")


def read(way: str, path: Path) -> Any:
    if way.startswith("none"):
        return None
    if way.startswith("maskrcnn"):
        from maskrcnn.data import read_coco

        return read_coco(path)
    if way == "json":
        gt = json.loads(path.read_text())
        by_image: dict[int, list[Any]] = {}
        for annotation in gt["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        return [by_image.get(image["id"], []) for image in gt["images"]]
    if way == "hotcoco":
        from hotcoco import COCO
    else:
        from pycocotools.coco import COCO
    return COCO(str(path))


def use(way: str, data: Any, num_images: int, worker: int, num_workers: int) -> int:
    """Turn the objects of every `num_workers`-th image into arrays."""
    images = range(worker, num_images, num_workers)
    if way.startswith("none"):
        return 0
    if way.startswith("maskrcnn"):
        return sum(len(data.ground_truth(i)) for i in images)
    num_points = 0
    for i in images:
        objects = data[i] if way == "json" else data.loadAnns(data.getAnnIds(imgIds=[i + 1]))
        for a in objects:
            segmentation = a["segmentation"]
            num_points += len(
                segmentation["counts"] if isinstance(segmentation, dict) else np.array(segmentation[0])
            )
            num_points += len(np.array(a["bbox"]))
    return num_points


def memory() -> dict[str, float]:
    gc.collect()
    process = psutil.Process()
    pss = sum(m.pss for m in process.memory_maps() if ".so" not in m.path and "/bin/" not in m.path)
    return {"rss": process.memory_info().rss / MB, "pss": pss / MB}


def worker(
    way: str, data: Any, num_images: int, k: int, num_workers: int, barrier: Any, results: Any
) -> None:
    load_modules()
    use(way, data, num_images, k, num_workers)
    barrier.wait()
    results.put(memory())
    barrier.wait()


def load_modules() -> None:
    """What a training process has loaded, so that all ways stand on the same ground."""
    import maskrcnn.data
    import maskrcnn.structures  # noqa: F401


def measure(way: str, path: Path, num_images: int, num_workers: int) -> dict[str, Any]:
    load_modules()
    start = time.process_time()
    data = read(way, path)
    result: dict[str, Any] = {"way": way, "load_s": time.process_time() - start}
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in status if line.startswith("VmHWM")).split()[1]
    result |= {"read_peak": int(peak) * 1024 / MB, "after_reading": memory()}
    if way == "maskrcnn-spawn":
        from maskrcnn.data.quality.check import check

        start = time.process_time()
        read(way, path)
        result["load_again_s"] = time.process_time() - start
        result |= {"arrays_mb": data.arrays.nbytes / MB, "pickle_bytes": len(pickle.dumps(data))}
        start = time.process_time()
        result["check_findings"] = len(check(data, images=False))
        result["check_s"] = time.process_time() - start
    start = time.process_time()
    use(way, data, num_images, 0, 1)
    result |= {"use_s": time.process_time() - start, "in_use": memory()}
    context = multiprocessing.get_context("spawn" if way.endswith("spawn") else "fork")
    barrier, results = context.Barrier(num_workers + 1), context.Queue()
    workers = [
        context.Process(target=worker, args=(way, data, num_images, k, num_workers, barrier, results))
        for k in range(num_workers)
    ]
    for w in workers:
        w.start()
    barrier.wait()
    everyone = [memory()] + [results.get() for _ in workers]
    barrier.wait()
    for w in workers:
        w.join()
    return result | {"with_workers": sum(m["pss"] for m in everyone)}


def table(results: list[dict[str, Any]], file_mb: float, num_images: int, num_workers: int) -> str:
    lines = [
        "# Memory of a COCO data set",
        "",
        f"{num_images:,} images, {8 * num_images:,} annotations (95 % polygons of 24 points, 5 % RLE), a JSON of "
        f"{file_mb:.0f} MB; 2-core x86-64, Python {platform.python_version()}. MB = 10^6 bytes. Made by "
        f"`python benchmarks/coco_memory.py`, which says what is measured. In brackets: less what the control "
        f"without data takes.",
        "",
        f"| held as | reading, CPU s | peak RSS while reading, MB | RSS after reading, MB | RSS in use, MB "
        f"| PSS of a process and {num_workers} workers in use, MB |",
        "|---|---|---|---|---|---|",
    ]
    by_way = {r["way"]: r for r in results}
    for way, r in by_way.items():
        control = by_way["none-spawn" if way.endswith("spawn") else "none"]

        def cell(value: float, without: float) -> str:
            return f"{value:.0f} ({value - without:.0f})"

        lines.append(
            f"| {WAYS[way]} | {r['load_s']:.1f} | {cell(r['read_peak'], control['read_peak'])} "
            f"| {cell(r['after_reading']['rss'], control['after_reading']['rss'])} "
            f"| {cell(r['in_use']['rss'], control['in_use']['rss'])} "
            f"| {cell(r['with_workers'], control['with_workers'])} |"
        )
    ours = by_way["maskrcnn-spawn"]
    lines += [
        "",
        f"The arrays are {ours['arrays_mb']:.0f} MB, in one file that all processes map: the first reading makes it, "
        f"later ones ({ours['load_again_s']:.3f} s) find it, the second row of CocoData among them. RSS counts the "
        f"pages of that file, which the system can drop; the PSS column counts them once. The data set sent to a "
        f"spawned worker is {ours['pickle_bytes']} bytes. Checking all annotations takes {ours['check_s']:.1f} s of "
        f"CPU (image files apart), the ground truth of all images {ours['use_s']:.1f} s. Objects kept in workers that "
        f"are spawned, or in the processes of torchrun, would take their RSS once in each.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coco_memory")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "JSON"), help="measure one way in this process")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]), args.images, args.workers)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "instances_train.json")
        write_json(path, args.images)
        file_mb = path.stat().st_size / MB
        results = []
        for way in args.ways:
            environment = os.environ | {"MASKRCNN_CACHE": str(Path(folder, "cache")), "OMP_NUM_THREADS": "1"}
            sizes = ["--images", str(args.images), "--workers", str(args.workers)]
            command = [sys.executable, __file__, *sizes, "--measure", way, str(path)]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(results[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".md").write_text(table(results, file_mb, args.images, args.workers))
    record = {"json_mb": file_mb, "images": args.images, "machine": "2-core x86-64", "results": results}
    args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
