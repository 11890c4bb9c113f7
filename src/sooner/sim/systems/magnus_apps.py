"""A made-up language-model service for Magnus: six applications whose replies follow their inputs.

The paper's own data are not published. Reply length is slope x user length x style, where the style
shows in the words the user chooses, times noise; so all three groups of Magnus's features matter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sooner.sim.static import Column, Counts
from sooner.workloads.arrivals import poisson


class App(NamedTuple):
    """One application: its instruction, median user length [tokens], reply per user token, style's spread."""

    instruction: str
    median: float
    slope: float
    style: float


APPS = (
    App("Translate the following text from English to German", 90, 1.25, 0.1),
    App("Correct the grammar of the following text and change nothing else", 70, 1.0, 0.05),
    App("Rewrite the following text so that it is polite", 50, 1.1, 0.35),
    App("Translate this function from Java to Python", 180, 0.8, 0.2),
    App("Find the bug in this program and write the repaired program", 200, 1.0, 0.1),
    App("Write a comment that explains what this code does", 150, 0.45, 0.5),
)
STYLES = 3
_WORDS = 40


class Service(NamedTuple):
    """Requests of the service, columns (n,): what they are, what they say, how long the reply is."""

    arrival_time: Column
    app: Counts
    user_len: Counts
    prompt_len: Counts
    output_len: Counts
    user_texts: list[str]

    @property
    def instructions(self) -> list[str]:
        """The instruction of each application."""
        return [app.instruction for app in APPS]


def draw(
    n: int,
    rate: float,
    rng: np.random.Generator,
    *,
    limit: int = 1024,
    noise: float = 0.12,
    drift_after: int | None = None,
    unrelated: bool = False,
) -> Service:
    """Return n requests at `rate` [req/s], applications equally likely.

    From request `drift_after` on, the slopes of the applications are dealt out anew in reverse. With
    `unrelated`, replies are shuffled among all requests: nothing can be predicted.
    """
    app, style = rng.integers(0, len(APPS), n), rng.integers(0, STYLES, n)
    median = np.array([profile.median for profile in APPS])[app]
    user = np.clip(np.rint(median * np.exp(0.6 * rng.standard_normal(n))), 5, limit - 32).astype(np.int64)
    slopes = np.array([profile.slope for profile in APPS])
    slope = slopes[app]
    if drift_after is not None:
        slope = np.where(np.arange(n) < drift_after, slope, slopes[::-1][app])
    spread = np.array([profile.style for profile in APPS])[app]
    reply = user * slope * np.exp(spread * (style - 1) + noise * rng.standard_normal(n))
    if unrelated:
        reply = rng.permutation(reply)
    instruction = np.array([len(profile.instruction.split()) for profile in APPS])[app]
    return Service(
        arrival_time=poisson(n, rate, rng),
        app=app,
        user_len=user,
        prompt_len=user + instruction,
        output_len=np.clip(np.rint(reply), 1, limit).astype(np.int64),
        user_texts=[_text(int(a), int(s), int(u), rng) for a, s, u in zip(app, style, user, strict=True)],
    )


def _text(app: int, style: int, length: int, rng: np.random.Generator) -> str:
    """Words of an application, a third of them of the style."""
    words = rng.integers(0, _WORDS, length)
    styled = rng.random(length) < 1 / 3
    return " ".join(
        f"style{style}w{word % 8}" if is_style else f"app{app}w{word}"
        for word, is_style in zip(words.tolist(), styled.tolist(), strict=True)
    )
