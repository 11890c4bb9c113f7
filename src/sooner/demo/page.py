"""What the demo shows at its end: a headline and a table on the terminal, and the report as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sooner.demo.arms import on_clock
from sooner.replay.record import read_run
from sooner.replay.work_clock import WorkClock, read_steps
from sooner.report import Arm, write_html
from sooner.work import Pace

_ROWS = (
    ("Mean latency", "s", "mean_e2e_s", 1.0),
    ("P50 latency", "s", "p50_e2e_s", 1.0),
    ("P99 latency", "s", "p99_e2e_s", 1.0),
    ("Mean time to first token", "s", "mean_ttft_s", 1.0),
    ("P99 time to first token", "s", "p99_ttft_s", 1.0),
    ("All done after", "s", "makespan_s", 1.0),
    ("Output", "tokens", "output_tokens", 1.0),
    ("Replies cut at the limit", "%", "capped_share", 100.0),
    ("Mean latency, wall clock", "s", "wall_mean_e2e_s", 1.0),
)
_MEANING = {
    "fcfs": "arrival",
    "boost": "expected work",
    "ltr": "reply length",
    "oracle": "work, lengths known",
}
CLOCK = "Seconds are the engine's work at one pace, so other work on this machine does not move them."


def show(result: Mapping[str, Any]) -> None:
    """Print the headline, the table, and what they mean."""
    console = Console()
    console.print(f"\n[bold]{headline(result)}[/bold]\n", highlight=False)
    scale = result["scale"]
    title = f"{scale['questions']} questions and {scale['documents']} documents at once on the real vLLM"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for arm in result["arms"]:
        table.add_column(f"{arm['policy']}\n[dim]{_MEANING[arm['policy']]}[/dim]", justify="right")
    for label, unit, key, factor in _ROWS:
        cells = [f"{arm[key] * factor:,.{_decimals(arm[key] * factor)}f}" for arm in result["arms"]]
        table.add_row(f"{label} [dim]{unit}[/dim]", *cells)
    console.print(table)
    console.print(sentence(result), highlight=False)


def headline(result: Mapping[str, Any]) -> str:
    """Return what the default order brought, in one sentence."""
    fcfs, boost = result["arms"][:2]
    return (
        "The same requests, the same engine, another order: answers are complete"
        f" {_times(result['gain_vs_fcfs'])} on average"
        f" ({fcfs['mean_e2e_s']:.0f} s became {boost['mean_e2e_s']:.0f} s),"
        f" the slowest 1 % {_times(result['p99_gain_vs_fcfs'])}."
    )


def _times(gain: float) -> str:
    if abs(gain - 1) < 0.005:
        return "at the same time"
    return f"{gain:.2f} times sooner" if gain > 1 else f"{1 / gain:.2f} times later"


def sentence(result: Mapping[str, Any]) -> str:
    """Return what stands behind the headline."""
    words = CLOCK
    if "length_gain_vs_fcfs" in result:
        words += f" Ordering by reply length alone: {_times(result['length_gain_vs_fcfs'])}."
    if "share_of_oracle_gain" in result:
        words += (
            f" Knowing every length: {_times(result['oracle_gain_vs_fcfs'])}, of which the ranker"
            f" {result['ranker']!r} brought {result['share_of_oracle_gain']:.0%}."
        )
    return f"{words} The ranker's Kendall tau on these held-out prompts: {result['kendall_tau']:.2f}."


def write(out: Path, result: Mapping[str, Any]) -> Path:
    """Write the page from the records in `out`; return its path."""
    pace = Pace(**result["pace"])
    arms = {}
    for arm in result["arms"]:
        label = arm["policy"]
        clock = WorkClock(read_steps(out / f"{label}.trace.jsonl"), pace)
        done = on_clock(read_run(out / f"{label}.jsonl").records, clock)
        arms[f"{label}, {_MEANING[label]}"] = Arm(runs=[done])
    meta = {key: value for key, value in result.items() if key != "arms"}
    path = out / "report.html"
    told = {"in short": headline(result), "clock": sentence(result), **meta}
    write_html(
        path, arms, told, title="sooner demo: SmolLM2-135M on vLLM", lead=headline(result) + " " + CLOCK
    )
    return path


def _decimals(value: float) -> int:
    return 0 if value == int(value) or abs(value) >= 1000 else 1
