"""The demo's measures: what each order did to the same bursts, and what that amounts to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sooner import metrics
from sooner.core import Completed, DataError, columns
from sooner.replay.record import Record

ARMS = ("fcfs", "ltr", "sjf")

BESIDE = "ltr-beside"
"""The label of a second ranker's learned order."""


def summary(policy: str, bursts: Sequence[Sequence[Record]]) -> dict[str, Any]:
    """Return the measures of one order over all its bursts; steps are the engine's, times are seconds.

    Raises DataError when a request failed: arms are compared on the same requests or not at all.
    """
    failed = [record for burst in bursts for record in burst if not record.finished]
    if failed:
        raise DataError(f"{policy}: {len(failed)} requests failed, the first with {failed[0].error!r}")
    done = together(bursts)
    measured = metrics.summary(done)
    taken = (
        "mean_e2e_s", "p50_e2e_s", "p99_e2e_s", "mean_ttft_s", "p50_ttft_s", "p99_ttft_s",
        "mean_normalized_latency", "p90_normalized_latency", "output_tokens", "preemptions",
    )  # fmt: skip
    steps = np.asarray(metrics.e2e_steps(done))
    return {
        "policy": policy,
        "n": measured["n"],
        "mean_e2e_steps": float(steps.mean()),
        "p99_e2e_steps": float(np.percentile(steps, 99)),
        "mean_normalized_steps": float(np.mean(metrics.normalized_steps(done))),
        **{name: measured[name] for name in taken},
        "capped_share": float(np.mean(done.truncated)),
    }


def together(bursts: Sequence[Sequence[Record]]) -> Completed:
    """Return the requests of several bursts as columns of shape (n,); each burst starts at 0 s."""
    return columns(record.completed() for burst in bursts for record in burst)


def comparison(
    runs: Mapping[str, Sequence[Sequence[Record]]], predicted: Mapping[str, Mapping[Any, float]]
) -> dict[str, Any]:
    """Compare `fcfs`, `ltr` and `sjf`, each a list of bursts, and what stands `beside` them, if anything.

    `predicted` has each learned order's scores by id. Ratios are above 1 where an order is better than
    arrival order, and are of engine steps, which the load of the machine cannot change; `..._seconds`
    are the same of seconds. `by_burst` holds each burst's own, for the spread. `kendall_tau` compares
    scores with the lengths of the FCFS run.
    """
    arms = {label: summary("ltr" if label == BESIDE else label, bursts) for label, bursts in runs.items()}
    result = {"arms": [arms[policy] for policy in ARMS], **_learned("ltr", arms, runs, predicted["ltr"])}
    result["capped_share"] = arms["fcfs"]["capped_share"]
    result["same_lengths_share"] = _agreement(runs)
    if BESIDE in runs:
        result["beside"] = {"arm": arms[BESIDE], **_learned(BESIDE, arms, runs, predicted[BESIDE])}
    return result


def _learned(
    label: str,
    arms: Mapping[str, Mapping[str, float]],
    runs: Mapping[str, Sequence[Sequence[Record]]],
    predicted: Mapping[Any, float],
) -> dict[str, Any]:
    """What one learned order brought, over all bursts and in each."""
    compared = ("fcfs", label, "sjf")
    every = _gains(*(arms[one] for one in compared))
    each = [_gains(*(summary(one, [runs[one][i]]) for one in compared)) for i in range(len(runs["fcfs"]))]
    fcfs = [record for burst in runs["fcfs"] for record in burst]
    scores = [predicted[record.id] for record in fcfs]
    return {
        "kendall_tau": metrics.kendall_tau(scores, [record.output_len or 0 for record in fcfs]),
        **every,
        "by_burst": each,
        "spread": {name: float(np.ptp([gains[name] for gains in each])) for name in every},
    }


def _gains(fcfs: Mapping[str, float], ltr: Mapping[str, float], sjf: Mapping[str, float]) -> dict[str, float]:
    possible = fcfs["mean_e2e_steps"] - sjf["mean_e2e_steps"]
    return {
        "gain_vs_fcfs": fcfs["mean_e2e_steps"] / ltr["mean_e2e_steps"],
        "normalized_gain_vs_fcfs": fcfs["mean_normalized_steps"] / ltr["mean_normalized_steps"],
        "oracle_gain_vs_fcfs": fcfs["mean_e2e_steps"] / sjf["mean_e2e_steps"],
        "share_of_oracle_gain": (fcfs["mean_e2e_steps"] - ltr["mean_e2e_steps"]) / possible
        if possible > 0
        else 0.0,
        "gain_vs_fcfs_seconds": fcfs["mean_e2e_s"] / ltr["mean_e2e_s"],
        "normalized_gain_vs_fcfs_seconds": fcfs["mean_normalized_latency"] / ltr["mean_normalized_latency"],
    }


def _agreement(runs: Mapping[str, Sequence[Sequence[Record]]]) -> float:
    """Return the share of requests whose reply had one length in all arms.

    Seeds are the same, but a batch of another make-up rounds differently, and a reply may then part ways.
    """
    lengths = [[record.output_len for burst in bursts for record in burst] for bursts in runs.values()]
    return float(np.mean([len(set(one)) == 1 for one in zip(*lengths, strict=True)]))
