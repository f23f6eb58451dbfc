"""Page, charts and Markdown of reports on GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from maskrcnn.bench.card_file import PRECISIONS, Report, best_inference, best_training, latency
from maskrcnn.bench.published import INFERENCE, SOURCES, TRAINING, Published
from maskrcnn.charts import Drawing, as_file, grouped_bars, in_page
from maskrcnn.files import write_atomic

METHOD = """\
- Images of {size} with 8 objects each, as polygons. Weights are random, which changes nothing of the work but the
  number of proposals and detections: in inference as many boxes of all sizes as the model keeps proposals stand in for
  these, and 100 of them for the detections that get masks.
- Largest batch: two training steps (the optimiser's memory included) were tried at doubled batches until one ran out of
  memory, then in halves of what was left between; one image more was tried and did not fit.
- Training, synthetic: normalised pixels lie on the card. In the clock are forward, backward and the SGD step, mask
  targets included.
- Training, from files: 16 JPEGs of {pictures}. Decoding, resizing to the preset's sizes, flips, the way to the card and
  normalisation are in the clock too; worker processes: {workers}.
- Inference: from normalised pixels on the card to boxes, scores, classes and 28x28 masks on it. Latency: each call
  waited for, at batch 1, the median. Throughput: calls that are waited for together, at the best batch.
  Engine: {engine}.
- Warm-up: {warm_up} calls; then up to {iterations} calls or {seconds:g} seconds.
- fp32 is IEEE's; tf32 lets convolutions and matrix products round their factors to 10 bits; fp16 and bf16 are autocast
  in training, fp16 with a gradient scaler, and the network's own type in inference. Layout: channels-last.
- Memory is the peak that PyTorch allocated. Other programs' figures were measured by their own rules.
"""


def write_report(report: Report, out: Path) -> None:
    """Write `index.html`, `throughput.svg` and `largest_batch.svg` of a report."""
    write_atomic(out / "throughput.svg", as_file(throughput_chart([report])))
    write_atomic(out / "largest_batch.svg", as_file(batch_chart([report])))
    write_atomic(out / "index.html", page(report))


def throughput_chart(reports: Sequence[Report]) -> Drawing:
    """Draw training images a second on one card: ours first, then what was published, best first."""
    return _chart(reports, best_training, lambda p: p.images_a_second)


def batch_chart(reports: Sequence[Report]) -> Drawing:
    """Draw the largest batch of each card: ours, and Lambda's, whose batches were set to the largest that fit."""
    return _chart(
        reports, lambda row: row.get("largest_batch"), lambda p: p.batch if p.source == "lambda" else None
    )


def _chart(
    reports: Sequence[Report],
    ours: Callable[[dict[str, Any]], float | None],
    theirs: Callable[[Published], float | None],
) -> Drawing:
    mine: dict[str, list[tuple[int, float]]] = {}
    for report in reports:
        for row in report["rows"]:
            if (value := ours(row)) is not None:
                name = f"{_card(report)}: maskrcnn, {_short(row['model'])}"
                mine.setdefault(name, []).append((PRECISIONS.index(row["precision"]), value))
    published: dict[str, list[tuple[int, float]]] = {}
    for one in TRAINING:
        if (value := theirs(one)) is not None:
            bars = published.setdefault(_published_name(one), [])
            bars.append((PRECISIONS.index(one.precision), value))
    groups = mine | dict(sorted(published.items(), key=lambda item: -max(v for _, v in item[1])))
    used = {colour for bars in groups.values() for colour, _ in bars}
    legend = {i: name for i, name in enumerate(PRECISIONS) if i in used}
    return grouped_bars({name: sorted(bars) for name, bars in groups.items()}, legend)


def _published_name(one: Published) -> str:
    source = SOURCES[one.source]
    many = f"{one.gpus} x " if one.gpus > 1 else ""
    return f"{many}{one.card}: {source.name}, {source.year}"


def _card(report: Report) -> str:
    name = report["card"] if len(report["card"]) <= 28 else report["card"][:27] + "…"
    return name + " (trial)" * _is_trial(report)


def _is_trial(report: Report) -> bool:
    return bool(report["tiny"] or report["device"] == "cpu")


def _short(model: str) -> str:
    return model.removeprefix("mask_rcnn_")


def page(report: Report) -> str:
    """HTML page of one card's report: no script, nothing to fetch, light and dark."""
    trial = ""
    if _is_trial(report):
        trial = (
            '<p class="trial"><b>Trial of the page.</b> A tiny variant of the model ran, to see that everything works: '
            "these numbers say nothing about any card.</p>"
        )
    failed = [f"{r['precision']}, {_short(r['model'])}: {r['error']}" for r in report["rows"] if r["error"]]
    parts = [
        f"<h1>{escape(report['card'])}: Mask R-CNN, training and inference</h1>",
        f"<p>{escape(facts_line(report))}</p>",
        trial,
        _html_table(*summary(report)),
        "".join(f"<p>not measured: {escape(text)}</p>" for text in failed),
        "<h2>Training images a second on one GPU</h2>",
        in_page(throughput_chart([report])),
        "<h2>Largest training batch on one GPU</h2>",
        in_page(batch_chart([report])),
        "<h2>Every batch</h2>",
        _html_table(*every_batch(report)),
        "<h2>How it was measured</h2>",
        _html_list(method(report)),
        "<h2>Published figures, with their sources</h2>",
        _html_table(*published_training()),
        _html_table(*published_inference()),
        _html_table(*sources()),
    ]
    title = f"Mask R-CNN on {escape(report['card'])}"
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style><main>\n"
        + "\n".join(filter(None, parts))
        + "</main></html>\n"
    )


