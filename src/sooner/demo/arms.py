"""The demo's measures: what each order did to the same burst, on a clock that no other work moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from sooner import metrics
from sooner.core import Completed, DataError
from sooner.replay.record import Record, completed
from sooner.replay.work_clock import WorkClock, pace_of, read_steps

ARMS = ("fcfs", "boost", "ltr", "oracle")
"""Arrival order, the default, reply length alone, and the default told the true lengths."""

_SHOWN = (
    "mean_e2e_s", "p50_e2e_s", "p99_e2e_s", "mean_ttft_s", "p50_ttft_s", "p99_ttft_s",
    "mean_normalized_latency", "p90_normalized_latency", "makespan_s", "output_tokens", "preemptions",
)  # fmt: skip


def comparison(
    runs: Mapping[str, Sequence[Record]], predicted: Mapping[Any, float], traces: Mapping[str, Path]
) -> dict[str, Any]:
    """Compare the orders of `ARMS` that ran, from their records and their engines' traces.

    Times are the engine's work [s] at one pace, fitted to the steps of all orders; `wall_mean_e2e_s` is
    by the clock on the wall. Gains are above 1 where an order is better than arrival order.
    `kendall_tau` compares the ranker's scores with the lengths of the first run. Raises DataError when
    a request failed: orders are compared on the same requests or not at all.
    """
    steps = {label: read_steps(path) for label, path in traces.items()}
    pace = pace_of(list(steps.values()))
    arms = {}
    for label in ARMS:
        if label in runs:
            clock = WorkClock(steps[label], pace)
            arms[label] = _summary(label, runs[label], on_clock(runs[label], clock))
    fcfs, boost = arms["fcfs"], arms["boost"]
    result: dict[str, Any] = {
        "arms": list(arms.values()),
        "pace": asdict(pace),
        "gain_vs_fcfs": fcfs["mean_e2e_s"] / boost["mean_e2e_s"],
        "p99_gain_vs_fcfs": fcfs["p99_e2e_s"] / boost["p99_e2e_s"],
        "ttft_gain_vs_fcfs": fcfs["mean_ttft_s"] / boost["mean_ttft_s"],
        "normalized_gain_vs_fcfs": fcfs["mean_normalized_latency"] / boost["mean_normalized_latency"],
        "kendall_tau": metrics.kendall_tau(
            [predicted[record.id] for record in runs["fcfs"]],
            [record.output_len or 0 for record in runs["fcfs"]],
        ),
        "capped_share": fcfs["capped_share"],
        "same_lengths_share": _agreement(runs),
    }
    if "ltr" in arms:
        result["length_gain_vs_fcfs"] = fcfs["mean_e2e_s"] / arms["ltr"]["mean_e2e_s"]
    if "oracle" in arms:
        possible = fcfs["mean_e2e_s"] - arms["oracle"]["mean_e2e_s"]
        result["oracle_gain_vs_fcfs"] = fcfs["mean_e2e_s"] / arms["oracle"]["mean_e2e_s"]
        gained = fcfs["mean_e2e_s"] - boost["mean_e2e_s"]
        result["share_of_oracle_gain"] = gained / possible if possible > 0 else 0.0
    return result


def on_clock(records: Sequence[Record], clock: WorkClock) -> Completed:
    """Return finished requests with their times on a work clock, which counts in place of steps."""
    no_steps: dict[str, Any] = {"arrival_step": None, "first_token_step": None, "finish_step": None}
    moved = [clock.record(record) for record in records if record.finished]
    return completed([replace(record, **no_steps) for record in moved])


def _summary(label: str, records: Sequence[Record], done: Completed) -> dict[str, Any]:
    failed = [record for record in records if not record.finished]
    if failed:
        raise DataError(f"{label}: {len(failed)} requests failed, the first with {failed[0].error!r}")
    measured = metrics.summary(done)
    wall = completed(records)
    return {
        "policy": label,
        "n": measured["n"],
        **{name: measured[name] for name in _SHOWN},
        "mean_e2e_steps": float(np.mean(metrics.e2e_steps(wall))),
        "wall_mean_e2e_s": float(np.mean(metrics.e2e(wall))),
        "capped_share": float(np.mean(done.truncated)),
    }


def _agreement(runs: Mapping[str, Sequence[Record]]) -> float:
    """Return the share of requests whose reply had one length in all arms.

    Seeds are the same, but a batch of another make-up rounds differently, and a reply may then part ways.
    """
    lengths = [[record.output_len for record in records] for records in runs.values()]
    return float(np.mean([len(set(one)) == 1 for one in zip(*lengths, strict=True)]))
