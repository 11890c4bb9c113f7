"""ServeGen's traces (Xiang et al., 2025): many clients, each with its own rate, burstiness and lengths.

A `.tar.gz` holds, for each client, `chunk-N-trace.csv` (a window's start [s], rate [req/s], CV,
distribution, shape, scale of the gaps) and `chunk-N-dataset.json` (histograms of input and output
lengths by window). Input and output are separate marginals, so they are drawn independently; a
client without lengths draws those of the others.
"""

from __future__ import annotations

import ast
import json
import math
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import DataError

Column = NDArray[np.float64]


class LengthHistogram(NamedTuple):
    """Lengths [tokens] and how likely each is."""

    values: Column
    share: Column

    def draw(self, n: int, rng: np.random.Generator) -> Column:
        """Return n lengths."""
        return np.asarray(rng.choice(self.values, size=n, p=self.share), dtype=np.float64)


class SentColumns(NamedTuple):
    """Arrival times [s], prompt and output lengths [tokens], and which client sent each; all (n,)."""

    arrival_time: Column
    prompt_len: Column
    output_len: Column
    sender: Column


def sample(
    path: Path, *, start: float | None = None, hours: float = 1.0, seed: int = 0
) -> tuple[Column, Column, Column]:
    """Return arrival times [s], prompt and output lengths of all clients, as `sent` does."""
    arrival, prompt, output, _ = sent(path, start=start, hours=hours, seed=seed)
    return arrival, prompt, output


def sent(
    path: Path, *, start: float | None = None, hours: float = 1.0, seed: int = 0, measured: bool = False
) -> SentColumns:
    """Return what all clients send over some hours, in order of arrival.

    `start` [s] is the first window; None is the hour of the median rate. `measured` leaves out who has no
    lengths of its own. Raises DataError where the file holds no such clients.
    """
    windows, lengths = _read(path)
    if not windows or not lengths:
        raise DataError(f"{str(path)!r} holds no ServeGen clients (chunk-N-trace.csv, chunk-N-dataset.json)")
    if start is None:
        rates: dict[float, float] = {}
        for rows in windows.values():
            for begin, rate, _, _ in rows:
                rates[begin // 3600 * 3600] = rates.get(begin // 3600 * 3600, 0.0) + rate
        busy = sorted((rate, hour) for hour, rate in rates.items() if rate > 0)
        start = busy[len(busy) // 2][1] if busy else 0.0
    rng = np.random.default_rng(seed)
    anybody = next(iter(lengths.values()))
    parts = []
    for number, (client, rows) in enumerate(windows.items()):
        if measured and client not in lengths:
            continue
        mine = lengths.get(client, anybody)
        for begin, rate, shape, weibull in rows:
            if start <= begin < start + 3600 * hours and rate > 0:
                times = _arrivals(rate, shape, weibull, rng)
                window = max((at for at in mine if at <= begin), default=min(mine))
                prompt, output = (histogram.draw(times.size, rng) for histogram in mine[window])
                parts.append(np.stack([times + begin - start, prompt, output, np.full(times.size, number)]))
    if not parts:
        raise DataError(f"{str(path)!r}: nobody sends anything from {start:.0f} s on; choose another start")
    table = np.concatenate(parts, axis=1)
    return SentColumns(*table[:, np.argsort(table[0], kind="stable")])


def _arrivals(
    rate: float, shape: float, weibull: bool, rng: np.random.Generator, length: float = 600.0
) -> Column:
    """Return a renewal process over one window, from a random moment of it on."""
    n = int(rate * length * 1.5) + 20
    gaps = rng.weibull(shape, n) if weibull else rng.gamma(shape, size=n)
    times = np.cumsum(gaps) * (1.0 / (rate * max(float(gaps.mean()), 1e-12)))
    return np.asarray(times[times < length])


def _read(
    path: Path,
) -> tuple[
    dict[str, list[tuple[float, float, float, bool]]],
    dict[str, dict[float, tuple[LengthHistogram, LengthHistogram]]],
]:
    windows, lengths = {}, {}
    try:
        for client, kind, text in _members(path):
            if kind == "trace.csv":
                windows[client] = [_window(line) for line in text.splitlines() if line[:1].isdigit()]
            else:
                found = {}
                for start, both in json.loads(text).items():
                    prompt, output = (_histogram(both[name]) for name in ("input_tokens", "output_tokens"))
                    if prompt and output:
                        found[float(start)] = (prompt, output)
                if found:
                    lengths[client] = found
    except (OSError, tarfile.TarError, ValueError, KeyError, SyntaxError) as error:
        raise DataError(f"cannot read {str(path)!r} as ServeGen's: {error}") from error
    return windows, lengths


def _members(path: Path) -> Iterator[tuple[str, str, str]]:
    with tarfile.open(path) as archive:
        for member in archive:
            match = re.search(r"(chunk-\d+)-(trace\.csv|dataset\.json)$", member.name)
            file = archive.extractfile(member) if match else None
            if match and file:
                yield match[1], match[2], file.read().decode("utf-8")


def _window(line: str) -> tuple[float, float, float, bool]:
    """Return a window's start [s], rate [req/s], shape of its gaps, and whether they are Weibull's.

    More columns are left aside; a shape that was not fitted is a Poisson process's.
    """
    start, rate, _, kind, shape = (cell.strip() for cell in line.split(",")[:5])
    fitted = float(shape or 0.0)
    return float(start), float(rate), fitted if 0.0 < fitted < math.inf else 1.0, kind.lower() == "weibull"


def _histogram(written: str | Mapping[str, float]) -> LengthHistogram | None:
    """Return the histogram in a table of shares by length, or in its text; None for an empty one."""
    table = ast.literal_eval(written) if isinstance(written, str) else written
    share = np.array(list(table.values()), dtype=np.float64)
    if not share.sum() > 0.0:
        return None
    return LengthHistogram(np.array(list(table), dtype=np.float64), share / share.sum())
