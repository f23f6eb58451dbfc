"""Pages that compare a model with the ground truth, picture by picture, the worst first.

At the left the objects, in blue, those that the model misses in red; at the right what it finds, right ones in blue,
wrong ones in orange with their cause (see `evaluation.causes`). Pages follow each other by links.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskrcnn.evaluation.causes import CAUSES, NONE, find_causes
from maskrcnn.evaluation.pairs import IOUS, WRONG, Pairs
from maskrcnn.images.bands import BandsFile
from maskrcnn.report.mistakes import draw_shapes, picture_image
from maskrcnn.report.page import Panel, cards_of, gallery, section, write_page

PER_PAGE = 12
_RIGHT, _WRONG, _MISSED = (0, 150, 230), (240, 130, 0), (225, 40, 60)


@dataclass(frozen=True, slots=True)
class Judged:
    """Judgement of one picture: which detections (D,) are sure, which of these wrong and by what cause, which objects
    (G,) are missed.
    """

    picture: int  # index into `Pairs.pictures`
    sure: np.ndarray
    cause: np.ndarray
    missed: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        return self.sure & (self.cause != NONE)

    @property
    def errors(self) -> int:
        return int(self.wrong.sum() + self.missed.sum())


def judge(pairs: Pairs, threshold: float) -> list[Judged]:
    """Judge each picture by its detections from `threshold` on; the one with the most errors first."""
    causes = find_causes(pairs)
    judged = []
    for k, (p, errors) in enumerate(zip(pairs.pictures, causes.pictures, strict=True)):
        sure = p.scores >= threshold
        matched = p.match(IOUS[:1])[0]
        missed = ~p.crowd
        missed[matched[sure & (matched > WRONG)]] = False
        judged.append(Judged(k, sure, errors.cause, missed))
    return sorted(judged, key=lambda j: (-j.errors, j.picture))


def write_comparison(
    out: Path,
    title: str,
    pairs: Pairs,
    paths: Mapping[int, Path | BandsFile],
    threshold: float,
    limit: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Path:
    """Write pages of `PER_PAGE` pictures into the folder `out`, index.html the first, and return it.

    paths: of the images, by number; one that cannot be read is left out. limit: the worst so many; 0: all.

    Raises:
        UserError: a page cannot be written.
    """
    judged = judge(pairs, threshold)
    shown = judged[:limit] if limit else judged
    pages = [shown[i : i + PER_PAGE] for i in range(0, len(shown), PER_PAGE)] or [[]]
    perfect = sum(not j.errors for j in judged)
    cards = cards_of(
        [
            (f"{len(judged):,}", "pictures"),
            (f"{perfect:,}", "without an error"),
            (f"{sum(int(j.missed.sum()) for j in judged):,}", "objects missed"),
            (f"{sum(int(j.wrong.sum()) for j in judged):,}", "wrong detections"),
        ]
    )
    lead = (
        f"Detections from a score of {threshold:g}. Left: the objects, missed ones in red. Right: what is found, wrong "
        "ones in orange. The pictures with the most errors come first."
    )
    for number, page in enumerate(pages):
        panels = [panel for j in page if (panel := _panel(pairs, j, paths)) is not None]
        links = _links(number, len(pages))
        body = section(f"Page {number + 1} of {len(pages)}", links + gallery(panels) + links)
        write_page(out / _name(number), title, lead, cards if not number else "", [body])
        if progress:
            progress(number + 1, len(pages))
    return out / _name(0)


def _panel(pairs: Pairs, j: Judged, paths: Mapping[int, Path | BandsFile]) -> Panel | None:
    p = pairs.pictures[j.picture]
    if (image := picture_image(p, paths)) is None:
        return None
    names = pairs.class_names if len(pairs.class_names) > 1 else ("",)
    truth = draw_shapes(
        image,
        p.objects,
        [names[k] for k in p.gt_labels],
        [_MISSED if missed else _RIGHT for missed in j.missed],
    )
    sure = np.flatnonzero(j.sure)
    texts = [f"{names[p.labels[d]]} {p.scores[d]:.2f}".strip() for d in sure]
    causes = ["" if j.cause[d] == NONE else f": {CAUSES[j.cause[d]]}" for d in sure]
    found = draw_shapes(
        image,
        [p.found[d] for d in sure],
        [text + cause for text, cause in zip(texts, causes, strict=True)],
        [_WRONG if cause else _RIGHT for cause in causes],
    )
    said = f"{paths[p.number].name}: {int(j.missed.sum())} missed, {int(j.wrong.sum())} wrong of {len(sure)}"
    return Panel(truth, found, said)


def _name(number: int) -> str:
    return "index.html" if number == 0 else f"page-{number + 1}.html"


def _links(number: int, count: int) -> str:
    """Links to the pages before and after, and to all of them."""
    if count == 1:
        return ""

    def link(target: int, text: str, key: str = "") -> str:
        access = f' accesskey="{key}"' if key else ""
        return f'<a href="{_name(target)}"{access}>{html.escape(text)}</a>'

    parts = [link(number - 1, "← worse", "p")] if number else []
    near = sorted({0, count - 1, *range(max(0, number - 3), min(count, number + 4))})
    parts += [f"<b>{k + 1}</b>" if k == number else link(k, str(k + 1)) for k in near]
    parts += [link(number + 1, "better →", "n")] if number + 1 < count else []
    return f"<p>{' · '.join(parts)}</p>"
