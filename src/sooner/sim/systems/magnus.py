"""Magnus: batches of alike predicted lengths, ordered by highest response ratio (arXiv 2406.04785).

Requests get a predicted generation length on arrival and join the queued batch where they waste the
least (`magnus_batching`). A free instance takes the batch with the largest wait over estimated time
and runs it statically to its true longest reply; a batch that outgrows memory is split in two. Both
learners refit on what they got wrong. VS, GLP and ABP switch parts of it off; CCB is continuous.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sooner.core import ConfigError, UnknownName
from sooner.sim.static import Bilinear, Column, Counts, run_batch
from sooner.sim.systems.magnus_batching import Batcher, MagnusBatch, halves
from sooner.sim.systems.magnus_learning import LengthPredictor, TimeEstimator

CHATGLM_6B_TOKEN_BYTES = 2 * 28 * 4096 * 2
"""KV bytes per token in fp16: 2 x layers x width x 2."""
WAITS = ("mean", "longest")


@dataclass(frozen=True, slots=True, kw_only=True)
class MagnusSettings:
    """Magnus's constants; see `UNCONFIRMED`. Lengths in tokens, times in seconds."""

    instances: int = 7
    max_input: int = 1024
    limit: int = 1024
    memory_bytes: float = 7.0e9
    threshold: float = 50_000.0
    aggregate: str = "max"
    batch_wait: str = "mean"
    reload_s: float = 5.0
    predictor_every_s: float = 180.0
    predictor_error: tuple[float, float] = (10.0, 0.10)
    estimator_every_s: float = 120.0
    estimator_error: tuple[float, float] = (2.0, 0.20)
    neighbours: int = 5
    noise: float = 0.03

    def __post_init__(self) -> None:
        if self.batch_wait not in WAITS:
            raise UnknownName("batch wait", self.batch_wait, WAITS)
        if min(self.instances, self.max_input, self.limit) < 1 or self.fixed_rows < 1:
            raise ConfigError(f"instances, lengths and the fixed batch must be >= 1: {self}")
        if min(self.predictor_every_s, self.estimator_every_s) <= 0 or min(self.noise, self.reload_s) < 0:
            raise ConfigError(f"periods must be > 0, noise and reload_s >= 0: {self}")

    @property
    def memory_tokens(self) -> int:
        """Cached tokens that fit (Theta / Delta)."""
        return int(self.memory_bytes / CHATGLM_6B_TOKEN_BYTES)

    @property
    def fixed_rows(self) -> int:
        """VS's batch: as many requests of the longest input and reply as fit."""
        return self.memory_tokens // (self.max_input + self.limit)


UNCONFIRMED = {
    "instances": "recalled, low confidence",
    "max_input": "recalled, low confidence",
    "limit": "recalled, low confidence",
    "memory_bytes": "chosen so that VS's fixed batch is 7, recalled with low confidence",
    "threshold": "recalled, low confidence; fits the max aggregate",
    "aggregate": "unresolved: max recalled, another re-implementation sums",
    "batch_wait": "second-hand; the longest wait is recalled with low confidence",
    "reload_s": "assumed",
    "predictor_every_s": "recalled, medium confidence",
    "predictor_error": "recalled, low confidence",
    "estimator_every_s": "recalled, medium confidence",
    "estimator_error": "recalled, low confidence",
    "neighbours": "K is unknown; another re-implementation uses 5",
    "noise": "assumed",
    "truth": "assumed: ChatGLM-6B on one V100 by its FLOPs and bandwidth",
    "4-bit": "assumed: VSQ's memory, slower steps and longer replies",
}
"""Which constants no source confirms, and where each comes from."""


class Rung(NamedTuple):
    """A rung of the ladder: `similar` batches by predicted length, of `fixed` size, in `order`."""

    similar: bool = True
    fixed: bool = False
    order: str = "hrrn"


LADDER = {
    "VS": Rung(similar=False, fixed=True, order="fcfs"),
    "GLP": Rung(fixed=True, order="fcfs"),
    "ABP": Rung(order="fcfs"),
    "Magnus": Rung(),
}
"""The ablation: plain static batches, similar lengths, adaptive size, highest response ratio."""


class Requests(NamedTuple):
    """What is to be served, columns (n,), arrivals never falling."""

    arrival_time: Column
    prompt_len: Counts
    output_len: Counts


class Errors(NamedTuple):
    """How wrong a learner was, once a period: time [s] and root mean squared error."""

    time: list[float]
    rmse: list[float]


