"""One engine behind the gateway: what runs there, whether it lives, and what its order is called."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import ssl
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sooner.core import ConfigError, EngineError
from sooner.gateway.engines.breaker import Breaker
from sooner.gateway.engines.certificates import trusting
from sooner.gateway.engines.connections import Address, Connection, Connections
from sooner.gateway.engines.http1 import Head
from sooner.gateway.engines.kinds import KINDS, Quantiles, cache_tokens, gauge
from sooner.gateway.engines.paces import in_file
from sooner.gateway.engines.prefixes import Beginnings, SentBeginnings
from sooner.gateway.engines.reply_pace import ReplyPace
from sooner.gateway.engines.takes_priority import TakesPriority
from sooner.gateway.engines.window import Window
from sooner.gateway.settings import BackendSettings, LimitSettings
from sooner.work import Pace, work

logger = logging.getLogger("sooner.gateway")

_PATHS = 8  # of which it is known one by one whether they take a priority
_CHECK_TIME = 2.0  # seconds a health check may take
_MODELS_EVERY = 15  # checks
_MISSED = 3  # checks without an answer until an engine that answered before counts as gone


class NoAnswer(EngineError):
    """A health check came to no end in its time: the engine is gone, or very busy."""


class Secrets(NamedTuple):
    """What is in an engine's files: its key, and how its certificate is checked."""

    key: str
    tls: ssl.SSLContext | None


