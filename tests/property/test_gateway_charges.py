"""However a reply ends, its tenant is charged about what the engine made, and no place is kept or lost."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sooner.gateway.admission import reading
from sooner.gateway.admission.shares import charge
from sooner.gateway.delivery import relay
from sooner.gateway.delivery.place import Place
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.engines.backend import Backend
from sooner.gateway.engines.client import Sent
from sooner.gateway.engines.connections import Connection, Cut, Unreachable
from sooner.gateway.settings import BackendSettings, GatewaySettings
from sooner.gateway.visit import Visit

TOKEN = 0.02  # seconds
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"  # it ends with its connection
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'


class Pipe(asyncio.Transport):
    """A connection in memory; `waiting` bytes are not taken by who reads at its other end."""

    def __init__(self, waiting: int = 0) -> None:
        super().__init__()
        self.waiting = waiting
        self.closed = False

    def write(self, data: Any) -> None:
        """Take bytes that nobody looks at."""

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait."""
        return self.waiting

    def is_closing(self) -> bool:
        """Return whether it was closed."""
        return self.closed

    def abort(self) -> None:
        """Close it."""
        self.closed = True

    close = abort

    def pause_reading(self) -> None:
        """Do nothing: what is read is handed in by hand."""

    resume_reading = pause_reading


@dataclass(frozen=True)
class Case:
    """One request: what its client claims and does, what the engine does, and when."""

    tenant: str
    stream: bool
    reads: bool
    claim: int
    length: int
    point: int  # tokens that the engine makes until the end comes
    end: str


CASES = st.builds(
    Case,
    tenant=st.sampled_from("ab"), stream=st.booleans(), reads=st.booleans(), claim=st.integers(1, 3000),
    length=st.integers(1, 400), point=st.integers(0, 400),
    end=st.sampled_from(["whole", "left", "left", "cut", "refused"]),
)  # fmt: skip


class World:
    """A dispatcher with one engine, in a time that only the cases move."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.now = 100.0
        one = BackendSettings(url="http://engine", max_in_flight=64)
        self.settings = GatewaySettings(ranker="", learn=False, client_scores=True, backends=(one,))
        self.backend = Backend(one, self.settings.limits)
        self.backend.window.step(TOKEN, "a")

        async def make() -> Dispatcher:
            return Dispatcher(self.settings, [self.backend], lambda: self.now)

        self.dispatcher = self.loop.run_until_complete(make())
        self.count = 0

    def begin(self, case: Case) -> tuple[Visit, Place, Connection]:
        """Let a request come to its place."""
        self.count += 1
        body = {"model": "m", "stream": case.stream, "messages": [{"role": "user", "content": "word " * 40}],
                "vllm_xargs": {"sooner_predicted_len": case.claim}}  # fmt: skip
        asked = reading.read(json.dumps(body).encode(), client_scores=True, deadline_ms=None)
        visit = self.dispatcher.arrive(f"{self.count}", case.tenant, 0, asked, 0.0)
        place = Place(self.dispatcher, visit, self.loop.run_until_complete(self.dispatcher.slot(visit)))
        connection = Connection(self.loop)
        connection.connection_made(Pipe())
        connection.begin(b"", "POST", chunks=False)
        return visit, place, connection

    def end(self, case: Case, place: Place, connection: Connection) -> int:
        """Let the engine make its tokens, and the case end; return how many it made."""
        made = 0 if case.end == "refused" else case.length
        made = made if case.end in ("whole", "refused") else min(case.point, case.length)
        self.now += made * TOKEN
        if made and (case.stream or case.end == "whole"):
            connection.data_received(HEAD + EVENT)  # the one that opens a chat's stream
            place.sent = Sent(self.backend, connection, connection.head.result(), self.now, TOKEN)
            client = Pipe(0 if case.reads else 1 << 30)
            connection.attach(client.write, client, lambda: None)
            seen = made if case.reads or case.end == "whole" else 1
            for _ in range(seen if case.stream else 0):
                connection.data_received(EVENT)
        if case.end == "whole":
            usage = b'data: {"choices":[],"usage":{"prompt_tokens":50,"completion_tokens":%d}}\n\n' % made
            connection.data_received(usage)
            connection.connection_lost(None)
            used = relay.usage(connection, place._waiting.asked)
            place.done(charge(used.prompt_len or 0, used.output_len))
        elif case.end == "left":
            place.left()
        elif case.end == "cut":
            place.failed(Cut("gone", bool(made), False))
        else:
            place.failed(Unreachable("nobody listens"))
        place.left()  # as the proxy says in any case
        return made


@given(cases=st.lists(CASES, min_size=6, max_size=14))
@hypothesis_settings(max_examples=600, deadline=None)
def test_a_tenant_is_charged_what_was_made_however_it_ended(cases: list[Case]) -> None:
    world = World()
    try:
        running = [(case, *world.begin(case)) for case in cases]
        left = len(running)
        for case, visit, place, connection in running:
            assert world.backend.in_flight == left
            began, place._began = place._began, world.now  # as if it had its place from now on
            assert began <= world.now
            before = visit.charged
            made = world.end(case, place, connection)
            left -= 1
            assert world.backend.in_flight == left
            prompt_len = visit.ticket.prompt_len if case.end != "whole" else 50
            truth = 0.0 if case.end == "refused" else charge(prompt_len, made)
            world.dispatcher.leave(visit)
            if case.end == "cut":
                assert 0 <= visit.served <= truth + 2.0 or visit.served <= before
                assert visit.served >= min(before, prompt_len) - 1.0
            else:
                assert abs(visit.served - truth) <= 0.05 * truth + 2.0
        assert not world.dispatcher.waiting
        assert world.backend.outstanding == 0.0
    finally:
        world.dispatcher.close()
        world.loop.close()
