"""The replay: first the order that served, to know the replay's own error, then the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner import metrics
from sooner.core import Completed, DataError
from sooner.policies import Policy
from sooner.sim.engine import simulate
from sooner.sim.options import Options
from sooner.whatif.served import ServedTraffic

MEASURES = ("mean_e2e", "p99_e2e", "mean_wait", "mean_ttft")
FEWEST = 20
"""Requests of which half can have a mean worth comparing."""
WAITED = 1e-3
"""A mean wait [s] below which nobody waited, so that no order could have helped."""


class Fidelity(NamedTuple):
    """A measure as it was and as the replay of the same order gives it [s], and how far that is off.

    `error` is the largest relative error over all requests and either half of them: one half's luck
    does not hide the other's.
    """

    real: float
    replayed: float
    error: float


class Saving(NamedTuple):
    """What the order that served saved against another: a share of the other's measure.

    `stands` says whether it is larger than the error of the replay; what does not is no claim.
    """

    saved: float
    error: float

    @property
    def stands(self) -> bool:
        """Whether the replay can tell this from nothing."""
        return abs(self.saved) > self.error


class OtherOrder(NamedTuple):
    """What another order would have done: its measures [s], and what the served one saved against it."""

    policy: str
    measures: dict[str, float]
    claims: dict[str, Saving]


class Losses(NamedTuple):
    """Who waited longer than arrival order would have made them, of one tenant; times [s].

    `lost` counts those whose wait grew by more than the replay's error of a single wait.
    """

    tenant: str
    requests: int
    lost: int
    mean_extra: float
    worst_extra: float
    mean_change: float  # of all its requests; below 0: they waited less


class Counterfactual(NamedTuple):
    """The whole answer; `margin` [s] is the replay's error of a single wait, its median."""

    served: str
    requests: int
    fidelity: dict[str, Fidelity]
    others: tuple[OtherOrder, ...]
    losses: tuple[Losses, ...]
    margin: float
    waited: bool

    @property
    def claims(self) -> bool:
        """Whether a saving, or a cost, against arrival order is larger than the replay's error."""
        claims = self.against_arrival.claims
        return self.waited and (claims["mean_e2e"].stands or claims["mean_wait"].stands)

    @property
    def against_arrival(self) -> OtherOrder:
        """Arrival order, which is always among the others."""
        return next(other for other in self.others if other.policy == "fcfs")


def ask(served: ServedTraffic, policies: Sequence[Policy]) -> Counterfactual:
    """Replay what was served under its own order and under `policies`; arrival order is the first.

    Raises DataError for fewer than 20 requests with times, and where an order wants predictions that the
    record does not have.
    """
    real = served.completed
    seen = np.isfinite(real.finish_time)
    if int(seen.sum()) < FEWEST:
        raise DataError(f"{int(seen.sum())} requests with times, allowed: at least {FEWEST}")
    own = replay(served, served.policy)
    halves = [seen, *_halves(seen)]
    fidelity = {name: _fidelity(name, real, own, halves) for name in MEASURES}
    others, arrival = [], own
    for policy in policies:
        there = own if policy == served.policy else replay(served, policy)
        if policy.name == "fcfs":
            arrival = there
        others.append(_against(policy.name, own, there, fidelity, seen))
    margin = float(np.nanmedian(np.abs(_wait(own) - _wait(real))))
    waited = float(np.nanmean(_wait(real))) > WAITED
    losses = _losses(served, _wait(own) - _wait(arrival), margin)
    return Counterfactual(
        served.policy.name, int(seen.sum()), fidelity, tuple(others), losses, margin, waited
    )


def replay(served: ServedTraffic, policy: Policy) -> Completed:
    """Return what becomes of the requests, row by row, under an order of admissions.

    Raises DataError where the order wants predictions that are not there, or a request does not fit.
    """
    if policy.uses_predictions and not policy.oracle and not served.predicts:
        raise DataError(
            f"policy {policy.name!r} goes by predictions and the record has none; allowed: fcfs, or sjf and"
            " srpt, which are told the true lengths"
        )
    outcome = simulate(
        served.workload,
        served.engine,
        policy,
        predicted_len=served.predicted_len,
        score=served.score,
        options=Options(iteration_level=False),
    )
    if outcome.rejected.size:
        raise DataError(
            f"{outcome.rejected.size} requests are larger than the engine's KV cache of"
            f" {served.engine.num_blocks} blocks; give its limits with --engine"
        )
    return outcome.completed


