"""The page on what a ranker has learned: the strongest terms as a plot and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from sooner.report import svg

_SHOWN = 15


def write(path: Path, view: Mapping[str, Any], *, title: str) -> None:
    """Write the page on `view`, as `sooner.judging.learned.Overall.as_json` gives it."""
    path.write_text(html(view, title=title), encoding="utf-8")


def html(view: Mapping[str, Any], *, title: str) -> str:
    """Return the page as text; see `write`."""
    style = resources.files("sooner.report").joinpath("page.css").read_text(encoding="utf-8")
    chosen = [*view["longer"][:_SHOWN], *reversed(view["shorter"][:_SHOWN])]
    sampled = "" if view["exact"] else " Terms of the text are sampled, those of 30 prompts."
    shares = "".join(
        f'<tr><th scope="row">{escape(kind)}</th><td>{share:.1%}</td></tr>'
        for kind, share in view["shares"].items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">From {view["rows"]} prompts. To the right: a longer reply'
        f" is expected, and the request runs later.{sampled}</p>\n{_plot(chosen)}\n"
        f"<h2>The strongest terms</h2>{_table(chosen)}\n"
        "<h2>What moves scores, by kind of term</h2>"
        f'<div class="scroll"><table><tbody>{shares}</tbody></table></div>\n</main></body></html>\n'
    )


def _plot(chosen: Sequence[Mapping[str, Any]]) -> str:
    if not chosen:
        return ""
    means = np.array([term["mean"] for term in chosen])
    low, high = min(0.0, float(means.min())), max(0.0, float(means.max()))
    series = [svg.Series("mean", "s0", means, np.arange(len(chosen), dtype=np.float64))]
    axis = svg.linear("Mean added to the score", low, high)
    names = [_short(term["text"]) for term in chosen]
    drawing = svg.dots(names, series, axis, "What the strongest terms add to the score", reference=0.0)
    return f"<figure><figcaption>What the strongest terms add to the score</figcaption>{drawing}</figure>"


def _table(chosen: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(term["text"])}</th><td>{escape(term["kind"])}</td>'
        f"<td>{term['prompts']}</td><td>{term['mean']:+.4f}</td></tr>"
        for term in chosen
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Term", "Kind", "Prompts", "Mean added"))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _short(words: str) -> str:
    plain = " ".join(words.split())
    return plain if len(plain) <= 18 else plain[:17] + "…"
