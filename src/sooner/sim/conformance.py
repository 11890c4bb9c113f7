"""The checks of a policy that need the simulator; used as those of `sooner.policies.conformance` are."""

from __future__ import annotations

import math

import numpy as np

from sooner.policies.conformance import ALIKE, Check, times, views
from sooner.policies.registry import Policy
from sooner.sim.compiled import bind
from sooner.sim.cost import Engine
from sooner.sim.engine import simulate
from sooner.workloads.columns import Workload


def is_the_same_compiled(policy: Policy) -> None:
    """The compiled key is the key. Raises ConfigError where it cannot be compiled, and says why."""
    compiled = bind.compiled(policy)
    ask = getattr(compiled, "ctypes", compiled)
    for view in views(100):
        for now in times(view):
            found, expected = float(ask(*map(float, view), now)), float(policy.key(view, now))
            assert math.isclose(found, expected, rel_tol=ALIKE), f"{found}, expected {expected} for {view}"


def serves_everyone(policy: Policy) -> None:
    """A load that ends is served to its end, with and without a queue."""
    n, rng = 400, np.random.default_rng(0)
    workload = Workload(
        arrival_time=np.sort(rng.uniform(0.0, 20.0, n)),
        prompt_len=rng.integers(1, 200, n),
        output_len=rng.integers(1, 100, n),
    )
    engine = Engine(max_num_seqs=4, max_num_batched_tokens=512, num_blocks=200)
    predicted = np.asarray(workload.output_len, dtype=np.float64)
    outcome = simulate(workload, engine, policy, predicted_len=predicted)
    assert np.size(outcome.completed.id) == n, f"{np.size(outcome.completed.id)} of {n} were served"


CHECKS: list[Check] = [is_the_same_compiled, serves_everyone]