def docs_page(reports: Sequence[Report]) -> str:
    """Page of the manual on all cards that results are there for, in Markdown. Charts: `images/gpu_*.svg`."""
    parts = [_DOCS_HEAD]
    if not reports:
        parts.append("Ours: **not measured** so far; no GPU was at hand. What others published is below.\n")
    parts += [f"## {r['card']}\n\n{facts_line(r)}.\n\n{markdown_table(*summary(r))}" for r in reports]
    parts.append(
        "## Charts\n\n![Training images a second on one card](images/gpu_throughput.svg)\n\n"
        "![Largest training batch on one card](images/gpu_largest_batch.svg)\n"
    )
    example = reports[0] if reports else {"rows": [], "tiny": False}
    parts.append(f"## How it is measured\n\n{method(example)}")
    tables = (published_training(), published_inference(), sources())
    parts.append("## Published figures\n\n" + "\n".join(markdown_table(*table) for table in tables))
    return "\n".join(parts)


_DOCS_HEAD = """\
# GPUs

Training speed and largest batch of Mask R-CNN R50-FPN on each card, reproducible with one command. Public benchmarks
of it end in 2022, because the code that they ran no longer builds.

```sh
maskrcnn bench --gpu-report --out report/
```

`report/` gets a page (`index.html`), the two charts and a JSON file named after the card. To add a card to this page,
put that file into `benchmarks/results/gpu/`, run `python benchmarks/gpu_docs.py` and open a pull request.
"""


def facts_line(report: Report) -> str:
    """One line: memory, versions, date."""
    driver = report["driver"] and f"driver {report['driver']}"
    memory = report["memory_gib"] and f"{report['memory_gib']} GiB"
    cuda = report["cuda"] and report["device"] == "cuda" and f"CUDA {report['cuda']}"
    parts = (memory, f"torch {report['torch']}", cuda, driver, report["date"])
    return ", ".join(str(part) for part in parts if part)


def method(report: Report) -> str:
    """Method of a report, as Markdown."""
    tasks = [row["task"] for row in report["rows"]]
    task = (
        tasks[0]
        if tasks
        else {
            "size": (800, 1333),
            "workers": 8,
            "warm_up": 5,
            "iterations": 50,
            "seconds": 5,
            "engine": "eager",
        }
    )
    size, pictures = task["size"], "64x96" if report["tiny"] else "480x640"
    return METHOD.format(**{**task, "size": f"{size[0]}x{size[1]}", "pictures": pictures})


# --------------------------------------------------------------------------------------------- tables

Table = tuple[Sequence[str], list[list[str]]]


