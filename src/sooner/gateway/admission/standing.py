"""Who starts before whom among those who wait, by class and tenant: for one request, and for the next few."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Mapping
from typing import NamedTuple, Protocol, TypeVar

from sooner.gateway.admission.shares import Shares
from sooner.ordering.queue import Place, RankedQueue
from sooner.ordering.ticket import Ticket


class Stands(Hashable, Protocol):
    """What is read of a waiting request."""

    tenant: str
    level: int
    ticket: Ticket

    @property
    def place(self) -> Place:
        """Where it stands among its tenant's requests of its class."""


_Guest = TypeVar("_Guest", bound=Stands)


class Before(NamedTuple):
    """Who starts before a request: its tenant's, those of them that came later, others', better classes'."""

    own: int
    later: int
    others: int
    better: int

    @property
    def position(self) -> int:
        """About how many start before it does, itself included."""
        return 1 + self.own + self.others + self.better


def before(levels: Mapping[int, Mapping[str, RankedQueue[_Guest]]], request: _Guest) -> Before:
    """Return who starts before a request.

    Its tenant's requests before it count, as many of each other tenant of its class, and all of better
    classes.
    """
    place, came = request.place, request.ticket.arrival_time
    tenants = levels[request.level]
    own = [other for other in tenants[request.tenant].requests() if other.place < place]
    return Before(
        own=len(own),
        later=sum(other.ticket.arrival_time > came for other in own),
        others=sum(
            min(len(queue), len(own) + 1) for name, queue in tenants.items() if name != request.tenant
        ),
        better=sum(
            len(queue)
            for level, others in levels.items()
            if level < request.level
            for queue in others.values()
        ),
    )


def first(
    levels: Mapping[int, Mapping[str, RankedQueue[_Guest]]], shares: Shares, most: int
) -> list[tuple[int, _Guest]]:
    """Return about the next to start, at most so many, and their positions: tenants in turn."""
    found: list[tuple[int, _Guest]] = []
    ahead = 0
    for level in sorted(levels):
        queues = list(levels[level].values())
        sizes = sorted(map(len, queues))
        upto = [0]  # by n: how many start until each tenant has had n
        while upto[-1] < min(most, sum(sizes)):
            upto.append(upto[-1] + len(sizes) - bisect.bisect_left(sizes, len(upto)))
        for queue in queues:
            own = queue.first(len(upto) - 1)
            found += [(ahead + upto[n], request) for n, request in enumerate(own, 1)]
        ahead += sum(sizes)
        if len(found) >= most:
            break
    found.sort(key=lambda entry: (entry[0], shares[entry[1].tenant], entry[1].ticket.arrival_time))
    return [(place, request) for place, (_, request) in enumerate(found[:most], 1)]
