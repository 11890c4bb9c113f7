"""A log played through a learner in the order of time: each request is predicted before its reply is known.

Dawid (1984, "Statistical theory: the prequential approach"): no split, every prediction is judged on what
came after it. A reply is known once it would have been written.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.chat import ChatRequest
from sooner.core import DataError, Prediction
from sooner.learning.identity import Identity, Salt
from sooner.learning.last_layer import Vector
from sooner.learning.learner import Learner
from sooner.metrics import kendall_tau
from sooner.rankers import Ranker
from sooner.rankers.offers import HasVectors

SECONDS_PER_TOKEN = 0.02
"""Pace at which a reply is taken to be written, where the log says when requests came."""

BEHIND = 16
"""Requests after which a reply is taken to be known, where it does not."""

HUNDRED = 100
_BATCH = 256


class Played(NamedTuple):
    """How the predictions of n requests stand: tau over all, by hundred, drifts found, share while off."""

    n: int
    kendall_tau: float
    tau_by_hundred: list[float]
    alarms: int
    off_share: float
    scores: NDArray[np.float64]


class Facts(NamedTuple):
    """n requests: their groups, limits [tokens], what a text ranker says, and when they came [s], or None.

    `vectors` (d,) are what the ranker's word was made from, where it shows that.
    """

    identities: Sequence[Identity]
    limits: Sequence[int | None]
    texts: Sequence[Prediction | None]
    arrival: NDArray[np.float64] | None
    vectors: Sequence[Vector | None] | None = None

    def predicted(self, learner: Learner, row: int) -> Prediction:
        """Return what a learner says of a request."""
        vector = None if self.vectors is None else self.vectors[row]
        return learner.predict(
            row, self.identities[row], self.texts[row], limit=self.limits[row], vector=vector
        )


def of_senders(senders: Sequence[object], arrival: NDArray[np.float64] | None) -> Facts:
    """Return the facts of requests of which only the sender is known."""
    salt = Salt.fresh()
    known: dict[object, Identity] = {}
    for name in senders:
        if name not in known:
            known[name] = Identity(sender=salt.of(str(name)))
    none = [None] * len(senders)
    return Facts([known[name] for name in senders], none, none, arrival)


def of_requests(
    requests: Sequence[ChatRequest],
    ranker: Ranker | None,
    arrival: NDArray[np.float64] | None,
    senders: Sequence[object] | None = None,
    salt: Salt | None = None,
) -> Facts:
    """Return the facts of whole requests; `senders` where the requests themselves do not say.

    Groups are hashed with `salt`, one that nobody has where there is none.
    """
    salt = Salt.fresh() if salt is None else salt
    seen = [request.conversation() for request in requests]
    identities = [
        salt.identity(request, asked.prompt, asked.context)
        for request, asked in zip(requests, seen, strict=True)
    ]
    if senders is not None:
        identities = [
            known if known.sender else known._replace(sender=salt.sender(str(name)))
            for known, name in zip(identities, senders, strict=True)
        ]
    texts: list[Prediction | None] = [None] * len(seen)
    vectors: list[Vector | None] = [None] * len(seen)
    for at in range(0, len(seen) if ranker is not None else 0, _BATCH):
        part = slice(at, at + _BATCH)
        prompts, context = [asked.prompt for asked in seen[part]], [asked.context for asked in seen[part]]
        if isinstance(ranker, HasVectors):
            texts[part], shown = ranker.viewed(prompts, context)
            vectors[part] = shown.astype(np.float16)
        elif ranker is not None:
            texts[part] = ranker.predictions(prompts, context=context)
    return Facts(identities, [asked.context.max_tokens for asked in seen], texts, arrival, vectors)


def play(
    facts: Facts,
    lengths: NDArray[np.float64],
    learner: Learner | None = None,
    known: NDArray[np.float64] | None = None,
) -> Played:
    """Play requests (n,) of these reply lengths through a learner; `known` says when each reply is known [s].

    Raises DataError for fewer than 2 requests.
    """
    n = lengths.shape[0]
    if n < 2:
        raise DataError(f"{n} requests to play, allowed: at least 2")
    learner = Learner() if learner is None else learner
    arrival = np.arange(n, dtype=np.float64) if facts.arrival is None else facts.arrival
    if known is None:
        known = arrival + (BEHIND if facts.arrival is None else SECONDS_PER_TOKEN * lengths)
    scores, off = np.empty(n), 0
    ends: list[tuple[float, int]] = []
    cut = [limit is not None and length >= limit for limit, length in zip(facts.limits, lengths, strict=True)]
    times, until, tokens = arrival.tolist(), known.tolist(), lengths.tolist()
    for row in range(n):
        while ends and ends[0][0] <= times[row]:
            _, ended = heapq.heappop(ends)
            learner.finished(ended, tokens[ended], whole=not cut[ended])
        scores[row] = facts.predicted(learner, row).score
        off += not learner.on(facts.identities[row])
        heapq.heappush(ends, (until[row], row))
    for _, ended in sorted(ends):
        learner.finished(ended, tokens[ended], whole=not cut[ended])
    taus = [
        kendall_tau(scores[at : at + HUNDRED], lengths[at : at + HUNDRED])
        for at in range(0, n - n % HUNDRED, HUNDRED)
    ]
    return Played(n, kendall_tau(scores, lengths), taus, learner.alarms, off / n, scores)
