"""What Magnus's ladder must show, and its rows and plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sooner.reproduce.plots import curves, ranks
from sooner.reproduce.result import Claim, Figure, Row
from sooner.sim.systems.magnus import MagnusOutcome

Measures = Mapping[str, float]
ARMS = ("VS", "VSQ", "CCB", "GLP", "ABP", "Magnus")
BASELINES = ("VS", "VSQ", "CCB")
UNITS = {
    "throughput_rps": "req/s",
    "valid_tokens_per_s": "tokens/s",
    "tokens_per_s": "tokens/s",
    "mean_response_s": "s",
    "p95_response_s": "s",
}


class MagnusRuns(NamedTuple):
    """All that was run: measures by load and arm, the control's by arm, WMA summed, predictors' errors.

    `recalled` is the busiest load with WMA's threshold as it is recalled.
    """

    loads: Mapping[float, Mapping[str, Measures]]
    control: Mapping[str, Measures]
    summed: Measures
    recalled: Mapping[str, Measures]
    rmse: Mapping[str, float]
    learning: MagnusOutcome
    frozen: MagnusOutcome


def rows(loads: Mapping[float, Mapping[str, Measures]], rmse: Mapping[str, float], busy: float) -> list[Row]:
    """Ours beside the paper's two headlines, then every measure at every load."""
    top = loads[busy]
    gain = {
        arm: 100 * (top["Magnus"]["throughput_rps"] / top[arm]["throughput_rps"] - 1) for arm in BASELINES
    }
    cut = {
        arm: 100 * (1 - top["Magnus"]["mean_response_s"] / top[arm]["mean_response_s"]) for arm in BASELINES
    }
    found = [
        Row(
            setting=f"{busy:g} req/s",
            measure="best throughput gain",
            ours=max(gain.values()),
            paper=234,
            unit="%",
        ),
        Row(
            setting=f"{busy:g} req/s",
            measure="least throughput gain",
            ours=min(gain.values()),
            paper=66,
            unit="%",
        ),
        Row(
            setting=f"{busy:g} req/s",
            measure="best response cut",
            ours=max(cut.values()),
            paper=89.7,
            unit="%",
        ),
        Row(
            setting=f"{busy:g} req/s",
            measure="least response cut",
            ours=min(cut.values()),
            paper=60.3,
            unit="%",
        ),
    ]
    found += [
        Row(setting=f"{rate:g} req/s, {arm}", measure=name, ours=measured[name], unit=UNITS[name])
        for rate, arms in loads.items()
        for arm, measured in arms.items()
        for name in UNITS
    ]
    return found + [
        Row(setting=variant, measure="RMSE of the length", ours=error, unit="tokens")
        for variant, error in rmse.items()
    ]


def claims(found: MagnusRuns, busy: float, light: float) -> list[Claim]:
    """Each shape, held or not."""
    top, calm = found.loads[busy], found.loads[light]
    rate = {arm: measured["throughput_rps"] for arm, measured in top.items()}
    mean = {arm: measured["mean_response_s"] for arm, measured in top.items()}
    gain = {arm: 100 * (rate["Magnus"] / rate[arm] - 1) for arm in BASELINES}
    cut = {arm: 100 * (1 - mean["Magnus"] / mean[arm]) for arm in BASELINES}
    wasted = {
        arm: 1 - measured["valid_tokens_per_s"] / measured["tokens_per_s"] for arm, measured in top.items()
    }
    valid, every = (top["Magnus"][name] / top["VS"][name] for name in ("valid_tokens_per_s", "tokens_per_s"))
    quantised = {name: top["VSQ"][name] / top["VS"][name] for name in ("tokens_per_s", "throughput_rps")}
    control = found.control["GLP"]["throughput_rps"] / found.control["VS"]["throughput_rps"]
    alike = rate["GLP"] / rate["VS"]
    idle = calm["Magnus"]["throughput_rps"] / calm["VS"]["throughput_rps"]
    return [
        *_ladder(rate, mean, found.recalled),
        Claim(
            text="Throughput 66 to 234 % above VS and VSQ at high load (within a factor of 1.5)",
            holds=all(1.66 / 1.5 <= 1 + gain[arm] / 100 <= 3.34 * 1.5 for arm in ("VS", "VSQ")),
            reason=", ".join(f"{arm} {gain[arm]:+.0f} %" for arm in ("VS", "VSQ")),
            source="stated (high end), second-hand (low end)",
        ),
        Claim(
            text="Mean response 60 to 89.7 % below VS and VSQ at high load",
            holds=all(60 <= cut[arm] <= 95 for arm in ("VS", "VSQ")),
            reason=", ".join(f"{arm} {cut[arm]:.0f} % shorter" for arm in ("VS", "VSQ")),
            source="stated (high end), second-hand (low end)",
        ),
        Claim(
            text="Magnus beats conservative continuous batching (CCB) in throughput",
            holds=gain["CCB"] > 0,
            reason=f"{gain['CCB']:+.0f} % here. Our CCB refills a row the moment it ends and prefills"
            " beside decoding; the"
            " paper's ran on an engine that is not described in what could be confirmed, and stalled more",
            source="stated",
        ),
        Claim(
            text="Token throughput rises, and valid-token throughput more",
            holds=valid > every > 1,
            reason=f"against VS: all tokens {every:.2f} times, valid tokens {valid:.2f} times; invalid share"
            f" {100 * wasted['VS']:.0f} % to {100 * wasted['Magnus']:.0f} %",
            source="recalled",
        ),
        Claim(
            text="VSQ looks better in tokens than in requests",
            holds=quantised["tokens_per_s"] > quantised["throughput_rps"],
            reason=f"against VS: tokens {quantised['tokens_per_s']:.2f} times, requests"
            f" {quantised['throughput_rps']:.2f} times, since its replies are longer",
            source="recalled",
        ),
        *_learning(found),
        Claim(
            text="Where replies are unrelated to inputs, batching by predicted length gains nothing",
            holds=control - 1 < 0.25 * (alike - 1),
            reason=f"GLP over VS: {control:.2f} times with shuffled replies, {alike:.2f} times with real"
            " ones",
            source="inferred",
        ),
        Claim(
            text="No throughput gain at light load",
            holds=abs(idle - 1) < 0.05,
            reason=f"Magnus over VS at {light:g} req/s: {idle:.3f} times",
            source="inferred",
        ),
        Claim(
            text="The open question of WMA's aggregate does not decide the result",
            holds=abs(found.summed["throughput_rps"] / rate["Magnus"] - 1) < 0.25,
            reason=f"{found.summed['throughput_rps']:.2f} req/s with the sum and 20 times the threshold,"
            f" {rate['Magnus']:.2f} with the largest",
            source="inferred",
        ),
        Claim(
            text="Continuous batching without the cap does better still, without predicting anything",
            holds=rate["CCB, no cap"] > rate["Magnus"],
            reason=f"{rate['CCB, no cap']:.2f} req/s against Magnus's {rate['Magnus']:.2f}, on the same"
            " memory",
            source="inferred",
        ),
    ]


