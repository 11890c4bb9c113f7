"""One request that waits, and how much of the room it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sooner.gateway.admission.shares import charge
from sooner.ordering.queue import Place
from sooner.ordering.ticket import Ticket


class Amount(NamedTuple):
    """How much a request is: for its tenant [tokens of input], for the engines [s of one of them]."""

    tokens: float = 0.0
    work: float = 0.0


NOTHING = Amount()


@dataclass(slots=True, eq=False)
class Waiting:
    """One request from its arrival until it has left. Times are the monotonic clock's [s]."""

    id: str
    tenant: str
    level: int
    ticket: Ticket
    service: float = 0.0  # how long it is expected to run [s]
    urgent: bool = False
    queued: bool = False
    counted: Amount = NOTHING  # in the sums of the room

    @property
    def place(self) -> Place:
        """Where it stands among its tenant's requests of its class."""
        if self.urgent:
            return (0, self.ticket.deadline, self.ticket.arrival_time, self.ticket.sequence)
        return self.ticket.place

    @property
    def tokens(self) -> float:
        """What it is expected to cost its tenant [tokens of input]."""
        return charge(self.ticket.prompt_len, self.ticket.predicted_len)
