"""From a trace to a workload: which requests, when, and what a prefix cache holds of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sooner.core import ConfigError, DataError
from sooner.workloads.build import Shape, build
from sooner.workloads.columns import Workload, by_arrival
from sooner.workloads.prefix import affinity, cached_tokens
from sooner.workloads.traces import Trace

TRACE = Trace(
    prompt_len=np.array([10.0, 20.0, 30.0, 40.0]),
    output_len=np.array([1.0, 2.0, 3.0, 4.0]),
    arrival_time=np.array([0.0, 1.0, 4.0, 9.0]),
    deadline=np.array([5.0, 6.0, 9.0, np.inf]),
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_without_a_rate_the_trace_is_replayed() -> None:
    built = build(TRACE, Shape(requests=3, time_scale=2.0), rng())
    assert built.workload.arrival_time.tolist() == [0.0, 2.0, 8.0]
    assert built.workload.output_len.tolist() == [1, 2, 3]
    assert built.workload.deadline.tolist() == [5.0, 7.0, 13.0]  # as long after the arrival as recorded
    assert built.rows.tolist() == [0, 1, 2]


def test_with_a_rate_requests_are_drawn() -> None:
    few = build(TRACE, Shape(rate=2.0), rng())
    assert sorted(few.rows.tolist()) == [0, 1, 2, 3]
    many = build(
        TRACE, Shape(requests=20_000, rate=2.0, cv=3.0, cancel_after=5.0, deadline=7.0), rng()
    ).workload
    gaps = np.diff(many.arrival_time)
    assert gaps.mean() == pytest.approx(0.5, rel=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.1)
    assert set(many.output_len.tolist()) == {1, 2, 3, 4}
    assert (many.cancel_time == many.arrival_time + 5.0).all()
    assert (many.deadline == many.arrival_time + 7.0).all()
    assert build(TRACE, Shape(requests=9, burst=True), rng()).workload.arrival_time.tolist() == [0.0] * 9


def test_tenants_and_classes_are_recorded_or_drawn() -> None:
    recorded = dataclasses.replace(TRACE, tenant=np.array([7.0, 7, 9, 9]), level=np.array([0.0, 1, 0, 1]))
    replayed = build(recorded, Shape(), rng()).workload
    assert replayed.tenant.tolist() == [7, 7, 9, 9]
    assert replayed.level.tolist() == [0, 1, 0, 1]
    shape = Shape(requests=20_000, rate=2.0, tenants=(0.9, 0.1), classes=((0.2, 2.0), (0.8, np.inf)))
    drawn = build(recorded, shape, rng()).workload
    assert drawn.tenant.mean() == pytest.approx(0.1, abs=0.01)
    assert drawn.level.mean() == pytest.approx(0.8, abs=0.01)
    after = drawn.deadline - drawn.arrival_time
    assert np.allclose(after[drawn.level == 0], 2.0)
    assert np.isinf(after[drawn.level == 1]).all()
    plain = build(recorded, dataclasses.replace(shape, tenants=(), classes=()), rng()).workload
    assert (plain.arrival_time == drawn.arrival_time).all()  # whose requests they are changes no draw of them
    assert (drawn.take(np.arange(5)).level == drawn.level[:5]).all()


@pytest.mark.parametrize(
    ("trace", "shape", "says"),
    [
        (TRACE, {"tenants": (0.5, 0.4)}, "with a sum of 1"),
        (TRACE, {"classes": ((1.5, 1.0), (-0.5, 1.0))}, "with a sum of 1"),
        (TRACE, {"classes": ((1.0, -1.0),)}, "seconds >= 0"),
        (TRACE, {"classes": ((1.0, 1.0),), "deadline": 2.0}, "one of the two"),
        (Trace(prompt_len=np.ones(2), output_len=np.ones(2)), {}, "no arrival times"),
        (TRACE, {"requests": 5}, "the trace has 4"),
        (TRACE, {"prefix_cache": 100}, "shared prefixes"),
        (TRACE, {"requests": 0}, "at least 1"),
        (TRACE, {"burst": True, "rate": 1.0}, "one of the two"),
        (TRACE, {"cancel_after": -1.0}, "seconds >= 0"),
        (TRACE, {"prefix_cache": -1}, "tokens >= 0"),
        (TRACE, {"rate": 0.0}, "rate"),
    ],
)
def test_what_cannot_be_is_said(trace: Trace, shape: dict[str, float], says: str) -> None:
    with pytest.raises((ConfigError, DataError), match=says):
        build(trace, Shape(**shape), rng())  # type: ignore[arg-type]


def test_a_prefix_cache_finds_what_came_before() -> None:
    blocks = [np.array(ids) for ids in ([1, 2, 3], [1, 2, 4], [5], [1, 2, 3], [9, 2])]
    prompts = np.array([40, 40, 10, 36, 20])
    assert cached_tokens(blocks, prompts, 12, 10_000).tolist() == [0, 24, 0, 35, 0]
    # Two blocks of room: the last two seen are kept, so a run from the start is lost.
    assert cached_tokens(blocks, prompts, 12, 24).tolist() == [0, 0, 0, 0, 0]


def test_affinity_names_conversations_not_system_prompts() -> None:
    blocks = [np.array([0, 10 + i // 2, 100 + i]) for i in range(400)] + [
        np.array([0]),
        np.array([], dtype=int),
    ]
    named = affinity(blocks)
    assert named[0] == named[1] == 10
    assert named[2] == 11
    assert named[-2:].tolist() == [0, -1]


def test_a_workload_checks_its_columns() -> None:
    load = by_arrival([5.0, 4.0], [1, 2], [3, 4])
    assert load.arrival_time.tolist() == [0.0, 1.0]
    assert load.id.tolist() == [1, 0]
    assert load.take([1]).output_len.tolist() == [3]
    assert load.at([0.0, 9.0]).arrival_time.tolist() == [0.0, 9.0]
    good = {
        "arrival_time": np.array([0.0, 1.0]),
        "prompt_len": np.array([3, 3]),
        "output_len": np.array([1, 1]),
    }
    for name, bad, says in (
        ("arrival_time", np.array([1.0, 0.0]), "never fall"),
        ("prompt_len", np.array([0, 3]), "at least 1 token"),
        ("output_len", np.array([1]), "shape"),
        ("cached_len", np.array([3, 0]), "below prompt_len"),
    ):
        with pytest.raises(DataError, match=says):
            Workload(**{**good, name: bad})
