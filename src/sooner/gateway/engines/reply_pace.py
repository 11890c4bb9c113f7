"""How fast an engine works, as a client sees it: the first byte's time against the prompt, the gaps after.

`sooner.work.Pace` for the gateway, which sees no step of an engine. The slope of the first byte's time over
the prompt's length is what a prompt token costs; a gap between tokens, over the requests that ran beside, is
what a reply token costs. Both fade, so an engine that changes is learned anew.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sooner.gateway.engines.paces import sensible
from sooner.work import Pace

FEWEST = 16
"""Streamed replies before anything is told."""
MEMORY = 0.98
"""What a reply's weight keeps with each further one."""
TOLD = 1.25
"""The factor by which a cost must move to be told anew."""
FAR = 8.0
"""Times the mean: a first byte that late, or a gap that long, says more of a pause than of the engine."""


class ReplyPace:
    """One engine's; `pace` is what is believed until it is told otherwise, and stays where it was `given`.

    Of a given pace only the batch is learned, which no engine's coefficients say.
    """

    def __init__(self, given: Pace | None = None) -> None:
        self.pace = Pace() if given is None else given
        self.given = self.known = given is not None  # known: learned, given or kept
        self.odd = 0  # replies, and coefficients, that made no sense
        self._seen = 0
        self._sums = [0.0] * 5  # weight, prompt, first byte, prompt squared, prompt times first byte
        self._gap = 0.0
        self._beside = 1.0

    def add(self, prompt_len: int, first_byte: float, gap: float, in_flight: float) -> Pace | None:
        """Take in a streamed reply: tokens, seconds, seconds a token, requests at its engine with it.

        Returns a new pace where one is learned that is clearly another.
        """
        if not (0.0 < first_byte < 3600.0 and 0.0 < gap < 60.0 and prompt_len > 0 and in_flight > 0):
            self.odd += 1
            return None
        weight, _, firsts = self._sums[:3]
        if self._seen >= FEWEST and (first_byte > FAR * firsts / weight or gap > FAR * self._gap):
            self.odd += 1
            first_byte, gap = min(first_byte, FAR * firsts / weight), min(gap, FAR * self._gap)
        terms = (1.0, prompt_len, first_byte, prompt_len * prompt_len, prompt_len * first_byte)
        self._sums = [MEMORY * total + term for total, term in zip(self._sums, terms, strict=True)]
        self._seen += 1
        share = max(1.0 - MEMORY, 1.0 / self._seen)
        self._gap += (gap - self._gap) * share
        self._beside += (in_flight - self._beside) * share
        return self._tell() if self._seen >= FEWEST else None

    @property
    def reply_token_s(self) -> float:
        """What a reply token costs beside the usual number of others, its context aside [s]."""
        return self.pace.iteration_s / self.pace.batch + self.pace.decode_seq_s

    def believe(self, kept: Any) -> None:
        """Take coefficients that were kept; those that make no sense are counted and left alone."""
        if self.given:
            return
        pace = sensible(kept)
        if pace is None:
            self.odd += 1
        else:
            self.pace, self.known = pace, True

    def _tell(self) -> Pace | None:
        if self.given:
            if _near(self._beside, self.pace.batch):
                return None
            self.pace = dataclasses.replace(self.pace, batch=max(self._beside, 1.0))
            return self.pace
        weight, prompts, firsts, squares, products = self._sums
        spread = squares * weight - prompts * prompts
        token = self.pace.prefill_token_s
        if spread > 0.01 * prompts * prompts:  # prompts that are all alike say nothing of their length
            slope = (products * weight - prompts * firsts) / spread
            token = min(max(slope, 0.0), firsts / prompts)
        reply = self._gap / self._beside
        old = self.pace
        before = self.reply_token_s
        if self.known and _near(token, old.prefill_token_s) and _near(reply, before):
            return None
        learned = sensible({
            "iteration_s": self._gap, "prefill_token_s": token, "decode_seq_s": 0.0, "context_token_s": 0.0,
            "batch": max(self._beside, 1.0),
        })  # fmt: skip
        if learned is None:
            self.odd += 1
            return None
        self.pace, self.known = learned, True
        return learned


def _near(one: float, other: float) -> bool:
    return max(one, other) <= TOLD * max(min(one, other), 1e-9)
