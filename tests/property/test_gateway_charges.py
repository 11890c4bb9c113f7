"""However a reply ends, its tenant is charged about what the engine made, and no place is kept or lost."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway_virtual import run as virtually
from sooner.gateway.admission import reading
from sooner.gateway.admission.reading import Asked
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

    @property
    def made(self) -> int:
        """Tokens that the engine makes of it."""
        if self.end == "refused":
            return 0
        return self.length if self.end == "whole" else min(self.point, self.length)

    def asked(self, *, scores: bool = False) -> Asked:
        """Return its request; the claim is its limit, or with `scores` a number that the gateway believes."""
        body = {"model": "m", "stream": self.stream, "messages": [{"role": "user", "content": "word " * 40}],
                **({"vllm_xargs": {"sooner_predicted_len": self.claim}} if scores
                   else {"max_tokens": self.claim})}  # fmt: skip
        return reading.read(json.dumps(body).encode(), client_scores=scores, deadline_ms=None)

    def end_at(self, backend: Backend, place: Place, connection: Connection, now: float) -> None:
        """Let what the engine made come, and the end after it."""
        made = self.made
        if made and (self.stream or self.end == "whole"):
            connection.data_received(HEAD + EVENT)  # the one that opens a chat's stream
            place.sent = Sent(backend, connection, connection.head.result(), now, TOKEN)
            client = Pipe(0 if self.reads else 1 << 30)
            connection.attach(client.write, client, lambda: None)
            seen = made if self.reads or self.end == "whole" else 1
            connection.data_received(EVENT * (seen if self.stream else 0))
        if self.end == "whole":
            usage = b'data: {"choices":[],"usage":{"prompt_tokens":50,"completion_tokens":%d}}\n\n' % made
            connection.data_received(usage)
            connection.connection_lost(None)
            used = relay.usage(connection, place._waiting.asked)
            place.done(charge(used.prompt_len or 0, used.output_len))
        elif self.end == "left":
            place.left()
        elif self.end == "cut":
            place.failed(Cut("gone", bool(made), False))
        else:
            place.failed(Unreachable("nobody listens"))
        place.left()  # as the proxy says in any case


def connected(loop: asyncio.AbstractEventLoop) -> Connection:
    """Return a connection to an engine over which a request was sent."""
    connection = Connection(loop)
    connection.connection_made(Pipe())
    connection.begin(b"", "POST", chunks=False)
    return connection


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
        visit = self.dispatcher.arrive(f"{self.count}", case.tenant, 0, case.asked(scores=True), 0.0)
        place = Place(self.dispatcher, visit, self.loop.run_until_complete(self.dispatcher.slot(visit)))
        return visit, place, connected(self.loop)

    def end(self, case: Case, place: Place, connection: Connection) -> int:
        """Let the engine make its tokens, and the case end; return how many it made."""
        self.now += case.made * TOKEN
        case.end_at(self.backend, place, connection, self.now)
        return case.made


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
            if case.end == "cut" and not (case.stream and case.reads):
                assert 0 <= visit.served <= truth + 2.0 or visit.served <= before
                assert visit.served >= min(before, prompt_len) - 1.0
            else:
                assert abs(visit.served - truth) <= 0.05 * truth + 2.0
        assert not world.dispatcher.waiting
        assert world.backend.outstanding == 0.0
    finally:
        world.dispatcher.close()
        world.loop.close()


PLACES, ROUNDS = 4, 500  # of the engine; requests in a run, of both tenants
LARGEST = charge(60, 400)
ENDS = ("whole", "last", "first", "some", "cut", "refused")


@dataclass(frozen=True)
class Habit:
    """How a tenant asks: what it claims, whether it streams and reads, and how its requests end."""

    claims: tuple[int, ...] = (400,)
    streams: tuple[bool, ...] = (True, False)
    reads: tuple[bool, ...] = (True,)
    ends: tuple[str, ...] = ("whole",)

    def case(self, draw: random.Random, tenant: str) -> Case:
        """Return its next request: `last` leaves one token before the end, `first` after the first."""
        end, claim = draw.choice(self.ends), draw.choice(self.claims)
        length = min(claim, round(draw.triangular(1, 400, 60)))  # an engine keeps to the limit
        stream = draw.choice(self.streams) or end == "cut"  # what is cut unseen counts as expected
        points = {"last": length - 1, "first": 1, "some": draw.randrange(length + 1), "cut": length}
        end_of_it = end if end in ("whole", "cut", "refused") else "left"
        reads = draw.choice(self.reads) or end == "cut"
        return Case(tenant, stream, reads, claim, length, points.get(end, 0), end_of_it)


def habits(draw: random.Random) -> Habit:
    """Return some habit: any mix of claims, speeds of reading, abort points and failures."""
    ends = [draw.choice(ENDS) for _ in range(draw.randint(1, 3))]
    return Habit(
        claims=tuple(draw.choice((1, 20, 150, 400, 4000)) for _ in range(draw.randint(1, 3))),
        streams=draw.choice(((True,), (False,), (True, False))),
        reads=draw.choice(((True,), (False,), (True, False))),
        ends=(*ends, *("last", "some")[: draw.randrange(3)]),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_no_habit_takes_more_than_the_share(seed: int) -> None:
    """In all 10,000 requests: two tenants that always have some waiting get half of the engine each."""
    draw = random.Random(seed)
    asks = {"odd": habits(draw), "fair": Habit()}
    made = dict.fromkeys(asks, 0.0)
    count = running = 0

    async def test() -> None:
        loop = asyncio.get_running_loop()
        one = BackendSettings(url="http://engine", max_in_flight=PLACES)
        settings = GatewaySettings(ranker="", learn=False, backends=(one,))
        backend = Backend(one, settings.limits)
        backend.window.step(TOKEN, "a")
        dispatcher = Dispatcher(settings, [backend], loop.time)

        async def client(tenant: str) -> None:
            nonlocal count, running
            while count < ROUNDS:
                count += 1
                case = asks[tenant].case(draw, tenant)
                visit = dispatcher.arrive(f"{count}", tenant, 0, case.asked(), 0.0)
                place = Place(dispatcher, visit, await dispatcher.slot(visit))
                connection = connected(loop)
                running += 1
                tokens = case.made
                await asyncio.sleep(tokens * TOKEN + 1e-6)
                case.end_at(backend, place, connection, loop.time())
                if case.end == "whole":
                    dispatcher.finished(visit, tokens * TOKEN, tokens)
                running -= 1
                dispatcher.leave(visit)
                if count < ROUNDS:
                    made[tenant] += 0.0 if case.end == "refused" else charge(visit.ticket.prompt_len, tokens)
                await asyncio.sleep(0)

        async def count_places() -> None:
            while count < ROUNDS:
                await asyncio.sleep(0.37)
                for _ in range(5):  # whose turn it is has begun
                    await asyncio.sleep(0)
                assert backend.in_flight == running == PLACES or count >= ROUNDS

        clients = [client(tenant) for tenant in asks for _ in range(2 * PLACES)]
        await asyncio.gather(count_places(), *clients)
        assert backend.in_flight == running == 0
        assert backend.outstanding == 0.0
        assert not dispatcher.waiting
        dispatcher.close()

    virtually(test)
    assert abs(made["odd"] - made["fair"]) <= 2 * PLACES * LARGEST, asks
    assert made["odd"] <= 0.53 * sum(made.values()), asks