class Backend:
    """One engine. `outstanding` is the expected work of what runs there [s], at its own pace."""

    def __init__(self, settings: BackendSettings, limits: LimitSettings) -> None:
        self.settings = settings
        self.name = settings.title
        self.kind = KINDS[settings.kind]
        self.address = Address.of(settings.url)._replace(at=settings.address)
        self.connections = Connections(self.address, limits.connect, settings.ca_file)
        self.window = Window(settings.max_in_flight, settings.min_in_flight, settings.most_in_flight)
        self.breaker = Breaker()
        self.in_flight = 0
        self.outstanding = 0.0
        self.draining = False
        self.retired = False  # no longer in the settings: gone once it is empty
        self.healthy = True
        self._takes: dict[str, TakesPriority] = {}  # by path
        self.quantiles = Quantiles()
        self.kv = 0.0
        self.waiting_inside: float | None = None
        self.cards: dict[str, Mapping[str, Any]] = {}  # its models as it lists them
        self.sent = SentBeginnings()
        self.pace = self._given_pace()
        self._sent: deque[float] = deque(maxlen=4096)  # when the last requests went there
        self._checks = 0
        self._missed = _MISSED - 1  # one that never answered is not waited for
        self._lost = False  # nobody listened there, since the last check
        self._started: float | None = None  # when its process did, where it says so
        self._said_missing = False  # that a gauge is
        self._key = key_in(settings.key_file)
        self.head = self._head()

    def _given_pace(self) -> ReplyPace:
        """Return what is known of its pace at the start; a file that makes no sense is counted as odd."""
        if not self.settings.engine:
            return ReplyPace()
        given = in_file(self.settings.engine, self.settings.max_in_flight)
        if given is None:
            logger.warning("the coefficients in %r make no sense; the pace is learned", self.settings.engine)
        pace = ReplyPace(given)
        pace.odd += given is None
        return pace

    def read_secrets(self) -> Secrets:
        """Return what the files hold that its settings name. Raises ConfigError."""
        tls = trusting(self.settings.ca_file) if self.address.secure else None
        return Secrets(key_in(self.settings.key_file), tls)

    def take(self, limits: LimitSettings, secrets: Secrets) -> None:
        """Take bounds, a key and authorities that were read again."""
        self._key = secrets.key
        self.head = self._head()
        self.connections.take(limits.connect, secrets.tls)

    def _head(self) -> bytes:
        """The header lines every request to it carries."""
        lines = [f"Host: {self.address.authority}"]
        if self._key:
            lines.append(f"Authorization: Bearer {self._key}")
        return "".join(f"{line}\r\n" for line in lines).encode("ascii")

    @property
    def limit(self) -> int:
        """How many requests it is given at once."""
        return self.window.limit

    @property
    def hand_on(self) -> bool:
        """Whether the order is handed on as its priority."""
        handed = self.settings.hand_on and self.kind.priority is not None
        now = time.monotonic()
        return handed and not any(taken.refused(now) for taken in self._takes.values())

    def takes_priority(self, target: str) -> TakesPriority | None:
        """Return what is known of priorities at a path; None where none is to be handed on."""
        if not self.settings.hand_on or self.kind.priority is None:
            return None
        path = target.partition("?")[0]
        found = self._takes.get(path)
        if found is None:
            path = path if len(self._takes) < _PATHS else ""
            found = self._takes.setdefault(path, TakesPriority())
        return found

    @property
    def offers(self) -> Iterable[str]:
        """Names of the models that it is known for."""
        return self.settings.models or self.cards

    def serves(self, model: str) -> bool:
        """Return whether it may be asked for `model`; what is not known yet counts as yes."""
        if self.settings.models:
            return model in self.settings.models
        return not model or not self.cards or model in self.cards

    def accepts(self, now: float) -> bool:
        """Return whether requests may go there now."""
        return self.healthy and not self.draining and not self.breaker.tripped(now)

    def began(self, work: float, prompt: Beginnings, prompt_len: float) -> None:
        """Say that a request goes there, and with it a prompt that its cache then holds."""
        self._sent.append(time.monotonic())
        self.in_flight += 1
        self.outstanding += work
        self.sent.sent(prompt, prompt_len)

    def ended(self, work: float) -> None:
        """Say that it is over, however it ended."""
        self.in_flight -= 1
        self.outstanding = max(0.0, self.outstanding - work) if self.in_flight else 0.0

    def work(self, prompt: Beginnings, prompt_len: float, reply_len: float, others: Pace) -> float:
        """Return the work of a request there [s], what its cache should hold of the prompt taken off.

        Until its own pace is known it is taken to be as the `others` are, times its weight.
        """
        cached = self.sent.part(prompt) * prompt_len
        if self.pace.known:
            return float(work(self.pace.pace, prompt_len, cached, reply_len))
        return float(work(others, prompt_len, cached, reply_len)) / self.settings.weight

    def cost(self, work: float) -> float:
        """Return what routing compares, smallest first: when the engine would be done with it [s].

        One whose KV cache is nearly full is put behind the others.
        """
        crowded = 4.0 if self.kv > 0.95 else 1.0
        return crowded * (self.outstanding + work)

    async def fetch(self, path: str) -> tuple[Head, bytes]:
        """Return what the engine has at `path`. Raises EngineError within two seconds."""
        connection: Connection | None = None
        try:
            async with asyncio.timeout(_CHECK_TIME):
                connection = await self.connections.get()
                request = f"GET {self.address.base}{path} HTTP/1.1\r\n".encode() + self.head + b"\r\n"
                connection.begin(request, "GET", chunks=False)
                head = await connection.head
                body = bytearray()
                connection.attach(body.extend)
                await connection.finished
                self.connections.give_back(connection)
                connection = None
                return head, bytes(body)
        except TimeoutError as error:
            raise NoAnswer(f"backend {self.name}: no answer within {_CHECK_TIME} s") from error
        finally:
            if connection is not None:
                connection.abort()

    async def check(self, hungry: bool) -> None:
        """Ask whether it lives, how many wait inside it, and now and then which models it has."""
        was = self.healthy
        try:
            head, _ = await self.fetch(self.kind.health)
            self.healthy = head.status < 500
            self._missed = 0
            if self.healthy:
                if self._lost or not was:
                    self._restarted()
                await self._measure(hungry)
                if self._checks % _MODELS_EVERY == 0:
                    await self._ask_slots()
                    await self._list_models()
                self._checks += 1
        except EngineError as error:
            self._missed = self._missed + 1 if isinstance(error, NoAnswer) else _MISSED
            self.healthy = was and self._missed < _MISSED
            if was and not self.healthy:
                logger.warning("backend %s does not answer: %s", self.name, error)
        if self.healthy and not was:
            logger.warning("backend %s answers again", self.name)
        self.connections.prune()

    def unreachable(self, error: EngineError, now: float) -> None:
        """Say that no connection could be made; one that nobody listened for comes back as another."""
        self._lost = self._lost or isinstance(error.__cause__, ConnectionRefusedError)
        self.breaker.failed(now, at_once=True)

    def _restarted(self) -> None:
        """Forget what was learned of the process that is gone."""
        self._lost, self._checks, self._said_missing = False, 0, False
        self._takes.clear()
        self.sent.forget()
        self.window.restarted()
        self.breaker.ok()

    async def _measure(self, hungry: bool) -> None:
        if not self.kind.waiting:
            return
        head, body = await self.fetch("/metrics")
        text = body.decode("utf-8", "replace") if head.status == 200 else ""
        started = gauge(text, "process_start_time_seconds")
        if self._started is not None and started is not None and started != self._started:
            self._restarted()
        self._started = started
        if self._checks % _MODELS_EVERY == 0:
            self.sent.capacity = cache_tokens(text)
        self.kv = (gauge(text, self.kind.kv) if self.kind.kv else None) or 0.0
        self.waiting_inside = gauge(text, self.kind.waiting)
        self.window.counted = self.waiting_inside is not None
        if self.waiting_inside is not None:
            self.window.engine(max(0.0, self.waiting_inside - self._new()), self.in_flight, hungry)
        elif not self._said_missing:
            self._said_missing = True
            logger.warning(
                "backend %s does not say how many wait inside it (%s in /metrics); the bound is found from "
                "first bytes. %s", self.name, self.kind.waiting, self.kind.hint,
            )  # fmt: skip

    async def _ask_slots(self) -> None:
        """Ask how many it runs at once, where its kind says so."""
        if not self.kind.slots:
            return
        head, body = await self.fetch(self.kind.slots)
        try:
            slots = json.loads(body)["total_slots"] if head.status == 200 else 0
        except (ValueError, KeyError, TypeError, RecursionError):
            slots = 0
        self.window.slots = slots if type(slots) is int and 0 < slots < 1 << 16 else 0

    def _new(self) -> int:
        """Return how many went there so lately that they may wait for no more than a step to end."""
        since = time.monotonic() - self.window.step_time
        return sum(1 for _ in itertools.takewhile(lambda sent: sent > since, reversed(self._sent)))

    async def _list_models(self) -> None:
        head, body = await self.fetch("/v1/models")
        if head.status != 200:
            return
        try:
            cards = json.loads(body)["data"]
            self.cards = {str(card["id"]): card for card in cards}
        except (ValueError, KeyError, TypeError):
            logger.warning("backend %s lists its models in a form that is not OpenAI's", self.name)

    def close(self) -> None:
        """Close its idle connections."""
        self.connections.close()


def key_in(path: str) -> str:
    """Return the key in a file; empty where no file is named. Raises ConfigError."""
    if not path:
        return ""
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read key_file {path!r}: {error}") from error
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"key_file {path!r} holds what no header can carry; allowed: printable ASCII")
    return key
