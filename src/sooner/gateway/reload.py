"""Settings that are read again while the gateway serves: what is taken, and what stays until a new start."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sooner.core import ConfigError
from sooner.gateway.engines.backend import Backend, Secrets, key_in
from sooner.gateway.engines.discovery import Discovery
from sooner.gateway.settings import GatewaySettings

logger = logging.getLogger("sooner.gateway")

_FIXED = ("host", "port", "policy", "parameters", "ranker", "shadow", "shadow_policy", "shadow_parameters",
          "learn", "learned", "state", "scorer_timeout", "keys", "journal", "whatif", "tls_cert",
          "tls_key")  # fmt: skip
_FIXED_LIMITS = ("max_body", "max_header", "strangers")


class Renewed(NamedTuple):
    """What is served by from now on; engines that stay are the same ones, with what their files hold now."""

    settings: GatewaySettings
    backends: list[Backend]
    secrets: list[Secrets]
    admin_key: str

    def take(self) -> None:
        """Let the engines take their bounds, keys and authorities."""
        for backend, secrets in zip(self.backends, self.secrets, strict=True):
            backend.take(self.settings.limits, secrets)


def engines(settings: GatewaySettings, serving: Sequence[Backend], discovery: Discovery) -> list[Backend]:
    """Return the engines that are served by; those that serve already stay the same ones."""
    kept = {(backend.settings, backend.name): backend for backend in serving if not backend.retired}
    chosen = discovery.engines(settings.backends)
    return [kept.get((one, one.title)) or Backend(one, settings.limits) for one in chosen]


def renewed(
    read: Callable[[], GatewaySettings], now: GatewaySettings, serving: Sequence[Backend],
    discovery: Discovery,
) -> Renewed:  # fmt: skip
    """Read settings and every file they name; nothing is changed yet. Raises SoonerError."""
    new = read()
    if not new.backends:
        raise ConfigError("they name no engine, allowed: at least one [[backend]]")
    backends = engines(new, serving, discovery)
    secrets = [backend.read_secrets() for backend in backends]
    admin_key = key_in(new.admin_key_file)
    fixed = {name: getattr(now, name) for name in _FIXED}
    fixed_limits = {name: getattr(now.limits, name) for name in _FIXED_LIMITS}
    left = [name for name in _FIXED if getattr(new, name) != fixed[name]]
    left += [f"limits.{name}" for name in _FIXED_LIMITS if getattr(new.limits, name) != fixed_limits[name]]
    if left:
        logger.warning("not taken until the next start: %s", ", ".join(left))
    limits = dataclasses.replace(new.limits, **fixed_limits)
    return Renewed(dataclasses.replace(new, limits=limits, **fixed), backends, secrets, admin_key)
