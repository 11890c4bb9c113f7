"""The page on one ranker: what `sooner evaluate` found, with plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from sooner.report import svg

_STYLE = {"predicted": "s0", "true": "s1", "tau": "s4"}
"""One colour for one thing, in every plot of the page."""

_WIDTH = 440  # of a plot, in its own units: its texts stay legible on a telephone

_ROWS = (
    ("n", "Requests", "{:,.0f}"),
    ("kendall_tau", "Kendall's tau", "{:.3f}"),
    ("kendall_tau_se", "its standard error", "{:.3f}"),
    ("pairwise_accuracy", "Pairs ordered rightly", "{:.1%}"),
    ("spearman", "Spearman's rho", "{:.3f}"),
    ("ms_per_request_batch1", "CPU ms a request, one at a time", "{:.2f}"),
    ("ms_per_request_batch32", "CPU ms a request, 32 at a time", "{:.2f}"),
)


def write(path: Path, result: Mapping[str, Any], *, title: str = "A ranker, judged") -> None:
    """Write the page on `result`, as `sooner.judging.evaluation.evaluate` returns it."""
    path.write_text(html(result, title=title), encoding="utf-8")


def html(result: Mapping[str, Any], *, title: str = "A ranker, judged") -> str:
    """Return the page as text; see `write`."""
    style = resources.files("sooner.report").joinpath("page.css").read_text(encoding="utf-8")
    verdict = result["verdict"]
    answer = "Switch it on" if verdict["switch_on"] else "Do not switch it on"
    lead = f"<b>{answer}</b>: {escape(verdict['reason'])}."
    figures = "".join(
        f"<figure><figcaption>{escape(name)}</figcaption>{drawing}</figure>"
        for name, drawing in (
            ("Predicted and true length, by tenth of the score", _deciles(result["deciles"])),
            ("Share of replies within each predicted quantile", _coverage(result["coverage"])),
            ("Kendall's tau of the ranker and its parts", _parts(result)),
        )
        if drawing
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td>{form.format(result[key])}</td></tr>'
        for key, label, form in _ROWS
        if isinstance(result.get(key), int | float) and math.isfinite(result[key])
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{lead}</p>\n'
        f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>\n'
        f'<div class="grid">{figures}</div>\n<h2>How to read this</h2>{_notes(result)}\n'
        "</main></body></html>\n"
    )


def _deciles(tenths: Sequence[Mapping[str, float]]) -> str:
    if not tenths:
        return ""
    place = np.arange(len(tenths), dtype=np.float64)
    columns = {
        "predicted": np.array([tenth["mean_predicted_len"] for tenth in tenths]),
        "true": np.array([tenth["mean_output_len"] for tenth in tenths]),
    }
    series = [svg.Series(name, _STYLE[name], place, column, markers=True) for name, column in columns.items()]
    top = max(float(column.max()) for column in columns.values())
    drawing = svg.lines(
        series,
        svg.named("Tenth of the score, shortest first", [str(i + 1) for i in range(len(tenths))]),
        svg.linear("Mean reply length [tokens]", 0, top),
        "Mean predicted and mean true reply length by tenth of the score",
        width=_WIDTH,
    )
    return _legend(list(columns)) + drawing


def _coverage(coverage: Mapping[str, float]) -> str:
    if not coverage:
        return ""
    nominal = np.array([float(level) for level in coverage])
    share = np.array(list(coverage.values()))
    series = [
        svg.Series("as predicted", _STYLE["predicted"], np.array([0.0, 1.0]), np.array([0.0, 1.0])),
        svg.Series("true", _STYLE["true"], nominal, share, markers=True),
    ]
    drawing = svg.lines(
        series,
        svg.linear("Predicted quantile", 0, 1, count=5, percent=True),
        svg.linear("Replies within it", 0, 1, count=5, percent=True),
        "Share of replies within each predicted quantile",
        width=_WIDTH,
    )
    return _legend(["as predicted", "true"]) + drawing


def _parts(result: Mapping[str, Any]) -> str:
    taus = {str(result["ranker"]): result["kendall_tau"], **result["tau_by_ranker_part"]}
    known = {name: tau for name, tau in taus.items() if tau is not None and math.isfinite(tau)}
    if (before := (result.get("refit") or {}).get("kendall_tau_before")) is not None:
        known["before the refit"] = before
    ceiling = (result.get("noise_ceiling") or {}).get("kendall_tau_of_a_perfect_ranker")
    if ceiling is not None:
        known["a perfect ranker"] = ceiling
    x = np.array(list(known.values()))
    error = np.full(len(known), np.nan)
    if (found := result.get("kendall_tau_se")) is not None:
        error[0] = found  # the ranker's own
    place = np.arange(len(known), dtype=np.float64)
    series = [svg.Series("tau", _STYLE["tau"], x, place, error=error)]
    axis = svg.linear("Kendall's tau", min(0.0, float(x.min())), 1)
    return svg.dots(list(known), series, axis, "Kendall's tau", reference=0.0, width=_WIDTH, values=True)


def _legend(names: Sequence[str]) -> str:
    items = (
        '<li><svg viewBox="0 0 26 8" aria-hidden="true">'
        f'<line class="line {_STYLE[name.removeprefix("as ")]}" x1="1" x2="25" y1="4" y2="4"/></svg>'
        f"{escape(name)}</li>"
        for name in names
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _notes(result: Mapping[str, Any]) -> str:
    notes = [
        "Tau is 1 for the true order, 0 for a random one; a pair of requests is ordered rightly with"
        " probability (1 + tau) / 2.",
        "The verdict serves the requests in a small queue at load 0.9, 16 at a time; prefill and memory are"
        " left out, so it judges the order and forecasts no machine.",
        "Prompts that came several times count once, with the mean of their lengths.",
    ]
    ceiling = result.get("noise_ceiling")
    if ceiling:
        notes.append(
            f"Two replies to one prompt agree at tau {ceiling['kendall_tau_of_two_replies']:.2f}"
            f" ({ceiling['prompts']} prompts), so no ranker can pass about"
            f" {ceiling['kendall_tau_of_a_perfect_ranker']:.2f}."
        )
    else:
        notes.append("Too few prompts came several times to say how well any ranker could do.")
    if result.get("refit"):
        notes.append(
            f"Refitted on {result['refit']['rows']} rows first; the tau before is"
            f" {result['refit']['kendall_tau_before']:.3f}."
        )
    return "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"
