"""How a run is served: what is chosen beyond the engine's own limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from sooner.core import ConfigError

ROUTERS = {
    "round-robin": 0,
    "least-requests": 1,
    "least-work": 2,
    "prefix-affinity": 3,
    "max-min": 4,
    "vllm-dp": 5,
    "least-tokens": 6,
    "free-first": 7,
}
"""`least-work` goes where expected work [s], the request's own there included, is least; `max-min` (SCLS's
rule) counts predicted tokens outstanding and the time they take there, `least-tokens` the tokens alone;
`vllm-dp` is how vLLM balances its data-parallel replicas: a waiting request counts as four running ones;
`free-first` is `least-work` among those with a free slot, where one has any."""

MULTIPLE = 10**6
"""The least common multiple of tenants' weights, at most: counters are whole numbers of its parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How batches are formed, beyond the engine's own limits.

    `iteration_level` reorders running and waiting requests at every iteration, as vllm-ltr does;
    else the policy orders admissions and KV victims only, as vLLM V1 does; None: where the policy
    is meant to displace. `swap` moves evicted KV to the host instead of recomputing it (iteration
    level only). `backfill` lets later requests pass a head that does not fit. `guard` [steps] is
    the starvation guard's threshold, 0 for none, and `quantum` [steps] how long it promotes.
    `predict_s` is charged for each prediction, before the request is seen, or, with
    `predict_blocks`, to the engine itself. `weights` are tenants' shares under `vtc`, whole numbers,
    1 for those who are not in it.
    """

    iteration_level: bool | None = None
    swap: bool = False
    backfill: bool = False
    guard: int = 0
    quantum: int = 10
    predict_s: float = 0.0
    predict_blocks: bool = False
    weights: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.guard < 0 or self.quantum < 1 or self.predict_s < 0:
            raise ConfigError(
                f"guard={self.guard!r}, quantum={self.quantum!r}, predict_s={self.predict_s!r}; "
                "allowed: guard >= 0, quantum >= 1 [steps], predict_s >= 0 [s]"
            )
        weights = self.weights.values()
        if any(weight < 1 for weight in weights) or math.lcm(*weights) > MULTIPLE:
            raise ConfigError(
                f"weights={dict(self.weights)}, allowed: whole numbers >= 1, a common multiple <= {MULTIPLE}"
            )
