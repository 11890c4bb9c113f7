"""The two plots that every reproduction uses, on the report's own axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sooner.report import svg
from sooner.reproduce.result import Figure

STYLES = ("s0", "s1", "s2", "s3", "s4", "s5")


def curves(
    title: str,
    x_label: str,
    x: Sequence[str] | Sequence[float],
    y_label: str,
    ys: Mapping[str, Sequence[float]],
) -> Figure:
    """Return lines with dots: against numbers on a linear axis, against names side by side."""
    styles = {name: STYLES[index % len(STYLES)] for index, name in enumerate(ys)}
    numbers = np.array([value for value in x if not isinstance(value, str)], dtype=np.float64)
    if len(numbers) == len(x):
        axis, at = svg.linear(x_label, min(0.0, float(numbers.min())), float(numbers.max())), numbers
    else:
        axis, at = svg.named(x_label, [str(value) for value in x]), np.arange(len(x), dtype=np.float64)
    lines = [
        svg.Series(name, styles[name], at[: len(y)], np.asarray(y, dtype=np.float64), markers=True)
        for name, y in ys.items()
    ]
    flat = np.concatenate([line.y for line in lines])
    up = svg.linear(y_label, min(0.0, float(np.nanmin(flat))), float(np.nanmax(flat)))
    return Figure(title=title, svg=svg.lines(lines, axis, up, title), legend=styles if len(ys) > 1 else {})


def ranks(
    title: str,
    label: str,
    values: Mapping[str, float],
    *,
    paper: Mapping[str, float] | None = None,
    reference: float = 1.0,
) -> Figure:
    """Return one dot a name, a row each, and the paper's where there is one, beside a reference line."""
    shown = {"ours": values} | ({"paper": paper} if paper else {})
    styles = {"ours": "s1", "paper": "s2"}
    dots = [
        svg.Series(
            whose,
            styles[whose],
            np.array([point.get(name, np.nan) for name in values], dtype=np.float64),
            np.arange(len(values), dtype=np.float64),
        )
        for whose, point in shown.items()
    ]
    axis = svg.linear(label, 0.0, max(reference, *(float(np.nanmax(point.x)) for point in dots)))
    legend = {whose: styles[whose] for whose in shown} if paper else {}
    return Figure(
        title=title, svg=svg.dots(list(values), dots, axis, title, reference=reference), legend=legend
    )
