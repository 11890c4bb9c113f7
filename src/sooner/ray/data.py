"""Ray Data's engines with our scheduler in each, and enough rows in them to order."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sooner.ray.limits import SLOTS, waiting
from sooner.ray.serving import with_scheduler

if TYPE_CHECKING:
    from ray.data.llm import vLLMEngineProcessorConfig

logger = logging.getLogger("sooner.ray")


def processor_config(config: vLLMEngineProcessorConfig, **settings: Any) -> vLLMEngineProcessorConfig:
    """Return a Ray Data LLM configuration whose engines run our scheduler, with rows that wait in them.

    `settings` are the plugin's, as in `sooner.ray.llm_config`. A limit under which nothing would wait in the
    engine is raised, with a warning; see `sooner.ray.limits.waiting`. Raises ConfigError, UnknownName.
    """
    chosen = {name: getattr(config, name) for name in type(config).model_fields}
    engine = with_scheduler(chosen["engine_kwargs"], settings)
    found = waiting(chosen, engine.get("max_num_seqs", SLOTS))
    for note in found.notes:
        logger.warning("%s: %s", config.model_source, note)
    return type(config)(**{**chosen, **found.options, "engine_kwargs": engine})
