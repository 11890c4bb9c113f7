"""Thin doors to Ray: its engines in our order. Ray does the rest.

from sooner.ray import llm_config
app = serve.llm.build_openai_app({"llm_configs": [llm_config(config, policy="boost")]})
"""

from sooner.ray.data import processor_config
from sooner.ray.serving import llm_config

__all__ = ["llm_config", "processor_config"]
