"""Workloads by name: what ships with the package, and what must be fetched first.

Shipped are numbers only: Azure's 2023 traces (CC-BY 4.0) and Mooncake's conversations (Apache-2.0)
whole, and of ShareGPT the quantiles of its lengths. See `data/LICENCES.md`.
"""

from __future__ import annotations

import importlib.resources
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sooner.core import DataError, UnknownName
from sooner.workloads import traces
from sooner.workloads.traces import Column, Trace

DRAWN = 10_000
"""Requests in a workload that is drawn from a distribution, where nobody asks for another number."""


class Source(NamedTuple):
    """Where a workload that does not ship comes from: file names it may have, and where to get it."""

    files: tuple[str, ...]
    where: str


SHIPPED = ("sharegpt", "azure-conv", "azure-code", "mooncake", "lognormal")
FETCHED = {
    "burstgpt": Source(
        ("BurstGPT_1.csv", "BurstGPT_without_fails_1.csv", "burstgpt.csv", "BurstGPT_1.csv.gz"),
        "https://github.com/HPMLL/BurstGPT (CC-BY 4.0), BurstGPT_1.csv of a release",
    ),
    "servegen": Source(
        ("servegen_m-small.tar.gz", "servegen.tar.gz"),
        "https://github.com/alibaba/ServeGen (Apache-2.0): tar czf servegen.tar.gz data/language/m-small",
    ),
    "arxiv-summarization": Source(
        (
            "vidur_arxiv_summarization_lens.csv.gz",
            "arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
        ),
        "https://github.com/microsoft/vidur (MIT), data/processed_traces",
    ),
}


def names() -> tuple[str, ...]:
    """Return every workload name."""
    return (*SHIPPED, *FETCHED)


def load(name: str, n: int | None = None, seed: int = 0, *, folder: Path | None = None) -> Trace:
    """Return the workload called `name`, or the one in the file of that name.

    `n` and `seed` matter only where requests are drawn from a distribution; `folder` is where files of
    workloads that do not ship are looked for. Raises UnknownName for
    what is neither, DataError for a named file that is not there or cannot be read.
    """
    if name in SHIPPED:
        return _shipped(name, DRAWN if n is None else n, seed)
    if name in FETCHED:
        return traces.read(_find(name, folder or Path()))
    path = Path(name)
    if not path.exists():
        if len(path.parts) > 1 or path.suffix:
            raise DataError(f"workload {name!r} is not there; allowed: a file, or {', '.join(names())}")
        raise UnknownName("workload (a name or a file)", name, names())
    return traces.read(path)


def _find(name: str, folder: Path) -> Path:
    source = FETCHED[name]
    for file in source.files:
        if (folder / file).is_file():
            return folder / file
    raise DataError(
        f"workload {name!r} does not ship; get it from {source.where}, and put it at "
        f"{folder / source.files[0]} (SOONER_DATA names the folder), or give the file instead of the name"
    )


def _shipped(name: str, n: int, seed: int) -> Trace:
    rng = np.random.default_rng(seed)
    if name == "lognormal":
        prompt = np.clip(np.round(np.exp(rng.normal(4.6, 1.25, n))), 4, 2048)
        return Trace(
            prompt_len=prompt, output_len=np.clip(np.round(np.exp(rng.normal(4.9, 0.95, n))), 1, 1024)
        )
    with importlib.resources.files(__package__).joinpath(f"data/{name}.npz").open("rb") as file:
        arrays = dict(np.load(file))
    if name == "sharegpt":
        return _drawn(arrays, n, rng)
    deltas = arrays["arrival_ms"].astype(np.int64)
    blocks = None
    if "blocks" in arrays:
        ends = np.cumsum(arrays["block_count"].astype(np.int64))
        blocks = np.split(np.cumsum(arrays["blocks"].astype(np.int64)), ends[:-1])
    return Trace(
        prompt_len=np.maximum(arrays["prompt_len"], 1).astype(np.float64),
        output_len=np.maximum(arrays["output_len"], 1).astype(np.float64),
        arrival_time=np.cumsum(deltas) / 1000.0,
        blocks=blocks,
    )


def _drawn(arrays: dict[str, np.ndarray], n: int, rng: np.random.Generator) -> Trace:
    """Draw lengths from quantiles, input and output joined by a normal copula of the same Kendall tau."""
    correlation = math.sin(math.pi / 2 * float(arrays["kendall_tau"]))
    a = rng.standard_normal(n)
    b = correlation * a + math.sqrt(1 - correlation**2) * rng.standard_normal(n)
    grid = np.linspace(0.0, 1.0, arrays["prompt_len"].shape[0])

    def lengths(normal: Column, quantiles: Column) -> Column:
        # A normal's rank among n is its quantile; ranks need no inverse of the normal distribution.
        share = (np.argsort(np.argsort(normal)) + rng.random(n)) / n
        return np.asarray(np.maximum(np.rint(np.interp(share, grid, quantiles)), 1.0))

    return Trace(prompt_len=lengths(a, arrays["prompt_len"]), output_len=lengths(b, arrays["output_len"]))
