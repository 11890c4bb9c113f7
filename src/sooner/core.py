"""The vocabulary every other module speaks, and the tree of errors.

    SoonerError
    ├── ConfigError        a setting, flag or environment variable is wrong          (also ValueError)
    │   └── UnknownName    a name that is not in a registry; says the nearest one
    ├── DataError          a workload, log or training file is wrong                 (also ValueError)
    ├── RankerFileError    a saved ranker is damaged or from another version         (also ValueError)
    ├── NotFittedError     a ranker was asked before it was fitted                   (also ValueError)
    ├── MissingExtra       an optional dependency is not installed                   (also ImportError)
    └── EngineError        a server or engine under our control failed               (also RuntimeError)

A part may have errors of its own that say which; each stands below one of these, as a test holds.
Times are seconds, lengths are tokens, everywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Number: TypeAlias = float | NDArray[np.float64]
"""A scalar, or a column of shape (n,): every formula of `policies` and `metrics` takes either."""


class Prediction(NamedTuple):
    """What a ranker says of one request.

    `score` is ordinal: larger means a longer output, and it has no unit. `predicted_len` is in
    tokens, or None where the ranker was never calibrated. The two are never mixed.
    """

    score: float
    predicted_len: float | None = None


class View(NamedTuple):
    """All a policy may know of one request (or, with columns, of n requests). Never `output_len`.

    `pressure` [s/token] is the host's recent mean wait over its recent mean predicted length, read
    once when the request arrives; 0 where nobody waits or the host does not measure it. `level` is
    the request's class, 0 the most urgent. `counter` [tokens of input] is what its tenant was served
    over the tenant's weight, as the host counts it now; 0 where the host does not count.

    `work` [s] is what the engine is expected to spend on it (see `sooner.work`). `usual_wait` and
    `usual_work` [s], above 0, are what the host has learned over thousands of requests; they are
    the same for all that wait, and move seldom.
    """

    arrival_time: Number
    prompt_len: Number = 0.0
    predicted_len: Number = 0.0
    score: Number = 0.0
    attained: Number = 0.0
    cached_len: Number = 0.0
    deadline: Number = float("inf")
    pressure: Number = 0.0
    level: Number = 0.0
    counter: Number = 0.0
    work: Number = 0.0
    usual_wait: Number = 1.0
    usual_work: Number = 1.0


class Completed(NamedTuple):
    """One finished request, or n of them as columns of shape (n,). See `docs/metrics.md`.

    `start_time` is when the engine first ran it; NaN for a time nobody observed. The `*_step`
    fields count engine steps and are -1 where the host has none. `truncated` is 1 where the reply
    ended at its token limit instead of by itself.
    """

    id: Number
    arrival_time: Number
    first_token_time: Number
    finish_time: Number
    prompt_len: Number
    output_len: Number
    start_time: Number = float("nan")
    preemptions: Number = 0
    truncated: Number = 0
    arrival_step: Number = -1
    first_token_step: Number = -1
    finish_step: Number = -1


def columns(records: Iterable[Completed]) -> Completed:
    """Turn finished requests into one `Completed` whose fields are float64 columns of shape (n,)."""
    table = np.array(list(records), dtype=np.float64).reshape(-1, len(Completed._fields))
    return Completed(*table.T)


class SoonerError(Exception):
    """Everything this package raises on purpose."""


class ConfigError(SoonerError, ValueError):
    """A setting, flag or environment variable is wrong."""


class UnknownName(ConfigError):
    """A name that is not in a registry."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        nearest = difflib.get_close_matches(name, known, n=1)
        guess = f"; did you mean {nearest[0]!r}?" if nearest else ";"
        super().__init__(f"unknown {kind} {name!r}{guess} (known: {', '.join(known)})")


class DataError(SoonerError, ValueError):
    """A workload, log or training file is wrong."""


class RankerFileError(SoonerError, ValueError):
    """A saved ranker is damaged, or from a version this one cannot read."""


class NotFittedError(SoonerError, ValueError):
    """A ranker was asked to predict before it was fitted."""


class MissingExtra(SoonerError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package!r} is not installed; run: pip install 'sooner[{extra}]'")


class EngineError(SoonerError, RuntimeError):
    """A server or engine under our control failed."""
