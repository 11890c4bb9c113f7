"""The report as one HTML file: no script, no network, readable in light and dark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from sooner import metrics
from sooner.core import Completed, Number
from sooner.report import svg
from sooner.report.arms import (
    MEASURES,
    Arm,
    Value,
    by_length,
    has_steps,
    length_deciles,
    measure,
    timeline,
)
from sooner.report.table import shown as shown_value

_RATIOS = (
    ("mean_e2e_s", "Mean E2E"),
    ("p50_e2e_s", "P50 E2E"),
    ("p99_e2e_s", "P99 E2E"),
    ("mean_ttft_s", "Mean TTFT"),
    ("p99_ttft_s", "P99 TTFT"),
    ("mean_normalized_latency", "Mean normalized"),
    ("mean_e2e_steps", "Mean E2E, steps"),
)


def write_html(
    path: Path,
    arms: Mapping[str, Arm],
    meta: Mapping[str, Any],
    *,
    title: str = "Comparison",
    lead: str = "",
) -> None:
    """Write the comparison of `arms` to `path`; the first arm is what the others are compared with.

    `meta` (settings, seeds, versions) is shown as it is; nested mappings become nested tables.
    `lead` opens the page in place of the ratios. Raises DataError where there is no arm or one without
    a finished request.
    """
    path.write_text(html(arms, meta, title=title, lead=lead), encoding="utf-8")


def html(
    arms: Mapping[str, Arm], meta: Mapping[str, Any], *, title: str = "Comparison", lead: str = ""
) -> str:
    """Return the page as text; see `write_html`."""
    values = measure(arms)
    styles = {name: f"s{index % 6}" for index, name in enumerate(arms)}
    legend = _legend({name: styles[name] for name in arms})
    figures = [
        _figure("Latency, all requests", _cdf(arms, styles, metrics.e2e, "E2E latency [s]"), legend),
        _figure("Time to first token", _cdf(arms, styles, metrics.ttft, "TTFT [s]"), legend),
        _figure("Latency by length of the reply", _deciles(arms, styles), legend),
    ]
    if len(arms) > 1:
        first, *others = arms
        gains = _legend({name: styles[name] for name in others})
        figures.append(_figure(f"Gain over {first}", _gains(values, styles), gains))
    if has_steps(arms):
        figures.append(
            _figure(
                "Latency in engine steps", _cdf(arms, styles, metrics.e2e_steps, "E2E [engine steps]"), legend
            )
        )
    style = resources.files("sooner.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        f"<h1>{escape(title)}</h1>\n{_opening(lead) or _lead(values)}\n{_table(values, styles)}\n"
        f'<h2>Latency</h2><div class="grid">{"".join(figures)}</div>\n'
        f'<h2>Running and waiting</h2><div class="grid narrow">{_timelines(arms)}</div>\n'
        f"<h2>How to read this</h2>{_notes(arms, values)}\n"
        f"<h2>Settings</h2>{_mapping(meta)}\n</main></body></html>\n"
    )


def _opening(lead: str) -> str:
    return f'<p class="lead">{escape(lead)}</p>' if lead else ""


def _lead(values: Mapping[str, Mapping[str, Value]]) -> str:
    first, *others = values
    said = []
    for name in others:
        mean, tail = values[name]["mean_e2e_s"].gain, values[name]["p99_e2e_s"].gain
        if mean and tail:
            said.append(f"<b>{escape(name)}</b>: mean latency {_times(mean)}, 99th percentile {_times(tail)}")
    return f'<p class="lead">Against {escape(first)}: {"; ".join(said)}.</p>' if said else ""


def _times(gain: float) -> str:
    if abs(gain - 1) < 0.005:
        return "the same"
    return f"{gain:.2f}&times; shorter" if gain >= 1 else f"{1 / gain:.2f}&times; longer"


def _table(values: Mapping[str, Mapping[str, Value]], styles: Mapping[str, str]) -> str:
    first = next(iter(values))
    head = "".join(
        f'<th scope="col"><span class="swatch {styles[name]}"></span>{escape(name)}</th>' for name in values
    )
    rows = []
    for gauge in MEASURES:
        if gauge.key not in values[first]:
            continue
        cells = []
        for name, row in values.items():
            gain = row[gauge.key].gain if name != first else None
            beside = f"{gain:.2f}&times;" if gain is not None else ""
            cells.append(f"<td><small>{beside}</small>{shown_value(row[gauge.key], gauge)}</td>")
        unit = f" <small>[{escape(gauge.unit)}]</small>" if gauge.unit else ""
        rows.append(f'<tr><th scope="row">{escape(gauge.label)}{unit}</th>{"".join(cells)}</tr>')
    hint = f"Small figures: how many times shorter than under {escape(first)} (below 1: longer)."
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">Measure</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        + (f'<p class="hint">{hint}</p>' if len(values) > 1 else "")
    )


def _cdf(
    arms: Mapping[str, Arm], styles: Mapping[str, str], latency: Callable[[Completed], Number], label: str
) -> str:
    series, top = [], 0.0
    for name, arm in arms.items():
        values = np.atleast_1d(latency(arm.pooled))
        x, y = svg.cdf(values)
        series.append(svg.Series(name, styles[name], x, y))
        top = max(top, float(values.max()))
    share = svg.linear("Share of requests", 0, 1, count=5, percent=True)
    return svg.lines(series, svg.linear(label, 0, top), share, f"Distribution of {label} by policy")


def _deciles(arms: Mapping[str, Arm], styles: Mapping[str, str]) -> str:
    edges = length_deciles(arms)
    series = []
    for name, arm in arms.items():
        done = arm.pooled
        y = by_length(done, edges, np.atleast_1d(metrics.e2e(done)))
        series.append(svg.Series(name, styles[name], np.arange(y.size, dtype=np.float64), y, markers=True))
    x = svg.named("Output length, up to [tokens]", [f"{edge:,.0f}" for edge in edges[1:]])
    top = max(float(np.nanmax(line.y)) for line in series)
    return svg.lines(
        series, x, svg.linear("Mean E2E latency [s]", 0, top), "Mean latency by decile of output length"
    )


def _gains(values: Mapping[str, Mapping[str, Value]], styles: Mapping[str, str]) -> str:
    first, *others = values
    rows = [(key, label) for key, label in _RATIOS if key in values[first]]
    series = []
    for place, name in enumerate(others):
        offset = (place - (len(others) - 1) / 2) * 0.5 / len(others)
        gains = [values[name][key].gain for key, _ in rows]
        x = np.array([np.nan if gain is None else gain for gain in gains])
        series.append(svg.Series(name, styles[name], x, np.arange(len(rows), dtype=np.float64) + offset))
    top = max(1.0, *(float(np.nanmax(line.x)) for line in series))
    axis = svg.linear(f"Times shorter than under {first}", 0, top)
    return svg.dots([label for _, label in rows], series, axis, f"Gain over {first}", reference=1.0)


def _timelines(arms: Mapping[str, Arm]) -> str:
    lines = {name: timeline(arm) for name, arm in arms.items()}
    end = max(float(line.time[-1]) for line in lines.values())
    top = max(float(max(line.running.max(), line.waiting.max())) for line in lines.values())
    x, y = svg.linear("Time [s]", 0, end), svg.linear("Requests", 0, top, count=5)
    legend = _legend({"waiting": "waiting", "running": "running"})
    figures = []
    for name, line in lines.items():
        series = [
            svg.Series("waiting", "waiting", line.time, line.waiting, area=True),
            svg.Series("running", "running", line.time, line.running),
        ]
        title = f"Requests running and waiting under {name}"
        figures.append(_figure(name, svg.lines(series, x, y, title, width=420, height=240), legend))
    return "".join(figures)


def _notes(arms: Mapping[str, Arm], values: Mapping[str, Mapping[str, Value]]) -> str:
    capped = ", ".join(f"{escape(name)} {row['capped_share'].mean:.1%}" for name, row in values.items())
    runs = {len(arm.runs) for arm in arms.values()}
    notes = [
        "E2E: from arrival to the last token. TTFT: from arrival to the first. Normalized latency: E2E over"
        " output tokens, mean over requests. TPOT: time per output token after the first. Shorter is better.",
        f"Replies cut off at the token limit: {capped}. The tighter the limit, the less any order can gain.",
    ]
    if max(runs) > 1:
        notes.append(
            f"{max(runs)} runs an arm: figures are means over runs, ± their standard deviation; distributions"
            " pool all runs; the timelines show the first."
        )
    if any(row["preemptions"].mean > 0 for row in values.values()):
        notes.append("The timelines count a preempted request as running from its first start on.")
    if failed := {name: arm.failed for name, arm in arms.items() if arm.failed}:
        named = ", ".join(f"{escape(name)} {count}" for name, count in failed.items())
        notes.append(f"Requests that failed and are in no figure: {named}.")
    if has_steps(arms):
        notes.append("Engine steps do not depend on how busy the machine was; seconds do.")
    return "<ul>" + "".join(f"<li>{note}</li>" for note in notes) + "</ul>"


def _mapping(meta: Mapping[str, Any]) -> str:
    rows = []
    for name, value in meta.items():
        shown = (
            _mapping(value) if isinstance(value, Mapping) else escape("none" if value is None else str(value))
        )
        rows.append(f"<dt>{escape(str(name)).replace('_', ' ')}</dt><dd>{shown}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def _legend(entries: Mapping[str, str]) -> str:
    items = (
        '<li><svg viewBox="0 0 26 8" aria-hidden="true">'
        f'<line class="line {style}" x1="1" x2="25" y1="4" y2="4"/></svg>{escape(name)}</li>'
        for name, style in entries.items()
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _figure(title: str, drawing: str, legend: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{legend}{drawing}</figure>"
