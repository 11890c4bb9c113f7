"""Whether an engine takes a priority with its requests: asked with the requests themselves, and again.

A request that is refused (400, 422) with a priority may be refused for it, or for what its client wrote.
It is sent once more without; what comes then says which. That is the word of one tenant, and binds that
tenant only; from the word of two, with nobody's priority taken meanwhile, it holds for all. No word holds
for good.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

REFUSALS = frozenset((400, 422))
PAUSE, LONGEST = 30.0, 3600.0
"""Seconds that a word holds: at first, and at most. It doubles each time it is found true again."""
_TENANTS = 1024  # whose words are kept


@dataclass(slots=True)
class _Word:
    """What one tenant's request found: no refusal of its is sent twice until `until`."""

    since: float = -math.inf
    until: float = -math.inf
    pause: float = PAUSE
    refused: bool = False  # the priority was; else the request itself


class TakesPriority:
    """What is known of one engine and one path. Times are the monotonic clock's [s]."""

    def __init__(self) -> None:
        self._words: OrderedDict[str, _Word] = OrderedDict()
        self._refused: set[str] = set()  # tenants, since a priority was taken
        self._taken = -math.inf  # when one was, last
        self._all = _Word()

    def refused(self, now: float) -> bool:
        """Return whether nobody's requests carry a priority now."""
        return now < self._all.until

    def sends(self, tenant: str, now: float) -> bool:
        """Return whether a tenant's request goes with a priority. Where all go without, one asks at times."""
        word, all_of_them = self._words.get(tenant), self._all
        quiet = word is not None and now < word.until
        if word is not None and quiet and (word.refused or self._taken <= word.since):
            return False
        if all_of_them.refused:
            if quiet or now < all_of_them.until:
                return False
            all_of_them.until = now + all_of_them.pause  # this one asks, the others wait for what comes
        return True

    def taken(self, tenant: str, now: float) -> None:
        """Say that a request was served with its priority."""
        self._taken = now
        word = self._words.get(tenant)
        if word is not None and word.refused:
            del self._words[tenant]
        if self._refused or self._all.refused:
            self._refused.clear()
            self._all = _Word()

    def asks_again(self, tenant: str, sent: float, now: float) -> bool:
        """Return whether a request that went out at `sent` and was refused is to be sent without."""
        word = self._words.get(tenant)
        return word is None or now >= word.until or sent < word.since

    def answered(self, tenant: str, sent: float, now: float, *, refused: bool) -> bool:
        """Take in what came without; `refused`: it was served, so the priority was refused.

        Return whether from now on all go without.
        """
        word = self._words.pop(tenant, None) or _Word()
        self._words[tenant] = word
        if len(self._words) > _TENANTS:
            self._words.popitem(last=False)
        if sent >= word.since:
            word.pause = min(2 * word.pause, LONGEST) if word.refused and refused else PAUSE
            word.since, word.until, word.refused = now, now + word.pause, refused
        elif refused:  # one of a crowd that went out together
            word.refused = True
        if not refused:
            return False
        if len(self._refused) < _TENANTS:
            self._refused.add(tenant)
        whole = self._all
        if len(self._refused) < 2 or sent < whole.since:
            return False
        news = not whole.refused
        whole.pause = PAUSE if news else min(2 * whole.pause, LONGEST)
        whole.since, whole.until, whole.refused = now, now + whole.pause, True
        return news
