"""What the demo shows at its end: a table on the terminal, and the report as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sooner.demo.arms import ARMS
from sooner.replay.record import completed, read_run
from sooner.report import Arm, write_html

_ROWS = (
    ("Mean E2E", "steps", "mean_e2e_steps", 1.0),
    ("Mean E2E", "s", "mean_e2e_s", 1.0),
    ("P99 E2E", "s", "p99_e2e_s", 1.0),
    ("Mean TTFT", "s", "mean_ttft_s", 1.0),
    ("P50 TTFT", "s", "p50_ttft_s", 1.0),
    ("P99 TTFT", "s", "p99_ttft_s", 1.0),
    ("Mean normalized", "ms/token", "mean_normalized_latency", 1000.0),
    ("Output", "tokens", "output_tokens", 1.0),
    ("Preemptions", "", "preemptions", 1.0),
    ("Replies cut at the limit", "%", "capped_share", 100.0),
)
_MEANING = {"fcfs": "arrival order", "ltr": "learned order", "sjf": "true lengths"}


def show(result: Mapping[str, Any]) -> None:
    """Print the comparison as a table, and in a sentence what it amounts to."""
    console = Console()
    table = Table(title=f"{result['arms'][0]['n']} requests at once on the real vLLM", title_justify="left")
    table.add_column("")
    for policy in ARMS:
        table.add_column(f"{policy}\n[dim]{_MEANING[policy]}[/dim]", justify="right")
    for label, unit, key, scale in _ROWS:
        cells = [f"{arm[key] * scale:,.{_decimals(arm[key] * scale)}f}" for arm in result["arms"]]
        table.add_row(f"{label} [dim]{unit}[/dim]", *cells)
    console.print(table)
    console.print(sentence(result), highlight=False)


def sentence(result: Mapping[str, Any]) -> str:
    """Return what the comparison amounts to."""
    spread = result["spread"]["gain_vs_fcfs"]
    across = f" (spread over bursts {spread:.2f})" if len(result["by_burst"]) > 1 else ""
    return (
        f"Learned order: mean latency {result['gain_vs_fcfs']:.2f} times better than arrival order{across}, "
        f"per token {result['normalized_gain_vs_fcfs']:.2f} times, counted in engine steps; "
        f"{result['share_of_oracle_gain']:.0%} of what knowing every length would bring "
        f"({result['oracle_gain_vs_fcfs']:.2f} times). Kendall tau of the {result['ranker']!r} ranker on "
        f"these held-out prompts: {result['kendall_tau']:.2f}. "
        f"{result['capped_share']:.0%} of replies hit the limit."
    )


def write(out: Path, result: Mapping[str, Any]) -> Path:
    """Write the page from the records in `out`; return its path."""
    bursts = range(1, result["scale"]["bursts"] + 1)
    arms = {
        policy: Arm(runs=[completed(read_run(out / f"{policy}-{number}.jsonl").records) for number in bursts])
        for policy in ARMS
    }
    meta = {key: value for key, value in result.items() if key not in ("arms", "by_burst")}
    path = out / "report.html"
    write_html(path, arms, {"in short": sentence(result), **meta}, title="sooner demo: SmolLM2-135M on vLLM")
    return path


def _decimals(value: float) -> int:
    return 0 if value == int(value) or abs(value) >= 1000 else 1