class MagnusOutcome(NamedTuple):
    """Who finished when [s] (n,), tokens made after a row's end, and how often memory ran out.

    `lengths` and `times` are the errors of the two learners over the run.
    """

    requests: Requests
    finish: Column
    invalid: int
    batches: int
    out_of_memory: int
    lengths: Errors
    times: Errors


def profile(
    truth: Bilinear, settings: MagnusSettings, rng: np.random.Generator, points: int = 300
) -> TimeEstimator:
    """Return a time estimator seeded with batches timed on the machine, at random sizes and lengths."""
    sizes = np.rint(np.exp(rng.uniform(0, np.log(100), points)))
    lengths, replies = (rng.integers(5, top + 1, points) for top in (settings.max_input, settings.limit))
    batches = np.stack([sizes, lengths, replies], axis=1).astype(np.float64)
    factor = np.exp(settings.noise * rng.standard_normal(points))
    seconds = np.asarray(truth.batch_s(batches[:, 0], batches[:, 1], batches[:, 2])) * factor
    return TimeEstimator(batches, seconds, settings.neighbours)


class MagnusServer:
    """The instances behind one queue of batches.

    `predictor` and `estimator` are None for VS, which predicts nothing. `learning` turns refits off.
    """

    def __init__(
        self,
        requests: Requests,
        variant: Rung,
        settings: MagnusSettings,
        truth: Bilinear,
        rng: np.random.Generator,
        *,
        predictor: LengthPredictor | None = None,
        estimator: TimeEstimator | None = None,
        learning: bool = True,
    ) -> None:
        """Raises ConfigError where a variant that predicts has no learners."""
        if variant.similar and (predictor is None or estimator is None):
            raise ConfigError("similar-length batches need a predictor and an estimator")
        n = len(requests.arrival_time)
        self.requests, self.variant, self.settings, self.truth, self.rng = (
            requests,
            variant,
            settings,
            truth,
            rng,
        )
        self.predictor, self.estimator, self.learning = predictor, estimator, learning
        self.batcher = Batcher(
            memory_tokens=settings.memory_tokens,
            threshold=settings.threshold,
            aggregate=settings.aggregate,
            max_rows=settings.fixed_rows if variant.fixed else None,
        )
        self.predicted: Counts = np.full(n, settings.limit, dtype=np.int64)
        self.finish: Column = np.full(n, np.nan)
        self.queue: list[MagnusBatch] = []
        self.free = settings.instances
        self.events: list[tuple[float, int, MagnusBatch | str]] = []  # a batch: it outgrew memory
        self.entered, self.next, self.left = 0, 0, n
        self.invalid = self.batches = self.out_of_memory = 0
        self.ended: list[int] = []
        self.timed: list[tuple[float, float, float, float, float]] = []  # batch, estimated, took [s]
        self.lengths, self.times = Errors([], []), Errors([], [])

    def run(self) -> MagnusOutcome:
        """Serve until every request has ended."""
        arrival = self.requests.arrival_time
        if self.variant.similar and self.left:
            self._predict_until(self.settings.predictor_every_s)
            self._at(self.settings.predictor_every_s, "predictor")
            self._at(self.settings.estimator_every_s, "estimator")
        while self.left:
            due = self.events[0][0] if self.events else np.inf
            if self.next < len(arrival) and arrival[self.next] <= due:
                now = float(arrival[self.next])
                self._arrive(self.next)
                self.next += 1
            else:
                now, _, event = heapq.heappop(self.events)
                if event == "predictor":
                    self._refit_predictor(now)
                elif event == "estimator":
                    self._refit_estimator(now)
                else:
                    self.free += 1
                    if isinstance(event, MagnusBatch):
                        self.queue[:0] = halves(event, self.requests.prompt_len, self.predicted)
            while self.free and self.queue:
                self._dispatch(now)
        return MagnusOutcome(
            self.requests,
            self.finish,
            self.invalid,
            self.batches,
            self.out_of_memory,
            self.lengths,
            self.times,
        )

    def _at(self, time: float, event: MagnusBatch | str) -> None:
        self.entered += 1
        heapq.heappush(self.events, (time, self.entered, event))

    def _arrive(self, request: int) -> None:
        length, predicted = int(self.requests.prompt_len[request]), int(self.predicted[request])
        if self.variant.similar:
            self.batcher.insert(self.queue, request, length, predicted)
            return
        if not self.queue or len(self.queue[-1].members) >= self.settings.fixed_rows:
            self.queue.append(MagnusBatch())
        self.queue[-1].add(request, length, predicted)

    def _dispatch(self, now: float) -> None:
        """Take the batch the order puts first, and run it to the end of its longest reply."""
        batch = self.queue.pop(self._first(now))
        rows = np.array(batch.members, dtype=np.int64)
        inputs, replies = self.requests.prompt_len[rows], self.requests.output_len[rows]
        slowdown = float(np.exp(self.settings.noise * self.rng.standard_normal()))
        room = self.settings.memory_tokens // rows.size - int(inputs.max())
        self.free -= 1
        if int(replies.max()) > room and rows.size > 1:
            ran = run_batch(self.truth, inputs, replies, max(room, 1), slowdown)
            self.out_of_memory += 1
            self.invalid += rows.size * ran.steps
            self._at(now + ran.seconds + self.settings.reload_s, batch)
            return
        ran = run_batch(self.truth, inputs, replies, self.settings.limit, slowdown)
        self.batches += 1
        self.invalid += ran.invalid
        self.finish[rows] = now + ran.seconds
        self.left -= rows.size
        self.ended += batch.members
        if batch.estimate_s is not None:
            self.timed.append((rows.size, batch.length, batch.generation, batch.estimate_s, ran.seconds))
        self._at(now + ran.seconds, "end")

    def _first(self, now: float) -> int:
        """Index of the batch to run: the oldest, or the one with the highest wait over estimate."""
        if not self.variant.similar:
            return 0
        self._estimate()
        arrival = self.requests.arrival_time
        waits = np.array([self._wait(arrival[batch.members], now) for batch in self.queue])
        if self.variant.order == "fcfs":
            oldest = [float(arrival[batch.members].min()) for batch in self.queue]
            return int(np.argmin(oldest))
        return int(np.argmax(waits / np.array([batch.estimate_s for batch in self.queue], dtype=np.float64)))

    def _wait(self, arrived: Column, now: float) -> float:
        return now - float(arrived.mean() if self.settings.batch_wait == "mean" else arrived.min())

    def _estimate(self) -> None:
        unknown = [batch for batch in self.queue if batch.estimate_s is None]
        if unknown and self.estimator is not None:
            shapes = np.array([(len(b.members), b.length, b.generation) for b in unknown], dtype=np.float64)
            for batch, seconds in zip(unknown, self.estimator.predict(shapes).tolist(), strict=True):
                batch.estimate_s = seconds

    def _predict_until(self, time: float) -> None:
        """Predict whoever arrives before the predictor changes again; the same as one by one."""
        arrival = self.requests.arrival_time
        rows = np.arange(self.next, int(np.searchsorted(arrival, time, side="right")))
        if rows.size and self.predictor is not None:
            self.predicted[rows] = self.predictor.predict(rows)

    def _refit_predictor(self, now: float) -> None:
        rows = np.array(sorted(r for r in self.ended if self.finish[r] <= now), dtype=np.int64)
        self.ended = [r for r in self.ended if self.finish[r] > now]
        if rows.size and self.predictor is not None:
            truth = self.requests.output_len[rows].astype(np.float64)
            error = np.abs(truth - self.predicted[rows])
            self.lengths.time.append(now)
            self.lengths.rmse.append(float(np.sqrt(np.mean(error**2))))
            least, share = self.settings.predictor_error
            wrong = (error > least) & (error > share * truth)
            if self.learning and wrong.any():
                self.predictor.learn(rows[wrong], truth[wrong])
        self._predict_until(now + self.settings.predictor_every_s)
        self._at(now + self.settings.predictor_every_s, "predictor")

    def _refit_estimator(self, now: float) -> None:
        if self.timed and self.estimator is not None:
            table = np.array(self.timed)
            error = np.abs(table[:, 4] - table[:, 3])
            self.times.time.append(now)
            self.times.rmse.append(float(np.sqrt(np.mean(error**2))))
            least, share = self.settings.estimator_error
            wrong = (error > least) & (error > share * table[:, 4])
            if self.learning and wrong.any():
                self.estimator.learn(table[wrong, :3], table[wrong, 4])
                for batch in self.queue:
                    batch.estimate_s = None
            self.timed = []
        self._at(now + self.settings.estimator_every_s, "estimator")


def measures(done: MagnusOutcome) -> dict[str, float]:
    """Return Magnus's five service measures [req/s, tokens/s, s] and how often memory ran out."""
    response = done.finish - done.requests.arrival_time
    span = float(done.finish.max() - done.requests.arrival_time[0])
    valid = float(done.requests.output_len.sum())
    return {
        "throughput_rps": response.shape[0] / span,
        "valid_tokens_per_s": valid / span,
        "tokens_per_s": (valid + done.invalid) / span,
        "mean_response_s": float(response.mean()),
        "p95_response_s": float(np.percentile(response, 95)),
        "mean_batch": response.shape[0] / done.batches,
        "out_of_memory": done.out_of_memory,
    }
