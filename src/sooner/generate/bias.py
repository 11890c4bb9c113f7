"""What a goal did to the lengths: what was kept beside an estimate for all, and weights that correct means.

What comes first is short. Three things tell how short: replies that were ended early were at least so long;
the controls, drawn at random, were run to their end; and what was predicted of each prompt links those that
were kept to those that were not. Within a tenth of the predicted lengths the weights are Kaplan and Meier's
(1958): each finished sample also stands for those that were ended before it. The estimate for all is a
regression of log lengths on the predicted ones with censored rows (`sooner.learning.censoring`) and its
residuals' own law, no normal one (Buckley and James, 1979); where the controls contradict it, they decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.generate.course import TENTHS
from sooner.learning.censoring import beyond

Column = NDArray[np.float64]
Mask = NDArray[np.bool_]

_ROUNDS = 25
_GRID = 300
_ENOUGH = 30
_MOST_GROUPS = 20
_CONTRADICTED = 2.0  # standard errors


HEADLINE = ("kept_mean_len", "estimated_mean_len", "control_mean_len", "weights_variance")
"""What every report has, None where nothing finished."""


class SampleColumns(NamedTuple):
    """Columns (n,) of a job's samples.

    `length` [tokens] is whole where `finished`, and what there was where `ended` early; `kept` and
    `control` say which count as such. `expected` [log tokens] is what was predicted before anything ran,
    `tenth` which tenth of that, `group` which group; `limit` [tokens] cuts replies off.
    """

    length: Column
    finished: Mask
    ended: Mask
    kept: Mask
    control: Mask
    expected: Column
    tenth: NDArray[np.int64]
    group: NDArray[np.int64]
    limit: Column


class Estimate(NamedTuple):
    """Expected lengths (n,) of all samples, their mean, its standard error and what it rests on."""

    lengths: Column
    mean: float
    error: float
    basis: str


def kaplan_meier(length: Column, finished: Mask) -> Column:
    """Return the weight (n,) of each row: its jump of Kaplan and Meier's curve, 0 where not finished."""
    n = length.shape[0]
    order = np.lexsort((~finished, length))
    at_risk = n - np.arange(n)
    left = np.cumprod(np.where(finished[order], (at_risk - 1) / at_risk, 1.0))
    weights = np.zeros(n)
    weights[order] = np.concatenate([[1.0], left[:-1]]) - left
    return weights


def weights(samples: SampleColumns) -> Column:
    """Return what each finished sample counts (n,), 0 for others; in the mean 1 over the finished.

    A tenth of which nothing finished is missing from every mean.
    """
    found = np.zeros(samples.length.shape[0])
    known = samples.finished | samples.ended
    for tenth in range(TENTHS):
        inside = samples.tenth == tenth
        rows = np.flatnonzero(inside & known)
        if rows.size:
            jumps = kaplan_meier(samples.length[rows], samples.finished[rows])
            found[rows] = jumps * inside.sum() / max(float(jumps.sum()), 1e-12)
    mean = float(found[samples.finished].mean()) if samples.finished.any() else 1.0
    return found / mean


def estimate(samples: SampleColumns) -> Estimate:
    """Return what all samples would be in the mean, had they been run to their end."""
    known = samples.finished | samples.ended
    value = np.log(np.maximum(samples.length[known], 0.5))
    whole = samples.finished[known]
    slope, level, _ = _regression(samples.expected[known], value, whole)
    left = value - level - slope * samples.expected[known]
    law = kaplan_meier(left, whole)
    order = np.argsort(left)
    heights = np.cumsum(law[order]) / max(float(law.sum()), 1e-12)
    noise = np.interp((np.arange(_GRID) + 0.5) / _GRID, heights, left[order])
    lengths = _means(level + slope * samples.expected, noise, samples.limit)
    mean = float(lengths.mean())
    control = samples.control & samples.finished
    apart = samples.length[control] - lengths[control]
    if apart.size < _ENOUGH:
        return Estimate(lengths, mean, math.nan, "prediction")
    error = float(apart.std(ddof=1)) / math.sqrt(apart.size)
    if abs(float(apart.mean())) > _CONTRADICTED * error:
        return Estimate(lengths, mean + float(apart.mean()), error, "controls")
    return Estimate(lengths, mean, error, "prediction")


