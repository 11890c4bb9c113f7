"""What a user may set: `--additional-config '{"sooner": {...}}'` and `SOONER_VLLM_*` variables."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sooner import config, policies
from sooner.core import ConfigError
from sooner.ordering.order import TELLS
from sooner.ordering.process import check_shadow

ENVIRONMENT = "SOONER_VLLM"

CLIENTS = frozenset({"deadline", "level"})
"""Fields of `View` that only a client can tell here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """Every setting of the plugin, checked when built.

    `parameters` are the policy's own (`beta`, `follow`, ...); they may also be given beside `policy`.
    `ranker` is a folder made by `sooner train`, "default" for the one in the package, "module:name"
    for your own, or "" for none. With `learn` the order is learned from how replies end, beside the ranker
    or alone; it is kept beside `state`. `shadow` is a second ranker, or "learner" for what is learned alone:
    it is asked too, and compared, and moves nobody; so is `shadow_policy`, a second policy with its
    `shadow_parameters`. `scorer_socket` names a scorer shared between engines; without it
    each engine starts its own. `scorer_timeout` [s] is how long a score may take before the request
    stays at its neutral place. `client_scores` lets requests bring their own numbers.
    `second_look` sends a request back that was admitted before its score came and now ranks behind
    one that waits: once, while it is young. `kv_victims` takes the worst-ranked running request when
    the KV cache is full, where vLLM takes the last admitted. `preemption` lets a waiting request
    displace a running one that is expected to need at least `preemption_gain` times its tokens, each
    at most `max_preemptions` times.
    `trace` is a JSONL file of finished requests; `<trace>.steps` beside it has one line per step.
    `metrics_dir` is where the engine leaves its counters for the API server's `/metrics`.
    `state` is a file in which what was learned of waits and of the engine's pace is kept over restarts:
    "auto" for one a model and engine in the cache folder, "" for none.
    """

    policy: str = policies.DEFAULT
    parameters: Mapping[str, float] = field(default_factory=dict)
    ranker: str = "default"
    shadow: str = ""
    shadow_policy: str = ""
    shadow_parameters: Mapping[str, float] = field(default_factory=dict)
    scorer_socket: str = ""
    learn: bool = True
    scorer_timeout: float = 5.0
    client_scores: bool = True
    starvation_guard: bool = False
    starvation_threshold: int = 200
    starvation_quantum: int = 10
    second_look: bool = True
    kv_victims: bool = True
    preemption: bool = False
    preemption_gain: float = 2.0
    max_preemptions: int = 2
    trace: str = ""
    metrics_dir: str = ""
    state: str = "auto"

    def __post_init__(self) -> None:
        self.chosen_policy()
        check_shadow("sooner", self.shadow, self.ranker, learn=self.learn)
        if self.shadow_policy:
            self.shadowing_policy()
            if (self.shadow_policy, self.shadow_parameters) == (self.policy, self.parameters):
                raise ConfigError(
                    f"sooner.shadow_policy={self.shadow_policy!r}, allowed: another than policy"
                )
        ranges = (
            ("scorer_timeout", self.scorer_timeout, self.scorer_timeout > 0, "> 0 [s]"),
            ("starvation_threshold", self.starvation_threshold, self.starvation_threshold >= 1, ">= 1"),
            ("starvation_quantum", self.starvation_quantum, self.starvation_quantum >= 1, ">= 1"),
            ("preemption_gain", self.preemption_gain, self.preemption_gain >= 1, ">= 1"),
            ("max_preemptions", self.max_preemptions, self.max_preemptions >= 0, ">= 0"),
        )
        for name, value, good, allowed in ranges:
            if not good:
                raise ConfigError(f"sooner.{name}={value!r}, allowed: {allowed}")

    def state_path(self, vllm_config: Any) -> Path:
        """Return the file of `state` for one engine."""
        from sooner.vllm import compat

        if self.state != "auto":
            return compat.of_engine(Path(self.state), vllm_config)
        model = hashlib.sha256(str(vllm_config.model_config.model).encode()).hexdigest()[:16]
        return config.cache_folder() / "vllm" / f"{model}-{compat.engine_index(vllm_config)}.json"

    def learned_path(self, vllm_config: Any) -> Path | str | None:
        """Return where what is learned is kept, "" for nowhere, None where nothing is learned.

        Engines that share a scorer share it.
        """
        if not self.learn:
            return None
        if not self.state:
            return ""
        if self.scorer_socket:
            return Path(f"{self.scorer_socket}.learned.npz")
        return self.state_path(vllm_config).with_suffix(".learned.npz")

    def chosen_policy(self) -> policies.Policy:
        """Return the policy with its parameters bound. Raises ConfigError where it asks what is not told."""
        return self._bound(policies.get(self.policy, **self.parameters))

    def shadowing_policy(self) -> policies.Policy:
        """Return the policy that watches, bound alike. Raises UnknownName where none is named."""
        return self._bound(policies.get(self.shadow_policy, **self.shadow_parameters))

    def _bound(self, policy: policies.Policy) -> policies.Policy:
        host = policies.Host("the vLLM plugin", TELLS)
        if not self.client_scores:
            host = policies.Host("the vLLM plugin without client_scores", TELLS - CLIENTS)
        return host.bind(policy)


def load(additional_config: Any = None) -> VllmSettings:
    """Return the settings of this process; what `additional_config` says wins over the environment.

    Raises UnknownName for a key that is no setting and no parameter of the policy, and ConfigError
    for a value that is not allowed.
    """
    given = additional_config.get("sooner", {}) if isinstance(additional_config, Mapping) else {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"additional_config['sooner']={given!r}, allowed: an object of settings")
    values = {**config.from_environment(VllmSettings, ENVIRONMENT), **given}
    return config.build(VllmSettings, _with_parameters(values), "sooner")


def _with_parameters(values: dict[str, Any]) -> dict[str, Any]:
    """Move the chosen policy's own parameters from beside `policy` into `parameters`."""
    name = values.get("policy", policies.DEFAULT)
    own = policies.get(name).parameters if isinstance(name, str) else {}
    fields = {f.name for f in dataclasses.fields(VllmSettings)}
    beside = {key: value for key, value in values.items() if key in own and key not in fields}
    if not beside:
        return values
    rest = {key: value for key, value in values.items() if key not in beside}
    return {**rest, "parameters": {**rest.get("parameters", {}), **beside}}
