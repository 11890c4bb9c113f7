"""A second ranker or policy in the plugin, which watches and moves nobody: compared, written down, told of.

Nothing here runs where the settings name none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from sooner.guard import Guard
from sooner.learning.shadow import Rivalry, is_better
from sooner.ordering.order import Order
from sooner.ordering.policy_shadow import PolicyShadow
from sooner.ordering.process import LEARNER
from sooner.ordering.shadow import Promotion
from sooner.ordering.standings import shadow_gauges
from sooner.ordering.ticket import Ticket
from sooner.ordering.wire import Ending, ShadowReport
from sooner.policies import Policy
from sooner.vllm import compat
from sooner.vllm.counters import PluginCounters
from sooner.vllm.settings import VllmSettings
from sooner.vllm.trace import EngineTrace

logger = logging.getLogger("vllm.plugins.sooner")


class ShadowNews:
    """Says how a shadow stands: in the trace whenever that changed, in the log once it is better."""

    def __init__(self, setting: str, names: tuple[str, str], trace: EngineTrace | None, order: Order) -> None:
        """`names` are what the setting and its shadow name."""
        self._setting = setting
        self._names = names
        self._trace = trace
        self._order = order
        self._told: Mapping[str, float] = {}
        self._better = False

    def tell(self, now: Rivalry, gauges: Mapping[str, float], *, promoted: bool = False) -> None:
        """Take in how both stand; `gauges` are the numbers of it, by the names of `/metrics`."""
        if not now.better.n or gauges == self._told:
            return
        self._told = gauges
        acting, shadow = reversed(self._names) if promoted else self._names
        if self._trace is not None:
            self._trace.shadow(self._order.step, {self._setting: acting, "shadow": shadow, **gauges})
        better = is_better(now)
        if better and not self._better:
            logger.warning(
                "in the shadow, %s %r orders better than %r, beyond chance: it gains %.1f%% where that gains "
                "%.1f%% (error of the difference %.1f%%). To let it act, name it as %s at the next start",
                self._setting, shadow, acting, 100 * now.shadow.gain, 100 * now.acting.gain,
                100 * now.better.gain_error, self._setting,
            )  # fmt: skip
        self._better = better


class RankerNews:
    """The news of a second ranker, from what the scorer tells of it."""

    def __init__(self, settings: VllmSettings, trace: EngineTrace | None, order: Order) -> None:
        self._news = ShadowNews("ranker", (settings.ranker or LEARNER, settings.shadow), trace, order)

    def tell(self, told: ShadowReport | None) -> None:
        """Take in the last report."""
        if told is not None:
            self._news.tell(told.now, shadow_gauges(told), promoted=told.promoted)


class WatchedOrder(Order):
    """The order of the policy that acts; a second one sees all that wait, start and end.

    `requests` are the engine's, by id: what a request became is read there when it leaves.
    """

    def __init__(
        self,
        watch: PolicyShadow,
        guard: Guard[str] | None,
        counters: PluginCounters,
        requests: Mapping[str, Any],
        trace: EngineTrace | None,
    ) -> None:
        super().__init__(watch.acting, guard, counters, weighs=True)
        self._watch = watch
        self._requests = requests
        assert watch.shadow is not None
        self._shadow_news = ShadowNews("policy", (watch.acting.name, watch.shadow.name), trace, self)

    def arrive(self, id: str, *args: Any, **kwargs: Any) -> Ticket:
        """Give a new request its ticket; it sits down among those that wait."""
        ticket = super().arrive(id, *args, **kwargs)
        self._quietly(self._watch.waits, id, ticket)
        return ticket

    def admitted(self, id: str) -> None:
        """Say that a request runs from now on: it is held against one that waits on."""
        super().admitted(id)
        self._quietly(self._watch.started, id, self, self.now)

    def preempted(self, id: str, attained: int) -> None:
        """Say that a request waits again."""
        super().preempted(id, attained)
        if id in self.tickets:
            self._quietly(self._watch.waits, id, self.tickets[id])

    def leave(self, id: str) -> Ticket | None:
        """Forget a request, and take in how long its reply was where that is whole."""
        ticket = super().leave(id)
        if ticket is not None:
            self._quietly(self._left, id, ticket)
        return ticket

    def gauges(self) -> dict[str, float]:
        """Return what is measured, of the second policy too."""
        return {**super().gauges(), **self._watch.gauges()}

    def _left(self, id: str, ticket: Ticket) -> None:
        request, before = self._requests.get(id), self._watch.pairs.now
        if request is not None and compat.ending(request) is Ending.STOP:
            self._watch.finished(id, ticket, self, request.num_output_tokens)
        self._watch.left(id)
        if self._watch.pairs.now is not before:
            self._shadow_news.tell(self._watch.pairs.now, self._watch.gauges())

    def _quietly(self, hook: Callable[..., None], *arguments: Any) -> None:
        """Do what concerns the second policy only; what it raises is counted."""
        try:
            hook(*arguments)
        except Exception as error:
            self.counters.warn("shadow_failures", "%s of a shadow failed: %r", hook.__name__, error)


def order_of(
    settings: VllmSettings,
    policy: Policy,
    guard: Guard[str] | None,
    counters: PluginCounters,
    requests: Mapping[str, Any],
    trace: EngineTrace | None,
) -> Order:
    """Return the order of a policy, watched by a second one where the settings name it."""
    if not settings.shadow_policy:
        return Order(policy, guard, counters)
    watch = PolicyShadow(policy, settings.shadowing_policy(), Promotion(None, {}), counters)
    return WatchedOrder(watch, guard, counters, requests, trace)
