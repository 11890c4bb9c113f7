"""What the demo shows at its end: a table on the terminal, and the report as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sooner.demo.arms import ARMS, BESIDE
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


def show(result: Mapping[str, Any]) -> None:
    """Print the comparison as a table, and in a sentence what it amounts to."""
    console = Console()
    table = Table(title=f"{result['arms'][0]['n']} requests at once on the real vLLM", title_justify="left")
    table.add_column("")
    arms = _arms(result)
    for meaning, arm in arms.values():
        table.add_column(f"{arm['policy']}\n[dim]{meaning}[/dim]", justify="right")
    for label, unit, key, scale in _ROWS:
        cells = [f"{arm[key] * scale:,.{_decimals(arm[key] * scale)}f}" for _, arm in arms.values()]
        table.add_row(f"{label} [dim]{unit}[/dim]", *cells)
    console.print(table)
    console.print(sentence(result), highlight=False)


def sentence(result: Mapping[str, Any]) -> str:
    """Return what the comparison amounts to."""
    words = f"Learned order by {result['ranker']!r}: {_brought(result)}"
    if "beside" in result:
        words += f" By {result['beside']['ranker']!r}: {_brought(result['beside'])}"
    return (
        f"{words} Knowing every length would make the mean {result['oracle_gain_vs_fcfs']:.2f} times better. "
        f"Counted in engine steps. {result['capped_share']:.0%} of replies hit the limit."
    )


def _brought(gains: Mapping[str, Any]) -> str:
    spread = gains["spread"]["gain_vs_fcfs"]
    across = f" (spread over bursts {spread:.2f})" if len(gains["by_burst"]) > 1 else ""
    return (
        f"mean latency {gains['gain_vs_fcfs']:.2f} times better than arrival order{across}, per token "
        f"{gains['normalized_gain_vs_fcfs']:.2f} times; {gains['share_of_oracle_gain']:.0%} of the "
        f"oracle's gain; Kendall tau on these held-out prompts {gains['kendall_tau']:.2f}."
    )


def write(out: Path, result: Mapping[str, Any]) -> Path:
    """Write the page from the records in `out`; return its path."""
    bursts = range(1, result["scale"]["bursts"] + 1)
    arms = {}
    for label, (meaning, arm) in _arms(result).items():
        runs = [completed(read_run(out / f"{label}-{number}.jsonl").records) for number in bursts]
        arms[f"{arm['policy']}, {meaning}"] = Arm(runs=runs)
    meta = {key: value for key, value in result.items() if key not in ("arms", "by_burst", "beside")}
    path = out / "report.html"
    write_html(path, arms, {"in short": sentence(result), **meta}, title="sooner demo: SmolLM2-135M on vLLM")
    return path


def _arms(result: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """What each order means and what it measured, by label, in the order they are shown."""
    fcfs, ltr, sjf = (dict(zip(ARMS, result["arms"], strict=True))[policy] for policy in ARMS)
    shown = {"fcfs": ("arrival order", fcfs), "ltr": (f"by {result['ranker']}", ltr)}
    if "beside" in result:
        shown[BESIDE] = (f"by {result['beside']['ranker']}", result["beside"]["arm"])
    return shown | {"sjf": ("true lengths", sjf)}


def _decimals(value: float) -> int:
    return 0 if value == int(value) or abs(value) >= 1000 else 1
