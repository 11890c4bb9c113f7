"""The `vllm.general_plugins` entry point, run by vLLM in the API server, the engine and the workers."""

from __future__ import annotations

import atexit
import os
from pathlib import Path

from sooner.ordering.held import HeldFolder
from sooner.vllm import settings

VARIABLE = f"{settings.ENVIRONMENT}_METRICS_DIR"
_collected: set[Path] = set()


def register() -> None:
    """Let this process's `/metrics` show what engines publish; repeated calls do nothing more.

    The first process makes the folder and names it in the environment, which the engine inherits.
    """
    if not os.environ.get(VARIABLE):
        folder = HeldFolder("metrics-")
        atexit.register(folder.close)  # after a signal that ends this process at once, the next start sweeps
        os.environ[VARIABLE] = str(folder.path)
    directory = Path(os.environ[VARIABLE])
    if directory in _collected:
        return
    from prometheus_client import REGISTRY

    from sooner.vllm.counters import Collector

    directory.mkdir(parents=True, exist_ok=True)
    REGISTRY.register(Collector(directory))
    _collected.add(directory)
