"""Ray Serve LLM with our scheduler in every replica."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sooner.core import ConfigError
from sooner.ray.limits import SLOTS, limits
from sooner.vllm import settings as plugin

if TYPE_CHECKING:
    from ray.serve.llm import LLMConfig

logger = logging.getLogger("sooner.ray")

SCHEDULER = "sooner.vllm.Scheduler"


def llm_config(config: LLMConfig, **settings: Any) -> LLMConfig:
    """Return a Ray Serve LLM configuration whose replicas run our scheduler, under limits that let it order.

    `settings` are the plugin's (`sooner.vllm.settings.VllmSettings`) and win over those in the configuration.
    The replicas of a node share one scorer. A limit that would make requests wait in Ray's router is raised,
    with a warning; see `sooner.ray.limits`. Raises ConfigError where another scheduler is asked for, and
    UnknownName for a setting there is not.
    """
    chosen = {name: getattr(config, name) for name in config.model_fields_set}
    engine = with_scheduler(chosen.get("engine_kwargs", {}), settings)
    found = limits(chosen.get("deployment_config", {}), engine.get("max_num_seqs", SLOTS))
    for note in found.notes:
        logger.warning("%s: %s", config.model_id, note)
    return type(config)(**{**chosen, "engine_kwargs": engine, "deployment_config": found.options})


def with_scheduler(engine: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return an engine's arguments with our scheduler and its settings. Raises ConfigError, UnknownName."""
    other = engine.get("scheduler_cls", SCHEDULER)
    if other != SCHEDULER:
        raise ConfigError(f"scheduler_cls={other!r}, allowed: none, or {SCHEDULER!r}")
    additional = engine.get("additional_config") or {}
    own = {"scorer_socket": shared_socket(), **additional.get("sooner", {}), **settings}
    plugin.load({"sooner": own})
    return {**engine, "scheduler_cls": SCHEDULER, "additional_config": {**additional, "sooner": own}}


def shared_socket() -> str:
    """Return the path of the scorer that a node's replicas share: one for each user."""
    return str(Path(tempfile.gettempdir()) / f"sooner-ray-{os.getuid()}.sock")
