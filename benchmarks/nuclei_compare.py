"""Two training runs on the nuclei side by side: ours and torchvision's.

    python benchmarks/nuclei_compare.py runs/nuclei runs/torchvision

Reads each run's `log.jsonl` and writes `nuclei.md` (table and commands), `nuclei.json` (both curves) and
`nuclei.svg` (mask AP over minutes of training) to `benchmarks/results`. Runs that are not finished are compared
as far as they are.
"""

from __future__ import annotations

import argparse
import html
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from maskrcnn.charts import Curve, in_page, line_chart
from maskrcnn.config import Config, from_dict, to_dict
from maskrcnn.files import check_writable_folder, write_atomic
from maskrcnn.training.runlog import read_log

HERE = Path(__file__).parent
RECIPE = HERE / "nuclei.json"
OURS = (
    "maskrcnn train --config benchmarks/nuclei.json --data nuclei --weights mobilenet_v2_imagenet.pt "
    "--out runs/nuclei --num-threads 2"
)
THEIRS = (
    "python benchmarks/nuclei_torchvision.py --data nuclei --weights mobilenet_v2_imagenet.pt "
    "--out runs/torchvision"
)
SCORES = (
    ("Box AP", "bbox", "AP"),
    ("Box AP50", "bbox", "AP50"),
    ("Mask AP", "segm", "AP"),
    ("Mask AP50", "segm", "AP50"),
    ("Mask AP75", "segm", "AP75"),
)
COLOURS = ("#2563eb", "#e8590c")


@dataclass(slots=True)
class Run:
    """What a log says of a run: its name, command, images a step, parameters, and its lines."""

    name: str
    command: str
    batch_size: int
    parameters: int
    train: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @property
    def last(self) -> dict[str, Any]:
        """The last line with a count of iterations and the seconds that they took."""
        return max((*self.train[-1:], *self.evaluations[-1:]), key=lambda entry: entry["seconds"])

    @property
    def images_per_second(self) -> float:
        return self.last["iteration"] * self.batch_size / self.last["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ours", type=Path, help="our run's folder")
    parser.add_argument(
        "torchvision", type=Path, nargs="?", help="torchvision's run folder, once there is one"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument(
        "--ours-command", help="to be told, if the run is not by benchmarks/nuclei.json alone"
    )
    parser.add_argument("--torchvision-command", default=None, help="likewise; by default from the run's log")
    args = parser.parse_args()
    check_writable_folder(args.out)
    folders = [folder for folder in (args.ours, args.torchvision) if folder is not None]
    logs = [read_log(folder / "log.jsonl") for folder in folders]
    for folder, log in zip(folders, logs, strict=True):
        if not any(e["kind"] == "config" for e in log) or not any(e["kind"] == "eval" for e in log):
            parser.error(f"{folder / 'log.jsonl'}: expected a run with an evaluation, got none.")
    configs = [next(e["config"] for e in log if e["kind"] == "config") for log in logs]
    if args.ours_command is None and not is_recipe(configs[0]):
        parser.error(f"{args.ours}: its settings are not those of {RECIPE.name}. Give --ours-command.")
    runs = [make_run("maskrcnn", args.ours_command or OURS, configs[0]["data"]["batch_size"], logs[0])]
    if args.torchvision is not None:
        command = args.torchvision_command or their_command(configs[1])
        runs.append(make_run("torchvision", command, configs[1]["batch_size"], logs[1]))
    write_atomic(args.out / "nuclei.json", json.dumps(as_json(runs), indent=1) + "\n")
    write_atomic(args.out / "nuclei.svg", picture(runs))
    write_atomic(args.out / "nuclei.md", page(runs))
    print(table(runs))


def make_run(name: str, command: str, batch_size: int, log: Sequence[dict[str, Any]]) -> Run:
    parameters = next(e["parameters"] for e in log if e["kind"] == "config")
    lines = {kind: [e for e in log if e["kind"] == kind] for kind in ("train", "eval")}
    return Run(name, command, batch_size, parameters, lines["train"], lines["eval"])


def is_recipe(config: dict[str, Any]) -> bool:
    """Whether a run's settings are the recipe's, apart from paths and what comes from the data set."""

    def plain(settings: dict[str, Any]) -> dict[str, Any]:
        settings = to_dict(
            from_dict(Config, settings, "settings")
        )  # with the defaults of what it does not name
        for part, names in (
            ("model", ("num_classes", "class_names", "category_ids")),
            ("data", ("train", "train_images", "val", "val_images")),
            ("train", ("weights",)),
        ):
            for name in names:
                settings[part].pop(name, None)
        return settings

    return plain(config) == plain(json.loads(RECIPE.read_text(encoding="utf-8")))


def their_command(config: dict[str, Any]) -> str:
    """The command of a torchvision run, with its options where they are not the usual ones."""
    usual = {
        "minutes": 25.0,
        "evaluate_minutes": 5.0,
        "evaluate_images": None,
        "batch_size": 4,
        "lr": 3e-4,
        "schedule": "cosine",
        "device": "cpu",
        "threads": 2,
        "seed": 0,
    }
    options = [
        f" --{name.replace('_', '-')} {config[name]}"
        for name, value in usual.items()
        if config[name] != value
    ]
    return THEIRS + "".join(options)


def curve(run: Run) -> list[dict[str, float]]:
    """One point an evaluation."""
    return [
        {
            "minutes": round(e["seconds"] / 60, 3),
            "iteration": e["iteration"],
            **{f"{kind}_{name}": round(e[kind][name], 5) for _, kind, name in SCORES},
        }
        for e in run.evaluations
    ]


def as_json(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "machine": machine(),
        "runs": {
            run.name: {
                "command": run.command,
                "parameters": run.parameters,
                "batch_size": run.batch_size,
                "iterations": run.last["iteration"],
                "minutes": round(run.last["seconds"] / 60, 2),
                "images_per_second": round(run.images_per_second, 3),
                "evaluations": curve(run),
                "losses": [
                    {"minutes": round(e["seconds"] / 60, 3), "iteration": e["iteration"], "loss": e["loss"]}
                    for e in run.train
                ],
            }
            for run in runs
        },
    }


def machine() -> str:
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    return f"{processor}, torch {version('torch')}, torchvision {version('torchvision')}"


def page(runs: Sequence[Run]) -> str:
    remark = " torchvision's run beside it: not measured yet."
    if len(runs) == 2:
        aim = runs[1].evaluations[-1]["segm"]["AP"]
        sooner = next((e["seconds"] / 60 for e in runs[0].evaluations if e["segm"]["AP"] >= aim), None)
        remark = (
            ""
            if sooner is None
            else f" maskrcnn was past torchvision's last mask AP after {sooner:.1f} minutes."
        )
    commands = "\n".join(run.command for run in runs)
    return f"""# Nuclei: maskrcnn and torchvision by the clock

Data Science Bowl 2018, `val`: 94 images, 4,481 nuclei, up to 400 detections an image counted. Training starts
from MobileNetV2's ImageNet weights, on 2 threads; evaluations do not count as training time.{remark}

{table(runs)}

The scores are those of the last evaluation.

![Mask AP over minutes of training](nuclei.svg)

## Mask AP over time

{progress(runs)}

## Commands

`nuclei` is the data's folder (`annotations/train.json`, `annotations/val.json`, `train/`, `val/`).

```
{commands}
python benchmarks/nuclei_compare.py {" ".join(["runs/nuclei", "runs/torchvision"][: len(runs)])}
```

{machine()}. All numbers, and the loss curves, are in [nuclei.json](nuclei.json).
"""


def table(runs: Sequence[Run]) -> str:
    rows = [
        ("Training, minutes", [f"{run.last['seconds'] / 60:.1f}" for run in runs]),
        ("Iterations", [f"{run.last['iteration']:,}" for run in runs]),
        ("Images a step", [str(run.batch_size) for run in runs]),
        ("Images a second", [f"{run.images_per_second:.2f}" for run in runs]),
        ("Parameters, million", [f"{run.parameters / 1e6:.2f}" for run in runs]),
    ]
    rows += [(title, [f"{run.evaluations[-1][k][n]:.3f}" for run in runs]) for title, k, n in SCORES]
    rows.append(
        ("Best mask AP on the way", [f"{max(e['segm']['AP'] for e in run.evaluations):.3f}" for run in runs])
    )
    rows.append(("One evaluation, seconds", [f"{run.evaluations[-1]['took']:.0f}" for run in runs]))
    head = "| | " + " | ".join(run.name for run in runs) + " |\n|---|" + "---:|" * len(runs)
    return "\n".join([head, *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows)])