def summary(report: Report) -> Table:
    """Table with a row for each model and precision."""
    heads = (
        "model", "precision", "largest batch", "training, images/s", "from files, images/s",
        "inference, images/s", "latency, ms", "training memory at the largest batch, MiB",
    )  # fmt: skip
    rows = []
    for row in sorted(report["rows"], key=lambda r: (r["model"], PRECISIONS.index(r["precision"]))):
        largest = row.get("largest_batch")
        shown = "-" if largest is None else f"{'at least ' * row['largest_is_the_limit']}{largest}"
        peaks = [one["peak_mib"] for one in row.get("training", []) if one["batch"] == largest]
        files = row.get("training_from_files", {}).get("images_a_second")
        numbers = (best_training(row), files, best_inference(row), latency(row), *(peaks or [None]))
        rows.append([_short(row["model"]), row["precision"], shown, *map(_number, numbers)])
    return heads, rows


def every_batch(report: Report) -> Table:
    """Table with a row for each batch that was measured."""
    heads = ("model", "precision", "kind", "batch", "images/s", "calls", "peak memory, MiB")
    rows = []
    for row in report["rows"]:
        kinds: Mapping[str, Iterable[dict[str, Any]]] = {
            "training": row.get("training", ()),
            "training from files": [row["training_from_files"]] if row.get("training_from_files") else (),
            "inference": row.get("inference", ()),
        }
        for kind, found in kinds.items():
            for one in found:
                cells = (
                    one.get("batch"),
                    one.get("images_a_second"),
                    one.get("iterations"),
                    one.get("peak_mib"),
                )
                rows.append([_short(row["model"]), row["precision"], kind, *map(_number, cells)])
    return heads, rows


def published_training() -> Table:
    """Table of published training speeds."""
    heads = ("card", "GPUs", "precision", "batch a GPU", "training, images/s a GPU", "source", "year")
    rows = [
        [p.card, str(p.gpus), p.precision, _number(p.batch), _number(p.images_a_second), *_cite(p.source)]
        for p in TRAINING
    ]
    return heads, rows


def published_inference() -> Table:
    """Table of published inference speeds."""
    batches = sorted({batch for p in INFERENCE for batch in p.images_a_second})
    heads = ("card", "precision", *(f"inference at batch {b}, images/s" for b in batches), "source", "year")
    rows = [
        [p.card, p.precision, *(_number(p.images_a_second.get(b)) for b in batches), *_cite(p.source)]
        for p in INFERENCE
    ]
    return heads, rows


def sources() -> Table:
    """Table of the sources, and how each measured."""
    rows = [[s.name, str(s.year), s.method] for s in SOURCES.values()]
    return ("source", "year", "how it measured"), rows


def _cite(source: str) -> tuple[str, str]:
    return SOURCES[source].name, str(SOURCES[source].year)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def markdown_table(heads: Sequence[str], rows: list[list[str]]) -> str:
    """Markdown of a table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _html_table(heads: Sequence[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(h)}" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}<tbody>{body}</table></div>'


def _html_list(markdown: str) -> str:
    items = markdown.replace("\n  ", " ").strip().splitlines()
    return "<ul>" + "".join(f"<li>{escape(item.removeprefix('- '))}" for item in items) + "</ul>"


_STYLE = """
:root{color-scheme:light dark;--bg:#fafaf9;--card:#fff;--ink:#1c1d22;--dim:#555;--line:#ddd;--warn:#fff3d6;
--c0:#2563eb;--c1:#e8590c;--c2:#0f9d76;--c3:#b83280}
@media(prefers-color-scheme:dark){:root{--bg:#131418;--card:#1c1e24;--ink:#e9e9ee;--dim:#aaa;--line:#333;--warn:#4a3a10;
--c0:#74a3ff;--c1:#ff9f5c;--c2:#4fd1a8;--c3:#f08bc3}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 16px 60px}
h1{font-size:1.8rem;line-height:1.2;margin:0 0 6px}
h2{font-size:1.2rem;margin:36px 0 6px}
.trial{background:var(--warn);padding:10px 14px;border-radius:8px}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:12px;margin-top:10px}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:5px 12px;text-align:right;border-top:1px solid var(--line)}
th{border-top:0}
th:first-child,td:first-child{text-align:left}
svg{width:100%;max-width:860px;height:auto;display:block;background:var(--card);border:1px solid var(--line);
border-radius:12px;padding:6px}
svg text{fill:var(--dim);font-family:system-ui,sans-serif;font-size:11px}
"""
