"""A workload as columns: what arrives, when, how long; sorted by arrival."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sooner.core import DataError


def _no_ids() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """n requests as columns of shape (n,), arrivals never falling. Times [s], lengths [tokens].

    `cancel_time` is when the client leaves, infinity for never. `sender` is who asks,
    a program or a person, where nobody says so the `tenant`. `level` is a request's class, 0 the
    most urgent, and `deadline` a time like its arrival. `prefix` names what a request
    shares with others (a hash of its first block), for routing by affinity; `cached_len` are the
    prompt tokens whose KV a prefix cache holds, fewer than the prompt; `id` is the request's own.
    Raises DataError for columns of unlike length or values that cannot be.
    """

    arrival_time: NDArray[np.float64]
    prompt_len: NDArray[np.int64]
    output_len: NDArray[np.int64]
    id: NDArray[np.int64] = field(default_factory=_no_ids)
    tenant: NDArray[np.int64] = field(default_factory=_no_ids)
    sender: NDArray[np.int64] = field(default_factory=_no_ids)
    level: NDArray[np.int64] = field(default_factory=_no_ids)
    prefix: NDArray[np.int64] = field(default_factory=_no_ids)
    cached_len: NDArray[np.int64] = field(default_factory=_no_ids)
    deadline: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    cancel_time: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        n = self.arrival_time.shape[0]
        defaults = {
            "id": np.arange(n, dtype=np.int64),
            "tenant": np.broadcast_to(np.int64(0), n),
            "sender": self.tenant if self.tenant.shape[0] == n else np.broadcast_to(np.int64(0), n),
            "level": np.broadcast_to(np.int64(0), n),
            "prefix": np.arange(n, dtype=np.int64),
            "cached_len": np.broadcast_to(np.int64(0), n),
            "deadline": np.broadcast_to(np.inf, n),
            "cancel_time": np.broadcast_to(np.inf, n),
        }
        for name, default in defaults.items():
            if getattr(self, name).shape[0] == 0 and n:
                object.__setattr__(self, name, default)
        for name in ("prompt_len", "output_len", *defaults):
            if getattr(self, name).shape != (n,):
                raise DataError(
                    f"workload column {name} has shape {getattr(self, name).shape}, allowed: ({n},)"
                )
        if n and not (np.isfinite(self.arrival_time).all() and np.all(np.diff(self.arrival_time) >= 0)):
            raise DataError("workload arrival times must be finite and never fall")
        if n and (self.prompt_len.min() < 1 or self.output_len.min() < 1):
            raise DataError("workload lengths must be at least 1 token")
        if n and (self.cached_len.min() < 0 or np.any(self.cached_len >= self.prompt_len)):
            raise DataError("workload column cached_len must be at least 0 and below prompt_len")

    def __len__(self) -> int:
        return int(self.arrival_time.shape[0])

    def at(self, arrival_time: ArrayLike) -> Workload:
        """Return the same requests, in the same order, at other arrival times (n,)."""
        return replace(self, arrival_time=np.asarray(arrival_time, dtype=np.float64))

    def take(self, rows: ArrayLike) -> Workload:
        """Return some of the requests; `rows` must keep arrivals in order."""
        index = np.asarray(rows)
        return Workload(
            arrival_time=self.arrival_time[index],
            prompt_len=self.prompt_len[index],
            output_len=self.output_len[index],
            id=self.id[index],
            tenant=self.tenant[index],
            sender=self.sender[index],
            level=self.level[index],
            prefix=self.prefix[index],
            cached_len=self.cached_len[index],
            deadline=self.deadline[index],
            cancel_time=self.cancel_time[index],
        )


def by_arrival(arrival_time: ArrayLike, prompt_len: ArrayLike, output_len: ArrayLike) -> Workload:
    """Return a workload of three columns (n,), sorted by arrival, counted from the first."""
    times = np.asarray(arrival_time, dtype=np.float64)
    order = np.argsort(times, kind="stable")
    return Workload(
        arrival_time=times[order] - (times.min() if times.size else 0.0),
        prompt_len=np.asarray(prompt_len, dtype=np.int64)[order],
        output_len=np.asarray(output_len, dtype=np.int64)[order],
        id=order.astype(np.int64),
    )
