"""The shadow as the gateway tells of it: who acts, who watches, how both stand; and the promotion."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

from sooner.core import ConfigError, EngineError
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.switch import OrderSwitch
from sooner.learning.shadow import Rivalry, is_better
from sooner.learning.watch import LiveStanding
from sooner.ordering.process import LEARNER

logger = logging.getLogger("sooner.gateway")

_PATIENCE = 10.0  # seconds in which the scorer is to have changed places
_LOOK_EVERY = 0.02


def state(dispatcher: Dispatcher) -> dict[str, Any] | None:
    """Return who acts and how both stand on the same replies; None where the settings name no shadow."""
    settings, report = dispatcher.settings, dispatcher.scores.shadow
    if not settings.shadow:
        return None
    promoted = report is not None and report.promoted
    names = [settings.ranker or LEARNER, settings.shadow]
    now = Rivalry() if report is None else report.now
    return {
        "acting": names[promoted],
        "shadow": names[not promoted],
        "promoted": promoted,
        "known": report is not None,
        "requests": 0 if report is None else report.seen,
        **_measured(now),
    }


def policy_state(dispatcher: Dispatcher) -> dict[str, Any] | None:
    """Return which policy acts and how both stand on the same pairs; None where no other is named."""
    watched = dispatcher.policy_shadow
    if watched.shadow is None:
        return None
    return {
        "acting": watched.acting.name,
        "shadow": watched.shadow.name,
        "promoted": watched.promotion.on,
        "pairs": watched.pairs.seen,
        **_measured(watched.pairs.now),
    }


def _measured(now: Rivalry) -> dict[str, Any]:
    return {
        "is_better": is_better(now),
        **{
            f"{name}_{measure}": value if math.isfinite(value) else None
            for name, standing in now._asdict().items()
            for measure, value in _measures(standing).items()
        },
    }


def _measures(standing: LiveStanding) -> dict[str, float]:
    found = standing._asdict()
    del found["n"]
    return found


async def promote(dispatcher: Dispatcher, by: str) -> dict[str, Any]:
    """Let the shadow act, and what acted be its shadow; return the state then.

    Raises ConfigError where there is no shadow, EngineError where the scorer does not change places in time.
    """
    before = state(dispatcher)
    if before is None:
        raise ConfigError("no shadow is named, allowed: a ranker as shadow in the settings")
    if not before["known"]:
        raise EngineError("the scorer has not told of the shadow yet: it starts, or could not load it")
    on = not before["promoted"]
    dispatcher.scores.promote(on)
    try:
        async with asyncio.timeout(_PATIENCE):
            while (report := dispatcher.scores.shadow) is None or report.promoted != on:
                await asyncio.sleep(_LOOK_EVERY)
    except TimeoutError:
        raise EngineError(f"the scorer has not changed places within {_PATIENCE:.0f} s") from None
    logger.warning("%r orders from now on in place of %r, by %r", before["shadow"], before["acting"], by)
    after = state(dispatcher)
    assert after is not None
    return after


def promote_policy(dispatcher: Dispatcher, switch: OrderSwitch, by: str) -> dict[str, Any]:
    """Let the policy that watches act, and what acted be its shadow; return the state then.

    Raises ConfigError where the settings name none.
    """
    before = dispatcher.policy_shadow.acting
    now = dispatcher.policy_shadow.change_places()
    switch.take(now)
    logger.warning("%r orders from now on in place of %r, by %r", now.name, before.name, by)
    after = policy_state(dispatcher)
    assert after is not None
    return after
