"""The comparison as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from sooner.report.arms import MEASURES, Arm, Measure, Value, measure


def print_table(arms: Mapping[str, Arm], console: Console | None = None) -> None:
    """Print the measures, a row each, and beside every arm but the first how many times better it is."""
    values = measure(arms)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for index, name in enumerate(values):
        table.add_column(name, justify="right", no_wrap=True)
        if index:
            table.add_column("gain", justify="right", style="dim")
    first = next(iter(values))
    for gauge in MEASURES:
        if gauge.key not in values[first]:
            continue
        cells = [f"{gauge.label} [dim]{gauge.unit}[/dim]" if gauge.unit else gauge.label]
        for index, row in enumerate(values.values()):
            value = row[gauge.key]
            cells.append(shown(value, gauge))
            if index:
                cells.append(f"{value.gain:.2f}x" if value.gain is not None else "")
        table.add_row(*cells)
    (console or Console()).print(table)


def shown(value: Value, gauge: Measure) -> str:
    """Return the measure in its unit, with the spread over the runs where there are several."""
    text = number(value.mean * gauge.scale)
    if value.spread is None or not gauge.compared:
        return text
    return f"{text} ± {number(value.spread * gauge.scale)}"


def number(value: float) -> str:
    """Return a number as people read it: two or three figures, thousands set apart."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.2g}"
