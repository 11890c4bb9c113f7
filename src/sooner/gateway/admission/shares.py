"""Fairness between tenants: the virtual token counter (Sheng et al., OSDI 2024), and an allowance.

Each tenant's counter grows with the tokens it was served, divided by its weight; who has the
smallest is served next. A tenant that comes back is lifted to the smallest counter of those
waiting, so that nobody saves up a claim while away.

That alone lets a tenant that stays within its share wait through its own small bursts for as long as
another floods. So each has an allowance besides, a bucket that fills at the pace of its share: a
tenant whose waiting requests all fit into it goes before those whose do not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

OUTPUT_WEIGHT = 2.0
"""Tokens of input that one of output counts for; the paper's choice, and the usual price."""


def charge(prompt_len: float, output_len: float) -> float:
    """Return what a request costs, in tokens of input."""
    return prompt_len + OUTPUT_WEIGHT * output_len


class Shares:
    """The counters. Charged with the predicted work when a request starts, corrected when it ends."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)
        self._counters: dict[str, float] = {}
        self._floor = 0.0  # the counter of the last tenant that was served
        self._spent: dict[str, float] = {}  # of the allowances, by those who have not all of theirs
        self._most = 0.0  # all allowances of those who wait
        self._watchers: list[Callable[[str | None], None]] = []

    def take(self, weights: Mapping[str, float]) -> None:
        """Take new weights; what was served stays counted."""
        self._weights = dict(weights)
        self._tell(None)

    def watch(self, watcher: Callable[[str | None], None]) -> None:
        """Call `watcher` with each tenant whose counter or allowance moves; with None when all do."""
        self._watchers.append(watcher)

    def _tell(self, tenant: str | None) -> None:
        for watcher in self._watchers:
            watcher(tenant)

    def __getitem__(self, tenant: str) -> float:
        return self._counters.get(tenant, self._floor)

    def weight(self, tenant: str) -> float:
        """Return the weight of a tenant; 1 where none was set."""
        return self._weights.get(tenant, 1.0)

    def enter(self, tenant: str, waiting: Iterable[str]) -> None:
        """Say that `tenant`, who had nobody waiting, has now; `waiting` are the others who have."""
        self.lift(tenant, min((self[other] for other in waiting), default=None))

    def lift(self, tenant: str, lowest: float | None) -> None:
        """Say that `tenant` waits now, beside others of whom one has the `lowest` counter; None: alone."""
        self._counters[tenant] = self.on_entry(tenant, lowest)
        self._tell(tenant)

    def on_entry(self, tenant: str, lowest: float | None) -> float:
        """Return the counter that `tenant` would have if it came now to those whose `lowest` this is."""
        return max(self._counters.get(tenant, 0.0), self._floor if lowest is None else lowest)

    def charge(self, tenant: str, amount: float) -> None:
        """Add work, or take it back where `amount` is negative."""
        self._counters[tenant] = self[tenant] + amount / self.weight(tenant)
        if amount > 0:
            self._floor = max(self._floor, min(self._counters[tenant], self._floor + amount))
        self._spent[tenant] = max(0.0, self._spent.get(tenant, 0.0) + amount)
        self._tell(tenant)

    def need(self, tenant: str, waits: float) -> float:
        """Return what a tenant with so much work waiting asks for of an allowance, by its weight."""
        return (waits + self._spent.get(tenant, 0.0)) / self.weight(tenant)

    def allowed(self, weights: float) -> float:
        """Return the allowance for a unit of weight, where those who wait have `weights` together."""
        return self._most / weights

    def allowance(self, tenant: str, waiting: Iterable[str]) -> float:
        """Return the work that a tenant may have waiting and still go first, beside those who wait."""
        return self._most * self._part(tenant, waiting) - self._spent.get(tenant, 0.0)

    def refill(self, seconds: float, pace: float, burst: float, waiting: Collection[str]) -> None:
        """Fill the allowances for `seconds` at `pace` [work/s]; each holds `burst` seconds of its share."""
        self._most = burst * pace
        whole = sum(map(self.weight, waiting))
        for tenant, spent in list(self._spent.items()):
            weight = self.weight(tenant)
            share = pace * weight / (whole if tenant in waiting else whole + weight)
            left = min(spent, burst * share) - seconds * share
            if left > 0.0:
                self._spent[tenant] = left
            else:
                del self._spent[tenant]
        self._tell(None)

    def _part(self, tenant: str, waiting: Iterable[str]) -> float:
        others = sum(self.weight(other) for other in waiting if other != tenant)
        return self.weight(tenant) / (others + self.weight(tenant))

    def forget(self, busy: Iterable[str]) -> None:
        """Drop the counters of those who are away, which they would be lifted above anyway."""
        keep = set(busy)
        self._counters = {
            tenant: value for tenant, value in self._counters.items() if tenant in keep or value > self._floor
        }
