"""What one tenant may ask for in a minute: requests, and tokens counted as fairness counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sooner.gateway.settings import TenantSettings


class Bucket:
    """A token bucket that holds a minute's worth; its level may fall below 0, and is then paid back first."""

    def __init__(self, per_minute: float, now: float) -> None:
        self._rate = per_minute / 60.0
        self._full = per_minute
        self._level = per_minute
        self._at = now

    def wait(self, amount: float, now: float) -> float:
        """Return how long it takes until `amount` may be taken [s]; 0: now."""
        self._level = min(self._full, self._level + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (min(amount, self._full) - self._level) / self._rate)

    def take(self, amount: float) -> None:
        """Take it, or give back where `amount` is negative."""
        self._level = min(self._full, self._level - amount)

    def change(self, per_minute: float) -> None:
        """Fill at another pace from now on; what was taken stays taken."""
        self._rate = per_minute / 60.0
        self._full = per_minute
        self._level = min(self._full, self._level)


class Limits:
    """The buckets of every tenant that has limits."""

    def __init__(self, tenants: Sequence[TenantSettings]) -> None:
        self._requests: dict[str, Bucket] = {}
        self._tokens: dict[str, Bucket] = {}
        self.take(tenants)

    def take(self, tenants: Sequence[TenantSettings]) -> None:
        """Take new limits. A tenant that had some keeps what is left of its minute, and its debts."""
        self._requests = _kept(
            self._requests, {tenant.name: tenant.requests_per_minute for tenant in tenants}
        )
        self._tokens = _kept(self._tokens, {tenant.name: tenant.tokens_per_minute for tenant in tenants})

    def admit(self, tenant: str, tokens: float, now: float) -> float:
        """Take one request and its expected `tokens`, and return 0; or return how long to wait [s]."""
        requests, spent = self._requests.get(tenant), self._tokens.get(tenant)
        wait = max(
            requests.wait(1.0, now) if requests else 0.0,
            spent.wait(tokens, now) if spent else 0.0,
        )
        if wait == 0.0:
            if requests:
                requests.take(1.0)
            if spent:
                spent.take(tokens)
        return wait

    def early(self, tenant: str, now: float) -> float:
        """Return how long a tenant has to wait for any request at all [s]; 0: not at all."""
        requests = self._requests.get(tenant)
        return requests.wait(1.0, now) if requests else 0.0

    def correct(self, tenant: str, tokens: float) -> None:
        """Charge what a request took beyond what was expected; negative: give back."""
        spent = self._tokens.get(tenant)
        if spent is not None:
            spent.take(tokens)


def _kept(buckets: Mapping[str, Bucket], limits: Mapping[str, float]) -> dict[str, Bucket]:
    """Return the buckets of those who have a limit: theirs so far, or full ones."""
    found = {}
    for name, per_minute in limits.items():
        if per_minute:
            found[name] = buckets.get(name) or Bucket(per_minute, 0.0)
            found[name].change(per_minute)
    return found
