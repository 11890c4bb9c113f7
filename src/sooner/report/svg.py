"""Plots as SVG text: axes with tidy ticks, lines, areas and dots. Colours come from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 12, 46


class Series(NamedTuple):
    """One line: its CSS class, its points (NaN breaks it), and how to draw it."""

    name: str
    style: str
    x: Column
    y: Column
    markers: bool = False
    area: bool = False
    error: Column | None = None  # half the length of a dot's whisker; NaN for none


class Axis(NamedTuple):
    """One axis: label with unit, range, ticks and their texts."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    texts: Sequence[str]

    def at(self, value: float) -> float:
        """Return where `value` lies on the axis, 0 to 1."""
        return (value - self.low) / (self.high - self.low)


def linear(label: str, low: float, high: float, *, count: int = 6, percent: bool = False) -> Axis:
    """Return an axis from `low` to the tick at or above `high`, its ticks 1, 2 or 5 times a power of ten."""
    span = high - low if high > low else 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.8)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    ticks = [step * k for k in range(first, last + 1)]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    texts = [f"{tick:.0%}" if percent else f"{tick:,.{decimals}f}" for tick in ticks]
    return Axis(label, ticks[0], ticks[-1], ticks, texts)


def named(label: str, texts: Sequence[str]) -> Axis:
    """Return an axis of named places 0, 1, 2, ..."""
    return Axis(label, -0.5, len(texts) - 0.5, range(len(texts)), texts)


def lines(
    series: Sequence[Series], x: Axis, y: Axis, title: str, *, width: int = 560, height: int = 320
) -> str:
    """Return a line plot. `title` is what a screen reader says of it."""
    frame = _Frame(x, y, width, height)
    parts = [frame.axes()]
    for line in series:
        for run in _unbroken(line.x, line.y):
            points = " ".join(f"{frame.px(a):.1f},{frame.py(b):.1f}" for a, b in run)
            if line.area:
                base = f"{frame.py(y.low):.1f}"
                corners = f"{frame.px(run[0][0]):.1f},{base} {points} {frame.px(run[-1][0]):.1f},{base}"
                parts.append(f'<polygon class="area {line.style}" points="{corners}"/>')
            parts.append(f'<polyline class="line {line.style}" points="{points}"/>')
            if line.markers:
                parts += [
                    f'<circle class="dot {line.style}" cx="{frame.px(a):.1f}" cy="{frame.py(b):.1f}" r="3.5">'
                    f"<title>{escape(line.name)}: {b:,.4g}</title></circle>"
                    for a, b in run
                ]
    return _figure(parts, title, width, height)


def dots(
    rows: Sequence[str],
    series: Sequence[Series],
    x: Axis,
    title: str,
    *,
    reference: float,
    width: int = 560,
    values: bool = False,
) -> str:
    """Return a dot plot: one line a row of `rows`, a dot for each series' `x` at its row index `y`.

    A series' `error` becomes whiskers. With `values` each dot's number stands beside it.
    """
    height = _TOP + _BOTTOM + 34 * len(rows)
    y = Axis("", len(rows) - 0.5, -0.5, range(len(rows)), rows)
    frame = _Frame(x, y, width, height, left=130)
    at = f"{frame.px(reference):.1f}"
    parts = [
        frame.axes(),
        f'<line class="reference" x1="{at}" x2="{at}" y1="{_TOP}" y2="{height - _BOTTOM}"/>',
    ]
    for line in series:
        parts += [
            f'<circle class="dot {line.style}" cx="{frame.px(a):.1f}" cy="{frame.py(b):.1f}" r="5.5">'
            f"<title>{escape(line.name)}: {a:.2f}</title></circle>"
            for a, b in zip(line.x, line.y, strict=True)
            if math.isfinite(a)
        ]
        if values:
            parts += [_valued(frame, x, *dot) for dot in _dots(line) if math.isfinite(dot[0])]
    return _figure(parts, title, width, height)


def _dots(series: Series) -> list[tuple[float, float, float]]:
    error = np.full(len(series.x), np.nan) if series.error is None else series.error
    return list(zip(series.x.tolist(), series.y.tolist(), error.tolist(), strict=True))


def _valued(frame: _Frame, x: Axis, value: float, row: float, error: float) -> str:
    """A dot's whisker, and its number on the side where there is room."""
    known = math.isfinite(error)
    half = error if known else 0.0
    at, y = frame.px(value), frame.py(row)
    low, high = frame.px(max(value - half, x.low)), frame.px(min(value + half, x.high))
    whisker = (
        f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>' if known else ""
    )
    text = f"{value:.3f} ± {error:.3f}" if known else f"{value:.3f}"
    right = x.at(value) < 0.6
    place, anchor = (max(high, at + 6) + 5, "start") if right else (min(low, at - 6) - 5, "end")
    corner = f'x="{place:.1f}" y="{y:.1f}" dy="0.34em" text-anchor="{anchor}"'
    return f'{whisker}<text class="value" {corner}>{text}</text>'


def cdf(values: Column, points: int = 400) -> tuple[Column, Column]:
    """Return the empirical distribution of `values` as a staircase thinned to about `points` steps."""
    ordered = np.sort(values)
    share = np.arange(1, ordered.size + 1) / ordered.size
    keep = np.unique(np.linspace(0, ordered.size - 1, min(points, ordered.size)).astype(int))
    x, y = ordered[keep], share[keep]
    return np.r_[np.repeat(x, 2)], np.r_[0.0, np.repeat(y, 2)[:-1]]


class _Frame:
    def __init__(self, x: Axis, y: Axis, width: int, height: int, left: int = _LEFT) -> None:
        self.x, self.y, self.width, self.height, self.left = x, y, width, height, left
        self.px: Callable[[float], float] = lambda value: left + x.at(value) * (width - left - _RIGHT)
        self.py: Callable[[float], float] = lambda value: (
            height - _BOTTOM - y.at(value) * (height - _TOP - _BOTTOM)
        )

    def axes(self) -> str:
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        parts = []
        for tick, text in zip(self.y.ticks, self.y.texts, strict=True):
            at = f"{self.py(tick):.1f}"
            parts.append(f'<line class="grid" x1="{self.left}" x2="{right}" y1="{at}" y2="{at}"/>')
            parts.append(
                f'<text class="tick" x="{self.left - 8}" y="{at}" dy="0.32em" text-anchor="end">'
                f"{escape(text)}</text>"
            )
        for tick, text in zip(self.x.ticks, self.x.texts, strict=True):
            at = f"{self.px(tick):.1f}"
            parts.append(f'<line class="axis" x1="{at}" x2="{at}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(
                f'<text class="tick" x="{at}" y="{bottom + 17}" text-anchor="middle">{escape(text)}</text>'
            )
        middle_x, middle_y = (self.left + right) / 2, (_TOP + bottom) / 2
        parts.append(f'<line class="axis" x1="{self.left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        parts.append(
            f'<text class="label" x="{middle_x:.0f}" y="{self.height - 8}" text-anchor="middle">'
            f"{escape(self.x.label)}</text>"
        )
        if self.y.label:
            parts.append(
                f'<text class="label" transform="translate(14 {middle_y:.0f}) rotate(-90)" '
                f'text-anchor="middle">{escape(self.y.label)}</text>'
            )
        return "".join(parts)


def _unbroken(x: Column, y: Column) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(a) and math.isfinite(b):
            runs[-1].append((a, b))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _figure(parts: Sequence[str], title: str, width: int, height: int) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