def _fidelity(name: str, real: Completed, own: Completed, parts: Sequence[NDArray[np.bool_]]) -> Fidelity:
    theirs, ours = _measure(name, real, parts[0]), _measure(name, own, parts[0])
    errors = [_error(_measure(name, real, part), _measure(name, own, part)) for part in parts]
    return Fidelity(theirs, ours, max(errors))


def _error(real: float, replayed: float) -> float:
    return abs(replayed - real) / real if real > 0 else float("inf") if replayed > 0 else 0.0


def _halves(seen: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    rank = np.cumsum(seen)
    return [seen & (rank <= rank[-1] // 2), seen & (rank > rank[-1] // 2)]


def _against(
    name: str, own: Completed, there: Completed, fidelity: dict[str, Fidelity], seen: NDArray[np.bool_]
) -> OtherOrder:
    measures, claims = {}, {}
    for measure in MEASURES:
        ours, theirs = _measure(measure, own, seen), _measure(measure, there, seen)
        ratio = theirs / ours if ours > 0 else 1.0
        measures[measure] = fidelity[measure].real * ratio  # the replay's bias is in both, and cancels
        claims[measure] = Saving(1.0 - 1.0 / ratio if ratio > 0 else 0.0, fidelity[measure].error)
    return OtherOrder(name, measures, claims)


def _measure(name: str, done: Completed, rows: NDArray[np.bool_]) -> float:
    if name == "mean_wait":
        return float(np.nanmean(_wait(done)[rows]))
    if name == "mean_ttft":
        first = np.asarray(metrics.ttft(done))[rows]
        return float(np.nanmean(first)) if np.isfinite(first).any() else 0.0
    latency = np.asarray(metrics.e2e(done))[rows]
    return float(latency.mean() if name == "mean_e2e" else np.percentile(latency, 99))


def _wait(done: Completed) -> NDArray[np.float64]:
    return np.asarray(done.start_time - done.arrival_time, dtype=np.float64)


def _losses(served: ServedTraffic, extra: NDArray[np.float64], margin: float) -> tuple[Losses, ...]:
    """Return the losses by tenant, those of most requests lost first."""
    found = []
    for number, name in enumerate(served.tenants):
        own = extra[served.workload.tenant == number]
        lost = own[own > max(margin, WAITED)]
        found.append(
            Losses(
                name, int(own.size), int(lost.size), float(lost.mean()) if lost.size else 0.0,
                float(lost.max()) if lost.size else 0.0, float(own.mean()),
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda loss: (-loss.lost, loss.tenant)))


def sentence(answer: Counterfactual) -> str:
    """Return the answer in a line, against arrival order."""
    against = answer.against_arrival
    error = answer.fidelity["mean_e2e"].error
    if not answer.waited:
        return "Nobody waited: no order could have helped."
    if answer.served == "fcfs":
        return f"Arrival order served; error of the replay {error:.1%}."
    told, errors = [], []
    for name, words in (("mean_wait", "the mean wait"), ("mean_e2e", "the mean latency")):
        claim = against.claims[name]
        if claim.stands:
            told.append(f"{'saved' if claim.saved > 0 else 'cost'} {abs(claim.saved):.0%} of {words}")
            errors.append(claim.error)
    if not told:
        saved = against.claims["mean_e2e"].saved
        return f"No claim: {saved:+.1%} of the mean latency is within the replay's own error of {error:.1%}."
    tail = against.claims["p99_e2e"]
    told.append(f"P99 {-tail.saved:+.0%}" if tail.stands else f"P99 the same within {tail.error:.0%}")
    said = ", ".join(told)
    return f"{said[0].upper()}{said[1:]}; error of the replay {max(errors):.1%}."
