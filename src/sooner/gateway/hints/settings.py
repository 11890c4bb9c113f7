"""What a user may set of the hinter, checked when built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sooner import policies
from sooner.core import ConfigError
from sooner.gateway.engines.connections import Address
from sooner.gateway.hints.lateness import Lateness
from sooner.gateway.hints.targets import target
from sooner.work import Pace


@dataclass(frozen=True, slots=True, kw_only=True)
class HintSettings:
    """Every setting of the hinter; all instances in front of one queue are given the same.

    `backends` are addresses of the target: the next one is tried where one cannot be reached. `ranker` is as
    for the gateway. `usual_wait` [s] is how long requests wait in the times when they do, `usual_work` [s]
    the size beyond which work counts as large; `pace` is what work is counted with. `patience` [s] is how
    long a request waits for its score; `drain` [s] bounds a shutdown. With `ext_proc` an Envoy is answered
    at `port`, which sends requests on itself: `backends` are not used, and pages are at `metrics_port`.
    """

    target: str
    backends: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8081
    policy: str = policies.DEFAULT
    parameters: Mapping[str, float] = field(default_factory=dict)
    ranker: str = "default"
    usual_wait: float = 10.0
    usual_work: float = 0.15
    pace: Pace = field(default_factory=Pace)
    patience: float = 0.05
    scorer_timeout: float = 5.0
    max_body: int = 32 * 1024 * 1024
    connect: float = 5.0
    drain: float = 60.0
    ext_proc: bool = False
    metrics_port: int | None = None

    def __post_init__(self) -> None:
        target(self.target)
        if not self.backends:
            raise ConfigError("no backend, allowed: at least one address of the target, http://host:port")
        for url in self.backends:
            Address.of(url)
        for name, port in (("port", self.port), ("metrics_port", self.metrics_port or 0)):
            if not 0 <= port < 65536:
                raise ConfigError(f"{name}={port!r}, allowed: 0..65535")
        for name in ("patience", "scorer_timeout", "max_body", "connect", "drain"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"{name}={value!r}, allowed: > 0")
        self.lateness()

    def lateness(self) -> Lateness:
        """Return the policy as seconds after arrival. Raises ConfigError for one that is not."""
        chosen = policies.get(self.policy, **self.parameters)
        return Lateness(chosen, self.pace, self.usual_wait, self.usual_work)
