"""A model served on a Ray cluster for as long as a job needs it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from sooner.core import MissingExtra
from sooner.ray.limits import SLOTS, limits

logger = logging.getLogger("sooner.ray")

LOCAL = "local"
"""The address of a cluster that is started here and ended with the job."""

_AHEAD = 2
"""Requests that a replica is given for each of its slots: the next ones wait at the engine."""


class Application(NamedTuple):
    """Where a model is served, under which name, and how many requests keep all replicas busy."""

    url: str
    model: str
    window: int


@contextmanager
def application(
    model: str, engine: Mapping[str, Any], *, address: str = LOCAL, replicas: int = 1
) -> Iterator[Application]:
    """Serve `model` by Ray Serve LLM with vLLM's settings `engine`, and end it afterwards.

    `address` is a cluster's, "auto" for the one that this machine belongs to. On a cluster without GPUs a
    replica gets one CPU. Ray restarts a replica that dies. Raises MissingExtra without Ray.
    """
    try:
        import ray
        from ray import serve
        from ray.serve.llm import LLMConfig, build_openai_app
    except ImportError as error:
        raise MissingExtra("ray", "ray") from error
    if (
        address == LOCAL
    ):  # a replica, its engine and the way in each ask for a CPU, which on two cores is too many
        cores = max(os.cpu_count() or 1, 2 * replicas + 2)
        ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False)
    else:
        ray.init(address=address, log_to_driver=False)
    try:
        port = _free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        on_cpu = not ray.cluster_resources().get("GPU")
        slots = int(engine.get("max_num_seqs", SLOTS))
        config = LLMConfig(
            model_loading_config={"model_id": "offline", "model_source": model},
            engine_kwargs=dict(engine),
            deployment_config=limits({"num_replicas": replicas}, slots).options,
            placement_group_config={"bundle_per_worker": {"CPU": 1, "GPU": 0}} if on_cpu else None,
            log_engine_metrics=False,
        )
        serve.run(build_openai_app({"llm_configs": [config]}), name="sooner-offline")
        logger.info("%d replicas of %s serve", replicas, model)
        yield Application(f"http://127.0.0.1:{port}", "offline", _AHEAD * slots * replicas)
    finally:
        if address != LOCAL:
            serve.delete("sooner-offline")
        ray.shutdown()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
