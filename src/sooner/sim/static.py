"""Batch-at-a-time execution: inputs padded to the longest, rows kept until the whole batch ends.

What static batching costs is in two service models: SSJF's line (seconds per token, whatever the
batch) and the bilinear model of SCLS and Magnus (prefill and decode, by batch size and length).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import ConfigError, DataError, Number

Column = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """SSJF's service model: a constant and a slope; no prefill term, no slowdown by batch size."""

    base_s: float = 0.1
    token_s: float = 0.02

    def seconds(self, tokens: Number) -> Number:
        """Return the service time [s] of a reply of `tokens`."""
        return self.base_s + self.token_s * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Bilinear:
    """Prefill `p1 N L + p2 N + p3 L + p4` and decode step `d1 N l + d2 N + d3 l + d4` [s] of N padded rows.

    L is the padded input length and l the cached length at the step [tokens] (SCLS, section 4).
    """

    prefill: tuple[float, float, float, float]
    decode: tuple[float, float, float, float]

    def prefill_s(self, rows: Number, length: Number) -> Number:
        """Return the time of the prefill, which gives the first token [s]."""
        a, b, c, d = self.prefill
        return a * rows * length + b * rows + c * length + d

    def decode_s(self, rows: Number, length: Number, steps: Number) -> Number:
        """Return the time of `steps` decode steps at cached lengths length + 1, ..., length + steps [s]."""
        a, b, c, d = self.decode
        return steps * (b * rows + d) + (a * rows + c) * (steps * length + steps * (steps + 1) / 2)

    def batch_s(self, rows: Number, length: Number, tokens: Number) -> Number:
        """Return the time until each row has `tokens` >= 1 new tokens [s]."""
        return self.prefill_s(rows, length) + self.decode_s(rows, length, np.maximum(tokens - 1, 0))


class Ran(NamedTuple):
    """What running one batch gave.

    `steps` are the tokens made per row, of which `invalid` (over all rows) came after a row's end;
    `pad` are the input tokens added to make rows as long as the longest.
    """

    seconds: float
    steps: int
    valid: int
    invalid: int
    pad: int


def run_batch(cost: Bilinear, inputs: Counts, remaining: Counts, limit: int, slowdown: float = 1.0) -> Ran:
    """Run one static batch for at most `limit` tokens a row; it returns early when every row has ended.

    `inputs` and `remaining` (rows,) are input lengths and the true tokens still to come. `slowdown`
    multiplies the modelled time: the machine's noise. Raises DataError for an empty batch.
    """
    if not (inputs.shape == remaining.shape and inputs.shape[0] and limit >= 1 and remaining.min() >= 1):
        raise DataError(
            f"a batch of {inputs.shape} inputs, {remaining.shape} tokens to come, limit {limit};"
            " allowed: equal columns of at least 1 row, each with at least 1 token, limit >= 1"
        )
    rows, longest = inputs.shape[0], int(inputs.max())
    steps = min(limit, int(remaining.max()))
    valid = int(np.minimum(remaining, steps).sum())
    return Ran(
        seconds=slowdown * float(cost.batch_s(rows, longest, steps)),
        steps=steps,
        valid=valid,
        invalid=rows * steps - valid,
        pad=rows * longest - int(inputs.sum()),
    )


class Fit(NamedTuple):
    """A cost model fitted from profiled batches, and its mean absolute error [%] on points held out."""

    cost: Bilinear
    prefill_error_pct: float
    decode_error_pct: float


def profile_and_fit(
    truth: Bilinear,
    rng: np.random.Generator,
    *,
    noise: float,
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 96),
    lengths: tuple[int, ...] = (16, 64, 128, 256, 512, 1024),
    repeats: int = 3,
) -> Fit:
    """Time prefills and decode steps on a grid of a machine, and fit both planes by least squares.

    A measurement is the truth times a factor of standard deviation `noise`; each error is weighted
    by the measured time, so small batches count as much as large ones. Half of the repeats' worth
    of points, drawn anew, judge the fit.
    """
    if noise < 0 or repeats < 1:
        raise ConfigError(f"noise={noise!r}, repeats={repeats!r}, allowed: noise >= 0, repeats >= 1")
    n, length = (np.tile(axis.ravel(), repeats).astype(np.float64) for axis in np.meshgrid(rows, lengths))
    design = np.stack([n * length, n, length, np.ones_like(n)], axis=1)
    found, errors = [], []
    for exact in (np.asarray(truth.prefill_s(n, length)), np.asarray(truth.decode_s(n, length - 1, 1.0))):
        measured = exact * _factors(n.shape[0], noise, rng)
        found.append(np.linalg.lstsq(design / measured[:, None], np.ones_like(n), rcond=None)[0])
        again = exact * _factors(n.shape[0], noise, rng)
        errors.append(100 * float(np.mean(np.abs(design @ found[-1] / again - 1))))
    prefill, decode = ((float(p[0]), float(p[1]), float(p[2]), float(p[3])) for p in found)
    return Fit(Bilinear(prefill=prefill, decode=decode), *errors)


def _factors(n: int, noise: float, rng: np.random.Generator) -> Column:
    return np.exp(noise * rng.standard_normal(n) - noise**2 / 2)