def progress(runs: Sequence[Run]) -> str:
    """A table of every evaluation, in the order of time."""
    lines = ["| Minutes | Run | Iterations | Mask AP | AP50 | Box AP |", "|---:|---|---:|---:|---:|---:|"]
    for run, e in sorted(((r, e) for r in runs for e in r.evaluations), key=lambda pair: pair[1]["seconds"]):
        numbers = e["segm"]["AP"], e["segm"]["AP50"], e["bbox"]["AP"]
        cells = " | ".join(f"{n:.3f}" for n in numbers)
        lines.append(f"| {e['seconds'] / 60:.1f} | {run.name} | {e['iteration']:,} | {cells} |")
    return "\n".join(lines)


def picture(runs: Sequence[Run]) -> str:
    """The chart as a file of its own, on a light ground whatever is around it."""
    curves = [
        Curve(
            f"{run.name} mask AP",
            [0.0] + [e["seconds"] / 60 for e in run.evaluations],
            [0.0] + [e["segm"]["AP"] for e in run.evaluations],
        )
        for run in runs
    ]
    chart = in_page(line_chart(curves, "minutes of training", marks=True))
    chart = chart.replace("<svg ", '<svg y="34" width="480" height="270" ', 1)
    legend = "".join(
        f'<path d="M{48 + 200 * i} 20h18" stroke="{COLOURS[i]}" stroke-width="3"/>'
        f'<text x="{72 + 200 * i}" y="24">{html.escape(c.name)} {c.y[-1]:.3f}</text>'
        for i, c in enumerate(curves)
    )
    colours = "".join(f"--c{i}:{colour};" for i, colour in enumerate(COLOURS))
    style = (
        f"svg{{{colours}}}text{{font:12px system-ui,sans-serif;fill:#3c3f48}}"
        ".grid{stroke:#e3e3e6}polyline{fill:none;stroke-width:2;stroke-linejoin:round}"
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 308" width="720" height="462">'
        f"<title>Mask AP on the nuclei over minutes of training</title><style>{style}</style>"
        f'<rect width="480" height="308" rx="8" fill="#fff"/>{legend}{chart}</svg>\n'
    )


if __name__ == "__main__":
    main()
