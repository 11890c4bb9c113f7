"""The numbers of a stretch of time, whoever counted them."""

from __future__ import annotations

from typing import NamedTuple


class Spread(NamedTuple):
    """Percentiles of a duration [s]; None where nothing was measured."""

    p50: float | None
    p90: float | None
    p99: float | None


class TimeSeen(NamedTuple):
    """What became of the requests that ended in the last `length` seconds, or as many as are known.

    `requests` are whole replies, `in_time` those of them that kept the objective, `cut` broke off, `failed`
    are the engines' errors. The times are of whole replies. `refused` counts by reason.
    """

    length: float
    requests: int
    in_time: int
    cut: int
    failed: int
    wait: Spread
    ttft: Spread
    e2e: Spread
    reply_tokens: float
    refused: dict[str, int]

    @property
    def per_second(self) -> float:
        """Whole replies a second."""
        return self.requests / self.length

    @property
    def goodput(self) -> float:
        """Replies in time, a second."""
        return self.in_time / self.length

    @property
    def tokens_per_second(self) -> float:
        """Tokens of whole replies, a second."""
        return self.reply_tokens / self.length
