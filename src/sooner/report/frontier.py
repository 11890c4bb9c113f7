"""Mean against P99, both as ratios to arrival order, as one HTML file: no script, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from sooner.report import svg

Row = Mapping[str, Any]
_COLUMNS = (
    ("mean_ratio", "Mean E2E"),
    ("p99_ratio", "P99 E2E"),
    ("mean_ttft_ratio", "Mean TTFT"),
    ("p99_ttft_ratio", "P99 TTFT"),
)


def write_html(path: Path, title: str, found: Mapping[str, Any], *, meta: Mapping[str, Any]) -> None:
    """Write what `sooner tune --json` prints as a page. Raises OSError where it cannot be written."""
    path.write_text(html(title, found, meta=meta), encoding="utf-8")


def html(title: str, found: Mapping[str, Any], *, meta: Mapping[str, Any]) -> str:
    """Return the page as text; see `write_html`."""
    style = resources.files("sooner.report").joinpath("page.css").read_text(encoding="utf-8")
    told = {
        **meta,
        "requests": f"{found['requests']:,}",
        "tail asked for": f"{found['tail']:g}",
        "usual wait of arrival order": f"{found['usual_wait_s']:.3g} s",
    }
    settings = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>'
        for name, value in told.items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(str(found["advice"]))}</p>\n'
        f'<h2>The frontier</h2><div class="grid">{_figure(found)}</div>\n'
        f'<div class="scroll">{_table(found["frontier"], found["chosen"])}</div>\n'
        '<p class="hint">Ratios to arrival order, below 1 is better, on the second half of the time. What is '
        "bold was chosen on the first half.</p>\n"
        f"<h2>How sure</h2><p>{escape(_sure(found))}</p>\n"
        f"<h2>Settings</h2><table><tbody>{settings}</tbody></table>\n</main></body></html>\n"
    )


def _figure(found: Mapping[str, Any]) -> str:
    rows = found["frontier"]
    names = list(dict.fromkeys(str(row["policy"]) for row in rows))
    styles = {name: f"s{index % 6}" for index, name in enumerate(sorted(names, key=lambda n: n != "fcfs"))}
    series = []
    for name in names:
        mine = [row for row in rows if row["policy"] == name]
        mine.sort(key=lambda row: row["mean_ratio"])
        series += [_dot(name, styles[name], [row]) for row in mine if row["gamma"] == 0]
        line = [row for row in mine if row["gamma"] != 0]
        series.append(_dot(name, styles[name], line))
    means = np.array([row["mean_ratio"] for row in rows])
    tails = np.array([row["p99_ratio"] for row in rows])
    x = svg.linear("Mean E2E, of arrival order's", min(0.0, float(means.min())), max(1.0, float(means.max())))
    y = svg.linear("P99 E2E, of arrival order's", 0.0, max(1.0, float(tails.max()), float(found["tail"])))
    bound = svg.Series(
        "the tail asked for", "s5", np.array([x.low, x.high]), np.full(2, float(found["tail"]))
    )
    legend = "".join(
        f'<span><i class="swatch {style}"></i>{escape(name)}</span>' for name, style in styles.items()
    )
    drawn = svg.lines([bound, *series], x, y, "P99 against mean, each point an order")
    return (
        f"<figure><figcaption>P99 against mean; lower left is better</figcaption>"
        f'<div class="legend">{legend}<span><i class="swatch s5"></i>the tail asked for</span></div>{drawn}'
        "</figure>"
    )


def _dot(name: str, style: str, rows: Sequence[Row]) -> svg.Series:
    x = np.array([row["mean_ratio"] for row in rows], dtype=np.float64)
    return svg.Series(name, style, x, np.array([row["p99_ratio"] for row in rows], dtype=np.float64), True)


def _table(rows: Sequence[Row], chosen: Row) -> str:
    head = "".join(f'<th scope="col">{label}</th>' for _, label in _COLUMNS)
    body = "".join(
        _line(row, row["policy"] == chosen["policy"] and row["gamma"] == chosen["gamma"]) for row in rows
    )
    return (
        f'<table><thead><tr><th scope="col">Order</th><th scope="col">gamma [1/s]</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _line(row: Row, chosen: bool) -> str:
    gamma = "" if row["gamma"] is None else f"{row['gamma']:.3g}" if row["gamma"] else "estimated"
    cells = [gamma, *(f"{row[key]:.3f}" for key, _ in _COLUMNS)]
    name = f"<b>{escape(str(row['policy']))}</b>" if chosen else escape(str(row["policy"]))
    return f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _sure(found: Mapping[str, Any]) -> str:
    told = [
        f"from {fold['start_s']:,.0f} s on {fold['policy']} gave a mean of {fold['mean_ratio']:.2f}"
        f" at a P99 of {fold['p99_ratio']:.2f}"
        for fold in found["folds"]
    ]
    return "Chosen anew on all that came before, and judged on the next quarter: " + "; ".join(told) + "."
