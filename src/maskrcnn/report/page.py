"""Frame and parts of a self-contained HTML page: no scripts, nothing to fetch.

Pictures are embedded as JPEG, colours follow the reader's light or dark mode. Text that comes from data (class
names, captions) is escaped here or by who makes the part.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskrcnn.charts import Curve, in_page, line_chart
from maskrcnn.files import write_atomic


@dataclass(slots=True)
class Panel:
    """Two drawings of one image, (H, W, 3) uint8: with its ground truth, and with the predictions."""

    truth: np.ndarray
    prediction: np.ndarray
    caption: str = ""


def write_page(path: str | Path, title: str, lead: str, cards: str, sections: Iterable[str]) -> Path:
    """Write the page of these sections, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    top = f"<header><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>{cards}</header>"
    body = "\n".join([top, *sections])
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
    page = (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'
    )
    write_atomic(path, page.encode(errors="replace"))  # names of files need not be text
    return Path(path)


def section(title: str, content: str, note: str = "") -> str:
    """HTML section under a title; empty if its content is."""
    note = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{note}{content}</section>" if content else ""


def cards_of(cards: Iterable[tuple[str, str]]) -> str:
    """HTML cards side by side, each a value with its name."""
    items = "".join(f"<div><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>" for v, k in cards)
    return f'<div class="cards">{items}</div>'


def bar(share: float | None) -> str:
    """HTML bar for a fraction from 0 to 1; empty for anything else."""
    if not isinstance(share, int | float) or not share >= 0:
        return ""
    return f'<i class="bar" style="width:{100 * min(share, 1):.0f}px"></i>'


def bar_table(rows: Sequence[tuple[str, int]]) -> str:
    """HTML table with a row for each name, its count and a bar, in columns if there are many."""
    most = max((count for _, count in rows), default=0)
    lines = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{bar(count / most if most else 0)}{count:,}</td></tr>"
        for name, count in rows
    )
    return f'<div class="scroll{" many" * (len(rows) > 24)}"><table>{lines}</table></div>' if rows else ""


def figures(pictures: Iterable[tuple[np.ndarray, str]], *, wide: bool = False) -> str:
    """HTML gallery of (picture, caption), three side by side, or two if wide."""
    parts = []
    for image, caption in pictures:
        words = html.escape(caption)
        img = (
            f'<img src="{data_uri(image)}" width="{image.shape[1]}" height="{image.shape[0]}" alt="{words}">'
        )
        parts.append(f"<figure>{img}<figcaption>{words}</figcaption></figure>")
    return f'<div class="gallery single{" wide" * wide}">{"".join(parts)}</div>' if parts else ""


def gallery(panels: Sequence[Panel]) -> str:
    """HTML gallery of panels: ground truth at the left, prediction at the right."""
    figures = []
    for p in panels:
        words = html.escape(p.caption)
        pair = "".join(
            f'<img src="{data_uri(image)}" width="{image.shape[1]}" height="{image.shape[0]}" alt="{what}: {words}">'
            for image, what in ((p.truth, "ground truth"), (p.prediction, "prediction"))
        )
        figures.append(f'<figure><div class="pair">{pair}</div><figcaption>{words}</figcaption></figure>')
    return f'<div class="gallery">{"".join(figures)}</div>' if figures else ""


def chart(
    title: str,
    curves: Sequence[Curve],
    x_title: str,
    *,
    y_max: float | None = None,
    x_max: float | None = None,
    marks: bool = False,
) -> str:
    """HTML figure of a line chart with its title above and its legend below."""
    legend = "".join(
        f'<span><i style="background:var(--c{i % 8})"></i>{html.escape(c.name)}</span>'
        for i, c in enumerate(curves)
    )
    lines = in_page(line_chart(curves, x_title, y_max=y_max, x_max=x_max, marks=marks))
    return f'<figure><figcaption>{html.escape(title)}</figcaption>{lines}<div class="legend">{legend}</div></figure>'


def data_uri(image: np.ndarray, quality: int = 88) -> str:
    """Encode an (H, W, 3) uint8 picture as a JPEG inside a URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


_STYLE = """
:root{color-scheme:light dark;--bg:#fafaf9;--card:#fff;--ink:#1c1d22;--dim:#686b76;--line:#e3e3e6;--soft:#eef1f6;
--c0:#2563eb;--c1:#e8590c;--c2:#0f9d76;--c3:#b83280;--c4:#8b6c00;--c5:#6d4bd8;--c6:#0b8aa8;--c7:#c92a2a}
@media(prefers-color-scheme:dark){:root{--bg:#131418;--card:#1c1e24;--ink:#e9e9ee;--dim:#9a9dab;--line:#30333c;
--soft:#262a34;--c0:#74a3ff;--c1:#ff9f5c;--c2:#4fd1a8;--c3:#f08bc3;--c4:#e2c044;--c5:#b39cff;--c6:#5cc8e0;--c7:#ff8080}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 16px 60px}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 6px;letter-spacing:-.02em}
h2{font-size:1.2rem;margin:0 0 4px}
header p,.note{color:var(--dim);margin:0 0 14px}
section{margin-top:36px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));gap:10px;margin-top:18px}
.cards div{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px 14px}
.cards b{display:block;font-size:1.45rem;line-height:1.25;font-variant-numeric:tabular-nums}
.cards span{color:var(--dim);font-size:.85rem}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:12px;margin-top:10px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:6px 14px;text-align:right;white-space:nowrap}
th:first-child,.words{text-align:left}
.words{color:var(--dim);width:60%;white-space:normal}
tr+tr>*{border-top:1px solid var(--line)}
tr>th:first-child{font-weight:600}
.bar{display:inline-block;height:8px;border-radius:4px;background:var(--c0);margin-right:10px;vertical-align:middle;opacity:.75}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:12px;padding:10px}
figcaption{font-size:.88rem;color:var(--dim);padding:2px 4px 6px}
.gallery{columns:2 420px;column-gap:12px}
.gallery figure{break-inside:avoid;margin-bottom:12px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:6px;align-items:start}
.pair img{width:100%;height:auto;display:block;border-radius:6px}
.gallery figcaption{padding:6px 4px 0}
.three{grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr))}
.single{columns:3 300px}
.wide{columns:2 420px}
.scroll+.note,.scroll+details,details+.note{margin-top:10px}
.single img{width:100%;height:auto;display:block;border-radius:6px}
.many table{display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));column-gap:18px}
.many tbody{display:contents}
.many tr{display:flex;justify-content:space-between;border-top:1px solid var(--line)}
.many tr>*{border:0}
.chip{display:inline-block;border-radius:99px;padding:1px 10px;font-size:.8rem;background:var(--soft);color:var(--dim)}
.chip.bad{background:var(--c7);color:#fff}
.found{font:.85rem/1.5 ui-monospace,monospace;margin:6px 0 10px;
padding-left:18px;color:var(--dim);overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:12px;margin-top:10px}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--dim);font-size:12px}
.grid{stroke:var(--line);stroke-width:1}
polyline{fill:none;stroke-width:2;stroke-linejoin:round}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;padding:6px 4px 0;font-size:.85rem}
.legend i{display:inline-block;width:12px;height:4px;border-radius:2px;margin-right:6px;vertical-align:middle}
details{margin-top:10px}
summary{cursor:pointer;color:var(--dim)}
pre{background:var(--soft);border-radius:12px;padding:14px;overflow-x:auto;font-size:.8rem;line-height:1.4}
@media(max-width:560px){th,td{padding:6px 9px}.words{min-width:150px}}
"""
