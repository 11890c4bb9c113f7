"""What a user may set: the gateway's TOML file, checked when built; flags take their defaults from here."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sooner import config, policies
from sooner.core import ConfigError, UnknownName
from sooner.gateway.engines.connections import Address
from sooner.gateway.engines.dialing import is_address
from sooner.gateway.engines.kinds import KINDS
from sooner.gateway.page.settings import SloSettings, WhatifSettings
from sooner.ordering.order import TELLS
from sooner.ordering.process import check_shadow

HOST = policies.Host("the gateway", TELLS | {"counter"})

_Item = TypeVar("_Item")


def _check(where: str, *ranges: tuple[str, object, bool, str]) -> None:
    for name, value, good, allowed in ranges:
        if not good:
            raise ConfigError(f"{where}.{name}={value!r}, allowed: {allowed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSettings:
    """One engine. `max_in_flight` 0 finds the bound by itself, between `min_in_flight` and `most_in_flight`.

    With `each_address` its host is the name of many engines, one at each address; `address` is the one of its
    addresses that is meant, empty: any.
    `weight` is its speed beside the others, while its pace is not known. `models` are those it may be asked
    for, empty: those it lists. `key_file` holds the key it wants; `ca_file` the authorities that its
    certificate is checked by, empty: the system's. `engine` is a file of its coefficients, as `sooner
    calibrate` writes it; empty: its pace is learned. `hand_on` passes the order on as the engine's priority
    where its kind has one.
    """

    url: str
    name: str = ""
    kind: str = "openai"
    weight: float = 1.0
    max_in_flight: int = 0
    min_in_flight: int = 1
    most_in_flight: int = 1024
    models: tuple[str, ...] = ()
    key_file: str = ""
    ca_file: str = ""
    engine: str = ""
    hand_on: bool = True
    each_address: bool = False
    address: str = ""

    def __post_init__(self) -> None:
        Address.of(self.url)
        if self.address and not is_address(self.address):
            raise ConfigError(f"backend {self.url!r}: address={self.address!r}, allowed: an IP address")
        if self.kind not in KINDS:
            raise UnknownName("kind of backend", self.kind, KINDS)
        _check(
            f"backend {self.url!r}",
            ("weight", self.weight, self.weight > 0, "> 0"),
            ("max_in_flight", self.max_in_flight, self.max_in_flight >= 0, ">= 0; 0 finds it"),
            ("min_in_flight", self.min_in_flight, self.min_in_flight >= 1, ">= 1"),
            (
                "most_in_flight",
                self.most_in_flight,
                self.most_in_flight >= self.min_in_flight,
                ">= min_in_flight",
            ),
        )

    @property
    def title(self) -> str:
        """Its name in metrics and messages: the given one, or host and port."""
        return self.name or Address.of(self.url).authority


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSettings:
    """A priority class, named by `x-sooner-class`: all of a lower `level` go first.

    `deadline_ms` is the deadline of those that bring none; 0: none.
    """

    name: str
    level: int = 0
    deadline_ms: float = 0.0

    def __post_init__(self) -> None:
        _check(f"class {self.name!r}", ("deadline_ms", self.deadline_ms, self.deadline_ms >= 0, ">= 0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSettings:
    """What one tenant may do. 0 is no limit; `classes` empty: all of them.

    `weight` is its share beside the others. `queue_share` in (0, 1] is the part of the waiting room
    it may fill.
    """

    name: str
    weight: float = 1.0
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    queue_share: float = 0.5
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(
            f"tenant {self.name!r}",
            ("weight", self.weight, self.weight > 0, "> 0"),
            ("requests_per_minute", self.requests_per_minute, self.requests_per_minute >= 0, ">= 0"),
            ("tokens_per_minute", self.tokens_per_minute, self.tokens_per_minute >= 0, ">= 0"),
            ("queue_share", self.queue_share, 0 < self.queue_share <= 1, "in (0, 1]"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """The waiting room. Times in seconds.

    A request that waited `overdue` takes one of every `overdue_every` places by order of arrival,
    whatever its class, tenant or length: the bound on waiting. With `overdue_ratio` so does one that
    waited that many times what it is expected to run. `max_wait` is how long any may wait, and a
    newcomer that is expected to wait longer is refused at once. A tenant whose
    waiting requests are no more work than its share of `burst` seconds goes before those who ask for more.
    A client that wants its reply as a stream gets a comment every `comment_every` while it waits; 0: none.
    """

    max_waiting: int = 10_000
    max_wait: float = 300.0
    overdue: float = 60.0
    overdue_every: int = 4
    overdue_ratio: float = 0.0
    urgent: float = 5.0
    burst: float = 10.0
    comment_every: float = 0.0

    def __post_init__(self) -> None:
        _check(
            "queue",
            ("max_waiting", self.max_waiting, self.max_waiting >= 0, ">= 0"),
            ("max_wait", self.max_wait, self.max_wait > 0, "> 0 [s]"),
            ("overdue", self.overdue, self.overdue > 0, "> 0 [s]"),
            ("overdue_every", self.overdue_every, self.overdue_every >= 1, ">= 1"),
            ("overdue_ratio", self.overdue_ratio, self.overdue_ratio >= 0, ">= 0; 0 for none"),
            ("urgent", self.urgent, self.urgent >= 0, ">= 0 [s]"),
            ("burst", self.burst, self.burst >= 0, ">= 0 [s]"),
            ("comment_every", self.comment_every, 0 <= self.comment_every <= 3600, "0..3600 [s]; 0 for none"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """Bounds on one request and on what waits for it. Times in seconds, sizes in bytes.

    `head_time` and `body_time` bound a client that sends slowly, `first_byte` and `between_bytes`
    an engine that answers slowly, `drain` how long a shutdown waits for what runs. For a client that
    does not read, `client_bytes` of its reply are kept, and it is waited for `client_time`. A request is
    sent again `retries` times at most, and of all requests a `retry_share`. `held_bytes` are all bodies
    that wait or run; `strangers` the connections that have not shown a good key.
    """

    max_body: int = 32 * 1024 * 1024
    max_header: int = 16 * 1024
    head_time: float = 10.0
    body_time: float = 30.0
    connect: float = 5.0
    first_byte: float = 600.0
    between_bytes: float = 300.0
    retries: int = 2
    retry_share: float = 0.2
    drain: float = 60.0
    client_time: float = 60.0
    client_bytes: int = 4 * 1024 * 1024
    held_bytes: int = 64 * 1024 * 1024
    strangers: int = 4096

    def __post_init__(self) -> None:
        for name in ("max_body", "max_header", "head_time", "body_time", "connect", "first_byte",
                     "between_bytes", "drain", "client_time", "client_bytes", "held_bytes",
                     "strangers"):  # fmt: skip
            value = getattr(self, name)
            _check("limits", (name, value, value > 0, "> 0"))
        _check(
            "limits",
            ("retries", self.retries, self.retries >= 0, ">= 0"),
            ("retry_share", self.retry_share, 0 <= self.retry_share <= 1, "in [0, 1]"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceSettings:
    """Replies made a slice of `tokens` at a time, as in SCLS; 0: in one piece."""

    tokens: int = 0

    def __post_init__(self) -> None:
        _check("slices", ("tokens", self.tokens, self.tokens >= 0, ">= 0; 0 for replies in one piece"))


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalSettings:
    """Where finished requests are written. `url` empty: nowhere. `prompts` keeps the text too."""

    url: str = ""
    prompts: bool = False
    max_rows: int = 1_000_000

    def __post_init__(self) -> None:
        _check("journal", ("max_rows", self.max_rows, self.max_rows >= 1, ">= 1"))


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Every setting of the gateway.

    `parameters` are the policy's own. `ranker` is as for the plugin: "default", a folder, "module:name",
    or "" for none. `shadow` is a second one, or "learner" for what is learned alone: it is asked too, and
    compared, and does not act until it is promoted; so is `shadow_policy`, a second policy with its
    `shadow_parameters`. With `learn` the order is learned from how replies end, beside the ranker or
    alone; `learned` is the file in which that is kept: "auto" for one a port in the cache folder (none
    for port 0), "" for none; `state` is the same for what is learned of engines and waits, and the switch
    lies beside it. `client_scores` lets requests bring their own numbers. `keys` is the database of keys;
    empty: no keys, and then only clients on this machine are served. `cut_revoked` ends the replies of a
    key that is revoked, which else run to their end. `admin_key_file` opens the admin routes. With
    `tls_cert` and `tls_key` clients are served by https. `cors_origins` are those whose web pages may
    ask, such as "https://chat.example.org"; "*": all. `aliases` maps a model's name as clients say it to
    one that engines know. `access_log` is how many lines a second are written of finished requests, at
    most; 0 for none.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    policy: str = policies.DEFAULT
    parameters: Mapping[str, float] = field(default_factory=dict)
    ranker: str = "default"
    shadow: str = ""
    shadow_policy: str = ""
    shadow_parameters: Mapping[str, float] = field(default_factory=dict)
    learn: bool = True
    learned: str = "auto"
    state: str = "auto"
    scorer_timeout: float = 5.0
    client_scores: bool = False
    keys: str = ""
    cut_revoked: bool = False
    tls_cert: str = ""
    tls_key: str = ""
    cors_origins: tuple[str, ...] = ()
    admin_key_file: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    access_log: int = 0
    queue: QueueSettings = field(default_factory=QueueSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    journal: JournalSettings = field(default_factory=JournalSettings)
    slices: SliceSettings = field(default_factory=SliceSettings)
    slo: SloSettings = field(default_factory=SloSettings)
    whatif: WhatifSettings = field(default_factory=WhatifSettings)
    backends: tuple[BackendSettings, ...] = ()
    classes: tuple[ClassSettings, ...] = ()
    tenants: tuple[TenantSettings, ...] = ()

    def __post_init__(self) -> None:
        HOST.bind(self.chosen_policy)
        _check(
            "gateway",
            ("port", self.port, 0 <= self.port < 65536, "0..65535"),
            ("scorer_timeout", self.scorer_timeout, self.scorer_timeout > 0, "> 0 [s]"),
            ("access_log", self.access_log, 0 <= self.access_log <= 10_000, "0..10000 [lines a second]"),
        )
        check_shadow("gateway", self.shadow, self.ranker, learn=self.learn)
        if self.shadow_policy:
            HOST.bind(self.shadowing_policy)
            if self.slices.tokens or (self.shadow_policy, self.shadow_parameters) == (
                self.policy,
                self.parameters,
            ):
                told = "another than policy, and replies that are not served in slices"
                raise ConfigError(f"gateway.shadow_policy={self.shadow_policy!r}, allowed: {told}")
        for what, names in (
            ("backend", [backend.title for backend in self.backends]),
            ("class", [entry.name for entry in self.classes]),
            ("tenant", [entry.name for entry in self.tenants]),
        ):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ConfigError(f"{what} {sorted(twice)[0]!r} comes twice, allowed: names that differ")
        known = {entry.name for entry in self.classes}
        for tenant in self.tenants:
            for name in tenant.classes:
                if name not in known:
                    raise UnknownName(f"class of tenant {tenant.name!r}:", name, known)
        if not self.keys and "*" in self.cors_origins:
            raise ConfigError(
                "cors_origins '*' without keys would let every web page ask, allowed: origins by name"
            )
        if not self.keys and not _loopback(self.host):
            raise ConfigError(
                f"host {self.host!r} without keys would serve anyone who reaches it; "
                "make keys (sooner keys add) and name their database, or listen on 127.0.0.1"
            )

    @property
    def learned_file(self) -> str | None:
        """Where what is learned is kept, "" for nowhere; None where nothing is learned."""
        if not self.learn:
            return None
        if self.learned != "auto":
            return self.learned
        return str(config.cache_folder() / "gateway" / f"{self.port}.learned.npz") if self.port else ""

    @property
    def state_file(self) -> str:
        """Where what is learned of engines and waits is kept, "" for nowhere."""
        if self.state != "auto":
            return self.state
        return str(config.cache_folder() / "gateway" / f"{self.port}.state.json") if self.port else ""

    @property
    def remembered_file(self) -> str:
        """Where the page remembers the switch, "" for nowhere: beside the state."""
        return f"{self.state_file}.page" if self.state_file else ""

    @property
    def chosen_policy(self) -> policies.Policy:
        """The policy with its parameters bound."""
        return policies.get(self.policy, **self.parameters)

    @property
    def shadowing_policy(self) -> policies.Policy:
        """The policy that watches, with its parameters bound. Raises UnknownName where none is named."""
        return policies.get(self.shadow_policy, **self.shadow_parameters)


def _loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def read(values: Mapping[str, Any], where: str) -> GatewaySettings:
    """Return the settings in a mapping; tables `[[backend]]`, `[[class]]` and `[[tenant]]` are lists."""
    lists: tuple[tuple[str, str, type[Any]], ...] = (
        ("backend", "backends", BackendSettings),
        ("class", "classes", ClassSettings),
        ("tenant", "tenants", TenantSettings),
    )
    known = {f.name for f in dataclasses.fields(GatewaySettings)} - {plural for _, plural, _ in lists}
    known |= {name for name, _, _ in lists}
    for key in values:
        if key not in known:
            raise UnknownName(f"setting in {where}:", key, known)
    single = {name for name, _, _ in lists}
    rest = {key: value for key, value in values.items() if key not in single}
    found = {plural: _items(values.get(name, ()), kind, f"{where}.{name}") for name, plural, kind in lists}
    return config.build(GatewaySettings, {**rest, **found}, where)


def _items(given: Any, kind: type[_Item], where: str) -> tuple[_Item, ...]:
    if not isinstance(given, list | tuple):
        raise ConfigError(f"{where}={given!r}, allowed: tables, [[{where.rsplit('.', 1)[-1]}]]")
    return tuple(config.build(kind, item, f"{where}[{n}]") for n, item in enumerate(given))


def read_with(path: Path | None, changes: Mapping[str, Any]) -> GatewaySettings:
    """Return the settings in a TOML file, if one is named, with `changes` over them.

    Raises ConfigError, UnknownName.
    """
    if path is None:
        return read(changes, "the command line")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read settings {str(path)!r}: {error}") from error
    return read({**values, **changes}, str(path))


def backend(text: str) -> BackendSettings:
    """Return the backend in a flag, `[KIND=]URL`. Raises ConfigError, UnknownName."""
    kind, equals, url = text.partition("=")
    if not equals or "://" in kind:
        return BackendSettings(url=text)
    return BackendSettings(url=url, kind=kind)
