"""Sorted-F (Wang, Ye and Zhou, arXiv 2508.06133): a backlog cut into batches that fit into KV memory.

It orders a backlog that is there as a whole, so it is no policy, whose key knows one request: it gives each
request a rank, and `ltr` takes that as its score. It does not apply to requests that come one by one.

    simulate(burst, engine, policies.get("ltr"), score=ranks(prompt_len, reply_len, room))

The batch X that runs next has the least F(X) = sum of replies / |X|^2 of all that fit: many, and short.
Finding it is a knapsack; the paper has an exact solver and heuristics. Ours is a local search, swaps from
greedy starts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sooner.core import DataError

Column = NDArray[np.float64]
Rows = NDArray[np.int64]

UNCONFIRMED = {"search": "our own; the paper's heuristics are named, their starts and bounds are not"}
"""Which parts no source confirms, and where each comes from."""

_MOST_SWAPS = 200
"""In one batch; each lowers F, and hardly any batch needs as many."""


def ranks(prompt_len: Column, reply_len: Column, room: float) -> Column:
    """Return the rank (n,) of each request of a backlog, 0 first; `room` is the KV memory [tokens].

    A request takes its prompt and its whole reply. Raises DataError where one alone does not fit.
    """
    prompt, reply = np.asarray(prompt_len, dtype=np.float64), np.asarray(reply_len, dtype=np.float64)
    held = prompt + reply
    if held.size and held.max() > room:
        raise DataError(f"a request of {held.max():g} tokens, allowed: at most the room, {room:g}")
    found = np.empty(held.size)
    left, place = np.arange(held.size), 0
    while left.size:
        chosen = _batch(reply[left], held[left], room)
        rows = left[chosen]
        rows = rows[np.argsort(reply[rows], kind="stable")]
        found[rows] = np.arange(place, place + rows.size)
        place += rows.size
        left = np.delete(left, chosen)
    return found


def measure(reply: Column) -> float:
    """Return F of a batch: what its requests cost each other, the less the better."""
    return float(reply.sum()) / reply.size**2


def _batch(reply: Column, held: Column, room: float) -> Rows:
    """Return the rows of a batch that fits, of small F."""
    starts = (_greedy(by, reply, held, room) for by in (reply, held, reply * held))
    return min(
        (_swapped(start, reply, held, room) for start in starts), key=lambda rows: measure(reply[rows])
    )


def _greedy(by: Column, reply: Column, held: Column, room: float) -> Rows:
    """Return the rows that are first by `by` and fit, as many as lower F the most."""
    order = np.argsort(by, kind="stable")
    order = order[np.cumsum(held[order]) <= room]
    sizes = np.arange(1, order.size + 1)
    return order[: int(np.argmin(np.cumsum(reply[order]) / sizes**2)) + 1]


def _swapped(start: Rows, reply: Column, held: Column, room: float) -> Rows:
    """Return the batch after swaps of its longest reply for a shorter one, and with what fits besides."""
    inside = np.zeros(reply.size, dtype=bool)
    inside[start] = True
    for _ in range(_MOST_SWAPS):
        rows, free = np.flatnonzero(inside), room - held[inside].sum()
        longest = rows[np.argmax(reply[rows])]
        gain = np.where(~inside & (held <= free), reply, np.inf)
        add = int(np.argmin(gain))
        if gain[add] < measure(reply[rows]) * (2 * rows.size + 1):  # then F falls with it
            inside[add] = True
            continue
        fits = ~inside & (held <= free + held[longest]) & (reply < reply[longest])
        if not fits.any():
            break
        inside[longest] = False
        inside[int(np.argmin(np.where(fits, reply, np.inf)))] = True
    return np.flatnonzero(inside)