def _ladder(
    rate: Mapping[str, float], mean: Mapping[str, float], recalled: Mapping[str, Measures]
) -> list[Claim]:
    before = {arm: measured["throughput_rps"] for arm, measured in recalled.items()}
    return [
        Claim(
            text="Throughput rises from VS to GLP to ABP, and HRRN keeps it",
            holds=_rises(rate),
            reason=_each(rate),
            source="recalled",
            reworded="the threshold was lowered to 20,000 for these lengths; with the recalled one, see the"
            " next row",
        ),
        Claim(
            text="The same with WMA's threshold as it is recalled, 50,000",
            holds=_rises(before),
            reason=f"{_each(before)}; at these lengths almost any two requests may then share a batch",
            source="recalled",
        ),
        Claim(
            text="HRRN delivers mostly response time",
            holds=mean["Magnus"] < 0.9 * mean["ABP"],
            reason=f"mean response: ABP {mean['ABP']:.0f} s, Magnus {mean['Magnus']:.0f} s, at"
            f" {rate['Magnus'] / rate['ABP']:.2f} times the throughput",
            source="recalled",
        ),
    ]


def _rises(rate: Mapping[str, float]) -> bool:
    return rate["VS"] < rate["GLP"] < rate["ABP"] and rate["Magnus"] > 0.9 * rate["ABP"]


def _each(rate: Mapping[str, float]) -> str:
    return "req/s: " + ", ".join(f"{arm} {rate[arm]:.2f}" for arm in ("VS", "GLP", "ABP", "Magnus"))


def _learning(found: MagnusRuns) -> list[Claim]:
    rmse = found.rmse
    learnt, frozen = found.learning.lengths.rmse, found.frozen.lengths.rmse
    peak, last = max(learnt), float(np.mean(learnt[-2:]))
    return [
        Claim(
            text="Error of the length: USIN <= INST <= RAFT < UILO",
            holds=rmse["USIN"] <= rmse["INST"] <= 1.02 * rmse["RAFT"] and rmse["RAFT"] < rmse["UILO"],
            reason="RMSE " + ", ".join(f"{name} {error:.1f}" for name, error in rmse.items()) + " tokens",
            source="recalled",
        ),
        Claim(
            text="Learning on line lowers the error after the workload shifts",
            holds=last < 0.8 * peak and last < 0.8 * float(np.mean(frozen[-2:])),
            reason=f"RMSE {learnt[0]:.0f} before, {peak:.0f} at the shift, {last:.0f} at the end; without"
            " learning"
            f" {float(np.mean(frozen[-2:])):.0f}",
            source="recalled",
        ),
    ]


def figures(found: MagnusRuns, rates: list[float]) -> list[Figure]:
    """By load, the ladder, and both learners over time."""

    def by_rate(title: str, label: str, name: str) -> Figure:
        ys = {arm: [found.loads[rate][arm][name] for rate in rates] for arm in ARMS}
        return curves(title, "Offered load [req/s]", rates, label, ys)

    top = found.loads[rates[-1]]
    window = [f"{time / 60:.0f}" for time in found.learning.lengths.time]
    return [
        by_rate("Request throughput", "Completed [req/s]", "throughput_rps"),
        by_rate("Valid-token throughput", "Valid tokens/s", "valid_tokens_per_s"),
        by_rate("Token throughput, invalid ones included", "Tokens/s", "tokens_per_s"),
        by_rate("Mean response time", "Mean response [s]", "mean_response_s"),
        by_rate("95th percentile of response time", "P95 response [s]", "p95_response_s"),
        ranks(
            f"The ladder at {rates[-1]:g} req/s",
            "Throughput over VS",
            {arm: top[arm]["throughput_rps"] / top["VS"]["throughput_rps"] for arm in ARMS},
        ),
        curves(
            "Length predictor after a shift",
            "Time [min]",
            window,
            "RMSE [tokens]",
            {"learning": found.learning.lengths.rmse, "frozen": found.frozen.lengths.rmse[: len(window)]},
        ),
        curves(
            "Batch-time estimator",
            "Time [min]",
            [f"{time / 60:.0f}" for time in found.learning.times.time],
            "RMSE [s]",
            {"learning": found.learning.times.rmse},
        ),
    ]
