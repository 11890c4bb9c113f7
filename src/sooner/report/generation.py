"""The page on one offline job: what was kept, beside an estimate of what all would have been."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from sooner.report import svg

_STYLE = {"kept": "s2", "all, estimated": "s1", "controls": "s3"}
_COLUMNS = {"kept": "kept_mean_len", "all, estimated": "estimated_mean_len", "controls": "control_mean_len"}
_WIDTH = 440
_FAR = 0.05

_ROWS = (
    ("kept", "Samples kept", "{:,.0f}"),
    ("finished", "finished, controls included", "{:,.0f}"),
    ("aborted", "ended early", "{:,.0f}"),
    ("failed", "failed", "{:,.0f}"),
    ("goal_s", "Goal met after [s]", "{:,.1f}"),
    ("makespan_s", "All ended after [s]", "{:,.1f}"),
    ("goal_steps", "Goal met after [engine steps]", "{:,.0f}"),
    ("steps", "All ended after [engine steps]", "{:,.0f}"),
    ("tokens_discarded", "Tokens thrown away", "{:,.0f}"),
    ("kept_mean_len", "Mean length kept [tokens]", "{:,.1f}"),
    ("estimated_mean_len", "Mean length of all, estimated", "{:,.1f}"),
    ("estimated_mean_se", "its standard error", "{:,.1f}"),
    ("control_mean_len", "Mean length of the controls", "{:,.1f}"),
    ("control_mean_se", "its standard error", "{:,.1f}"),
    ("corrected_mean_len", "Mean length by the weights", "{:,.1f}"),
    ("weights_variance", "Variance of the weights", "{:.2f}"),
    ("cut_share", "Kept samples that were cut at the limit", "{:.1%}"),
)


def write(path: Path, told: Mapping[str, Any]) -> None:
    """Write the page on a job's report, as `sooner generate --json` prints it."""
    path.write_text(html(told), encoding="utf-8")


def verdict(told: Mapping[str, Any]) -> str:
    """Return in one sentence what the goal did to the lengths."""
    kept, estimated = told.get("kept_mean_len"), told.get("estimated_mean_len")
    if not kept or not estimated:
        return "Nothing was kept, so nothing can be said of the lengths."
    if not told["goal"].startswith(("first", "budget")):
        return "What was kept is all, or was drawn before anything ran: its lengths are not biased."
    share = kept / estimated
    if abs(share - 1) < _FAR:
        return f"What was kept is {share:.2f} times as long as all would be: hardly biased in the mean."
    longer = "shorter" if share < 1 else "longer"
    return (
        f"What was kept is {longer} than what was asked for: {kept:,.0f} tokens in the mean, where all"
        f" would have about {estimated:,.0f}. Use the weights, a random sample, or know what you select."
    )


def html(told: Mapping[str, Any]) -> str:
    """Return the page as text; see `write`."""
    style = resources.files("sooner.report").joinpath("page.css").read_text(encoding="utf-8")
    title = f"Offline job, goal {told['goal']}"
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td>{form.format(told[key])}</td></tr>'
        for key, label, form in _ROWS
        if isinstance(told.get(key), int | float)
    )
    tenths = told.get("tenths") or []
    figures = "".join(
        f"<figure><figcaption>{escape(name)}</figcaption>{drawing}</figure>"
        for name, drawing in (
            ("Share kept, by tenth of the predicted length", _shares(tenths)),
            ("Mean length, by tenth of the predicted length", _lengths(tenths)),
        )
        if drawing
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(verdict(told))}</p>\n'
        f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>\n'
        f'<div class="grid">{figures}</div>\n{_groups(told.get("groups") or [])}'
        f"<h2>How to read this</h2>{_notes(told)}\n</main></body></html>\n"
    )


def _shares(tenths: Sequence[Mapping[str, Any]]) -> str:
    if not tenths:
        return ""
    share = np.array([tenth["kept"] / max(tenth["samples"], 1) for tenth in tenths])
    place = np.arange(len(tenths), dtype=np.float64)
    return svg.lines(
        [svg.Series("kept", _STYLE["kept"], place, share, markers=True, area=True)],
        svg.named("Tenth of the predicted length, shortest first", [str(i + 1) for i in range(len(tenths))]),
        svg.linear("Share kept", 0, max(float(share.max()), 0.01), percent=True),
        "Share of the samples kept, by tenth of the predicted length",
        width=_WIDTH,
    )


def _lengths(tenths: Sequence[Mapping[str, Any]]) -> str:
    place = np.arange(len(tenths), dtype=np.float64)
    series = []
    for name, key in _COLUMNS.items():
        values = np.array(
            [np.nan if tenth[key] is None else tenth[key] for tenth in tenths], dtype=np.float64
        )
        if np.isfinite(values).any():
            series.append(svg.Series(name, _STYLE[name], place, values, markers=True))
    if not series:
        return ""
    top = max(float(np.nanmax(line.y)) for line in series)
    drawing = svg.lines(
        series,
        svg.named("Tenth of the predicted length, shortest first", [str(i + 1) for i in range(len(tenths))]),
        svg.linear("Mean reply length [tokens]", 0, top),
        "Mean reply length of what was kept, of the controls and estimated for all",
        width=_WIDTH,
    )
    items = (
        '<li><svg viewBox="0 0 26 8" aria-hidden="true">'
        f'<line class="line {line.style}" x1="1" x2="25" y1="4" y2="4"/></svg>{escape(line.name)}</li>'
        for line in series
    )
    return f'<ul class="legend">{"".join(items)}</ul>{drawing}'


def _groups(groups: Sequence[Mapping[str, Any]]) -> str:
    if len(groups) < 2:
        return ""
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("group", "samples", "kept", "mean kept", "all, estimated", "controls")
    )
    keys = ("samples", "kept", "kept_mean_len", "estimated_mean_len", "control_mean_len")
    rows = "".join(
        f'<tr><th scope="row">{escape(group["group"]) or "(none)"}</th>'
        + "".join(f"<td>{'' if group[key] is None else format(group[key], ',.0f')}</td>" for key in keys)
        + "</tr>"
        for group in groups
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<h2>By group</h2><div class="scroll">{table}</div>\n'


def _notes(told: Mapping[str, Any]) -> str:
    notes = [
        "The estimate for all is a regression of the lengths on the predicted ones; replies that were"
        " ended early count as at least so long.",
        "Controls were drawn at random and run to their end, so their mean is the truth up to its standard"
        " error. Where they contradict the prediction by more than two errors, they decide"
        f" (here: {escape(str(told.get('estimate_rests_on') or 'nothing'))}).",
        "The weights stand beside the samples, in the file .weights.jsonl. A variance of v means that a"
        " weighted mean is worth about 1 / (1 + v) of the samples.",
        "The correction is for the lengths and for what hangs on them through the prediction. What hangs on"
        " the length within a tenth only is corrected as far as the controls and the early ends tell of it.",
    ]
    return "<ul>" + "".join(f"<li>{note}</li>" for note in notes) + "</ul>"
