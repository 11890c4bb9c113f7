"""What every policy must do, as a list of checks that your own policy can run too:

    @pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
    def test_my_policy(check):
        check(policies.get("my_module:my_policy"))

Each check takes a policy and raises AssertionError with what is broken. `sooner.sim.conformance` has
those that need the simulator.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from sooner.core import View
from sooner.policies.plain import scalar_key
from sooner.policies.registry import MOVING, Policy

Check = Callable[[Policy], None]
CHECKS: list[Check] = []
ALIKE = 1e-9
"""Relative difference of two keys that count as equal."""


def _check(check: Check) -> Check:
    """Add a check, in which NumPy does not warn of infinities: an infinite key is a key."""

    @functools.wraps(check)
    def calm(policy: Policy) -> None:
        with np.errstate(all="ignore"):
            check(policy)

    CHECKS.append(calm)
    return calm


def views(n: int = 300) -> list[View]:
    """Return n requests of every kind: without a prompt, a prediction or a deadline, tiny and huge."""
    rng = np.random.default_rng(0)
    tokens = [0.0, 1.0, 16.0, 700.0, 1e5]
    choices: dict[str, list[float]] = {
        "arrival_time": [0.0, 1.0, 100.0, 1e6],
        "prompt_len": tokens,
        "predicted_len": tokens,
        "score": [-1e6, -1.0, 0.0, 2.5, 1e6],
        "attained": tokens,
        "cached_len": tokens,
        "deadline": [0.0, 101.0, 1e6, math.inf],
        "pressure": [0.0, 0.01, 10.0],
        "level": [0.0, 1.0, 9.0],
        "counter": [0.0, 10.0, 1e7],
        "work": [0.0, 1e-6, 0.3, 1e4],
        "usual_wait": [1e-3, 2.0, 1e4],
        "usual_work": [1e-9, 0.1, 1e3],
    }
    return [View(**{name: float(rng.choice(values)) for name, values in choices.items()}) for _ in range(n)]


def times(view: View) -> Iterator[float]:
    """Yield times at which a request may be looked at: at once, soon, late."""
    for waited in (0.0, 0.25, 1e4):
        yield float(view.arrival_time) + waited


@_check
def gives_columns_what_it_gives_numbers(policy: Policy) -> None:
    """A column of n requests gets the keys that each of them gets alone."""
    some = views()
    now = max(float(view.arrival_time) for view in some) + 5.0
    column = View(*(np.array(field, dtype=np.float64) for field in zip(*some, strict=True)))
    keys = np.broadcast_to(policy.key(column, now), (len(some),))
    np.testing.assert_allclose(keys, [float(policy.key(view, now)) for view in some], rtol=ALIKE)


@_check
def is_always_a_number(policy: Policy) -> None:
    """No request, however odd, has NaN for a key; infinity is allowed and comes last."""
    for view in views():
        for now in times(view):
            assert not np.isnan(policy.key(view, now)), f"NaN for {view} at {now}"


@_check
def is_the_same_when_asked_again(policy: Policy) -> None:
    """A policy is a pure function: the same request at the same time has the same key."""
    some = views()
    first = [float(policy.key(view, 1e6)) for view in some]
    for view in reversed(some):
        policy.key(view, 1e6)
    assert [float(policy.key(view, 1e6)) for view in some] == first, "the second key differs from the first"


@_check
def hangs_on_what_it_reads(policy: Policy) -> None:
    """A field that is not in `reads` does not change the key: read fields by name, `q.prompt_len`."""
    some = views()
    for field in set(View._fields) - policy.reads:
        for view, other in itertools.pairwise(some):
            moved = view._replace(**{field: getattr(other, field)})
            now = float(view.arrival_time) + 1.0
            same = float(policy.key(view, now)) == float(policy.key(moved, now))
            assert same, (
                f"the key hangs on {field!r}, which is not among what it reads: {sorted(policy.reads)}"
            )


@_check
def keeps_its_key_where_it_says_so(policy: Policy) -> None:
    """`timeless`: the key does not hang on `now`; `static`: nor on anything that changes while one waits."""
    if not policy.timeless:
        return
    for view in views():
        keys = {float(policy.key(view, now)) for now in times(view)}
        assert len(keys) == 1, f"said to be timeless, but has keys {sorted(keys)} for {view}"
    moving = MOVING | {"cached_len"} if policy.static else frozenset({"counter"})
    changing = policy.reads & moving
    assert not changing, f"said to keep its key, but reads {sorted(changing)}"


@_check
def is_a_line_where_it_says_so(policy: Policy) -> None:
    """`linear`: the key of a waiting request is a straight line in `now`."""
    if not policy.linear:
        return
    for view in views():
        start = float(view.arrival_time)
        first, middle, last = (float(policy.key(view, start + after)) for after in (0.0, 2.0, 8.0))
        assert math.isclose(middle, first + 0.25 * (last - first), rel_tol=1e-6, abs_tol=1e-6), f"at {view}"


@_check
def is_the_same_without_numpy(policy: Policy) -> None:
    """The form in which live hosts ask for one key gives the same key."""
    plain = scalar_key(policy)
    for view in views():
        for now in times(view):
            found, expected = float(plain(view, now)), float(policy.key(view, now))
            assert math.isclose(found, expected, rel_tol=ALIKE), f"{found}, expected {expected} for {view}"


@_check
def takes_its_parameters(policy: Policy) -> None:
    """Every parameter at 0, at twice its default and at a great number still gives keys."""
    for name, default in policy.parameters.items():
        for value in (0.0, 2.0 * default, 1e6):
            other = replace(policy, parameters={**policy.parameters, name: value})
            for view in views(50):
                key = other.key(view, float(view.arrival_time) + 1.0)
                assert not np.isnan(key), f"NaN with {name}={value} for {view}"