def _regression(x: Column, value: Column, whole: Mask) -> tuple[float, float, float]:
    """Return slope, level and spread of `value` over `x`; rows that are not `whole` are lower bounds."""
    told = float(x.std()) > 1e-9
    slope, level, spread = (1.0 if told else 0.0), 0.0, 1.0
    filled = value.copy()
    square = np.zeros(value.shape[0])
    for _ in range(_ROUNDS):
        base = level + slope * x
        square[whole] = (value[whole] - base[whole]) ** 2
        for row in np.flatnonzero(~whole).tolist():
            filled[row], square[row] = beyond(float(value[row]), float(base[row]), spread)
        if told:
            slope = float(np.cov(x, filled, bias=True)[0, 1] / x.var())
        level = float(filled.mean()) - slope * float(x.mean())
        spread = max(math.sqrt(float(square.mean())), 1e-3)
    return slope, level, spread


def _means(base: Column, noise: Column, limit: Column) -> Column:
    """Return the mean length at each base, over the law of the noise, cut at the limit."""
    places = np.linspace(float(base.min()), float(base.max()), _GRID)
    result = np.empty(base.shape[0])
    for cap in np.unique(limit):
        rows = limit == cap
        curve = np.minimum(np.exp(places[:, None] + noise[None, :]), cap).mean(axis=1)
        result[rows] = np.interp(base[rows], places, curve)
    return result


def report(samples: SampleColumns, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return the account of a goal that selects: means, errors, the weights' variance, tenths, groups."""
    made, weight = estimate(samples), weights(samples)
    finished, kept = samples.finished, samples.kept
    control = samples.control & finished
    own = samples.length[control]
    counted = weight[finished]
    corrected = float((weight * samples.length)[finished].sum() / max(counted.sum(), 1e-12))
    at_limit = finished & (samples.length >= samples.limit)
    return {
        "kept_mean_len": _mean(samples.length[kept]),
        "estimated_mean_len": _round(made.mean),
        "estimated_mean_se": _round(made.error),
        "estimate_rests_on": made.basis,
        "control_mean_len": _mean(own),
        "control_mean_se": _round(float(own.std(ddof=1)) / math.sqrt(own.size)) if own.size > 1 else None,
        "controls": int(own.size),
        "corrected_mean_len": _round(corrected),
        "weights_variance": _round(float(counted.var()) if counted.size else math.nan),
        "cut_share": _round(float(at_limit[kept].mean()) if kept.any() else math.nan, 4),
        **_parts(samples, made, names),
    }


def unbiased(samples: SampleColumns, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return the account of a goal that does not select: what was kept stands for all by itself."""
    kept = samples.length[samples.kept]
    mean, n = _mean(kept), samples.length.shape[0]
    drawn = 1.0 - kept.size / n
    error = float(kept.std(ddof=1)) / math.sqrt(kept.size) * math.sqrt(drawn) if kept.size > 1 else math.nan
    made = Estimate(np.full(n, float(kept.mean()) if kept.size else math.nan), 0.0, error, "")
    at_limit = samples.length[samples.kept] >= samples.limit[samples.kept]
    return {
        "kept_mean_len": mean, "estimated_mean_len": mean, "estimated_mean_se": _round(error),
        "estimate_rests_on": "all that was kept", "control_mean_len": None, "control_mean_se": None,
        "controls": 0, "corrected_mean_len": mean, "weights_variance": 0.0 if kept.size else None,
        "cut_share": _round(float(at_limit.mean()) if kept.size else math.nan, 4),
        **_parts(samples, made, names),
    }  # fmt: skip


def _parts(samples: SampleColumns, made: Estimate, names: Sequence[str]) -> dict[str, Any]:
    """The account of each tenth of the predicted lengths, and of the largest groups."""
    sizes = np.bincount(samples.group, minlength=len(names))
    largest = sorted(range(len(names)), key=lambda at: -int(sizes[at]))[:_MOST_GROUPS]
    return {
        "tenths": [_part(samples, made, samples.tenth == tenth) for tenth in range(TENTHS)],
        "groups": [{"group": names[at], **_part(samples, made, samples.group == at)} for at in largest],
    }


def _part(samples: SampleColumns, made: Estimate, inside: Mask) -> dict[str, Any]:
    """What was kept of a part of the samples, and what all of it would be."""
    return {
        "samples": int(inside.sum()),
        "kept": int((inside & samples.kept).sum()),
        "kept_mean_len": _mean(samples.length[inside & samples.kept]),
        "estimated_mean_len": _mean(made.lengths[inside]),
        "control_mean_len": _mean(samples.length[inside & samples.control & samples.finished]),
    }


def _mean(values: Column) -> float | None:
    return _round(float(values.mean())) if values.size else None


def _round(value: float, digits: int = 2) -> float | None:
    return round(value, digits) if math.isfinite(value) else None
