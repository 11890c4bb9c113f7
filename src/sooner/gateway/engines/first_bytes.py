"""How late first bytes are, beside those of an engine that has little to do.

Both sides are the same low quantile, of the last light replies and of the last replies of all, so a cache
that answers a part of them is on both. They are kept for each group of tenants and each length of prompt,
and the middle group decides: whose replies came quickly once makes only its own look late.
"""

from __future__ import annotations

from collections import deque

from sooner.gateway.engines.votes import Votes, group

QUANTILE = 0.2
ENOUGH = 16
"""Light replies before anything is late beside them; the quantile of so few is above three odd ones."""
_LIGHT = 32  # light replies kept, of each group and length
_LATEST = 12  # replies of a group that say how late it is served now
_ALIKE = 10  # and the fewest of them


class FirstBytes:
    """Learned from every streamed reply. Memory is bounded by the groups and the lengths there are."""

    def __init__(self) -> None:
        self._light: dict[tuple[int, int], deque[float]] = {}  # [s] by group and length in powers of two
        self._usual: dict[tuple[int, int], float] = {}
        self._latest: dict[int, deque[float]] = {}  # by group, over the usual
        self._votes = Votes()

    def add(self, first_byte: float, prompt_len: int, tenant: str, now: float, *, light: bool) -> None:
        """Take in a first byte [s]; `light`: the engine had little to do when it was asked for."""
        of = group(tenant)
        alike = of, prompt_len.bit_length()
        first_byte = max(first_byte, 1e-4)
        known = self._light.get(alike)
        if known is None:
            known = self._light[alike] = deque(maxlen=_LIGHT)
        if light or len(known) < ENOUGH:  # while little is known all counts
            known.append(first_byte)
            if len(known) >= ENOUGH:
                self._usual[alike] = _quantile(known)
        usual = self._usual.get(alike)
        if usual is None:
            return
        latest = self._latest.get(of)
        if latest is None:
            latest = self._latest[of] = deque(maxlen=_LATEST)
        latest.append(first_byte / usual)
        if len(latest) >= _ALIKE:
            self._votes.say(of, _quantile(latest), now)

    def late(self, tenant: str, now: float) -> float | None:
        """Return how many times the usual first bytes take now, after one of a tenant's.

        None while too little is known, and where this one told nothing new: it is not of the middle group.
        """
        middle = self._votes.middle(now)
        return middle.value if middle is not None and middle.of == group(tenant) else None

    def forget(self) -> None:
        """Begin anew."""
        self._light.clear()
        self._usual.clear()
        self._latest.clear()
        self._votes.forget()


def _quantile(values: deque[float]) -> float:
    return sorted(values)[int(QUANTILE * len(values))]
