"""What an overload does: three times the capacity for five minutes, and a tenant that floods.

    python benchmarks/gateway_overload.py [--seconds 300] [--flood 60] [--out FILE]

An emulated engine makes 16 replies at a time, a token in 20 ms, lengths lognormal (median 60 tokens,
sigma 0.8; each hundred requests have its hundred quantiles, shuffled, so that their mean does not
wander), predictions within a factor of about 1.6 of them (sigma 0.5); `sooner serve`
stands before it with room for 120 to wait. Requests come at random instants, whether or not others were
answered, and a refused one is not sent again.

- Goodput: replies whole within 60 s of being sent, a second; its peak is looked for at 0.8, 1 and 1.3
  times the capacity before the overload, in the second half of two minutes each (while the room fills,
  short requests pass long ones, and more end than an engine can keep up), and in the overload itself.
- `Retry-After` against the truth: the time from a refusal until the engine had begun as much work
  (prompt + 2 x output tokens, the real ones) as waited at the refusal.
- Memory: resident, of the gateway's process, but for the first tenth of the overload.
- Flood: one tenant at 0.8 of its share, another at its own share, then at 100 times that.

Prints JSON; `targets` says which bounds hold.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import itertools
import json
import math
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway_overhead import Arm, cpu, memory, serving

PLACES, TOKEN_TIME, MEDIAN, SIGMA, NOISE = 16, 0.02, 60.0, 0.8, 0.5
PROMPT = "Describe a lighthouse. " * 4
PROMPT_LEN = 25
WAITING = 120
SLO = 60.0  # seconds from sending to the whole reply, the default of `overdue`
ENGINE = """
name = "overload"
iteration_s = {token_time}
prefill_token_s = 0.0
decode_seq_s = 0.0
context_token_s = 0.0
max_num_seqs = 512
max_num_batched_tokens = 100000
num_blocks = 1000000
"""
GATEWAY = """
ranker = ""
client_scores = true
[queue]
max_waiting = {waiting}
[[backend]]
url = "{url}"
kind = "vllm"
max_in_flight = {places}
"""


@dataclass
class Seen:
    """One request and what became of it; times are seconds of one clock, None where it did not happen."""

    tenant: str
    output_len: int
    sent: float
    status: int = 0
    started: float | None = None
    ended: float = math.inf
    retry_after: float | None = None  # from retry-after-ms [s]
    retry_after_whole: float | None = None  # from Retry-After

    @property
    def work(self) -> float:
        """What it costs, as the gateway counts."""
        return PROMPT_LEN + 2.0 * self.output_len

    @property
    def wait(self) -> float:
        """Seconds until it was begun."""
        return (self.started or math.inf) - self.sent


NORMAL = statistics.NormalDist()
LENGTHS = [max(1, round(MEDIAN * math.exp(SIGMA * NORMAL.inv_cdf((n + 0.5) / 100)))) for n in range(100)]


def capacity(places: int, token_time: float) -> float:
    """Return the requests a second that the engine can make."""
    return places / (token_time * statistics.mean(LENGTHS))


def lengths(rng: random.Random) -> Iterator[int]:
    """Give reply lengths without end, each hundred of them the same, in another order."""
    while True:
        yield from rng.sample(LENGTHS, len(LENGTHS))


async def ask(arm: Arm, seen: Seen, predicted: float) -> None:
    """Send one request and note what comes back."""
    body = json.dumps({
        "model": "overload", "max_tokens": seen.output_len, "ignore_eos": True,
        "messages": [{"role": "user", "content": PROMPT}],
        "vllm_xargs": {"sooner_predicted_len": predicted},
    }).encode()  # fmt: skip
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {arm.host}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nx-sooner-tenant: {seen.tenant}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    try:
        reader, writer = await asyncio.open_connection(arm.host, arm.port)
        writer.write(head.encode() + body)
        reply = await reader.read()
        writer.close()
    except OSError:
        seen.ended = time.monotonic()
        return
    lines = reply.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    seen.ended = time.monotonic()
    with contextlib.suppress(IndexError, ValueError):
        seen.status = int(lines[0].split()[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if seen.status == 200:
        seen.started = seen.sent + float(headers["x-sooner-wait-ms"]) / 1000
    elif "retry-after-ms" in headers:
        seen.retry_after = float(headers["retry-after-ms"]) / 1000
        seen.retry_after_whole = float(headers["retry-after"])


async def load(arm: Arm, rates: dict[str, float], seconds: float, seed: int, follow: str = "") -> list[Seen]:
    """Send requests of tenants at `rates` [1/s] at random instants; return them once all are answered.

    With `follow` only that tenant's are followed to their end; the others' clients leave then.
    """
    rng = random.Random(seed)
    instants: list[tuple[float, str]] = []
    for tenant, rate in rates.items():
        at = itertools.accumulate(iter(lambda rate=rate: rng.expovariate(rate), None))
        instants += [(t, tenant) for t in itertools.takewhile(lambda t: t < seconds, at)]
    begin, found, tasks = time.monotonic(), [], []
    for (instant, tenant), length in zip(sorted(instants), lengths(rng), strict=False):
        await asyncio.sleep(max(0.0, begin + instant - time.monotonic()))
        found.append(Seen(tenant, length, time.monotonic()))
        predicted = length * math.exp(rng.gauss(0.0, NOISE))
        tasks.append(asyncio.create_task(ask(arm, found[-1], predicted)))
    followed = [task for task, one in zip(tasks, found, strict=True) if follow in ("", one.tenant)]
    await asyncio.gather(*followed)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return found


def rate_of(seen: Iterable[Seen], begin: float, end: float) -> float:
    """Return the goodput between two instants."""
    good = sum(begin <= one.ended < end and one.status == 200 and one.ended - one.sent <= SLO for one in seen)
    return good / (end - begin)


def truths(seen: list[Seen]) -> list[tuple[Seen, float]]:
    """Return the refusals, and when as much work had begun as waited at each [s after it]."""
    begun = sorted((one.started, one.work) for one in seen if one.started is not None)
    times = [at for at, _ in begun]
    total = list(itertools.accumulate((work for _, work in begun), initial=0.0))
    waited = [one for one in seen if one.started is not None or one.ended - one.sent > 0.5]
    changes = sorted(
        [(one.sent, one.work) for one in waited]
        + [(one.started if one.started is not None else one.ended, -one.work) for one in waited]
    )
    found, ahead, n = [], 0.0, 0
    for one in sorted((one for one in seen if one.retry_after is not None), key=lambda one: one.ended):
        while n < len(changes) and changes[n][0] <= one.ended:
            ahead += changes[n][1]
            n += 1
        served = bisect.bisect_left(total, total[bisect.bisect_right(times, one.ended)] + ahead)
        if served <= len(times):
            found.append((one, max(0.0, times[served - 1] - one.ended)))
    return found


def honesty(seen: list[Seen]) -> dict[str, Any]:
    """Return how `Retry-After` compares with the truth."""
    pairs = [(one, truth) for one, truth in truths(seen) if truth > 0.0]
    if not pairs:
        return {"refusals": 0}
    fine = sorted((one.retry_after or 0.0) / truth for one, truth in pairs)
    whole = [(one.retry_after_whole or 0.0) / truth for one, truth in pairs]
    return {
        "refusals": sum(one.retry_after is not None for one in seen),
        "truth_known": len(pairs),
        "median_truth_s": round(statistics.median(truth for _, truth in pairs), 2),
        "told_over_truth": {f"p{p}": round(fine[(len(fine) - 1) * p // 100], 2) for p in (5, 10, 50, 90, 95)},
        "within_a_factor_of_2": round(sum(0.5 <= one <= 2 for one in fine) / len(fine), 4),
        "whole_seconds_within_a_factor_of_2": round(sum(0.5 <= one <= 2 for one in whole) / len(whole), 4),
    }


async def watched(pid: int, held: list[tuple[float, float]]) -> None:
    """Note a process's memory once a second."""
    while True:
        held.append((time.monotonic(), memory(pid)))
        await asyncio.sleep(1.0)


async def overload(arm: Arm, seconds: float, times: float = 3.0) -> dict[str, Any]:
    """Look for the peak, then send `times` the capacity for `seconds`."""
    most = capacity(PLACES, TOKEN_TIME)
    ramp = {}
    for part in (0.8, 1.0, 1.3):
        say(f"{part} of the capacity")
        began, lasts = time.monotonic(), 0.4 * seconds
        seen = await load(arm, {"default": part * most}, lasts, seed=int(10 * part))
        ramp[str(part)] = rate_of(seen, began + lasts / 2, began + lasts)
    say(f"{times} times the capacity for {seconds:.0f} s")
    held: list[tuple[float, float]] = []
    watching = asyncio.create_task(watched(arm.pid, held))
    began, used = time.monotonic(), cpu(arm.pid)
    seen = await load(arm, {"default": times * most}, seconds, seed=7)
    used = cpu(arm.pid) - used
    watching.cancel()
    piece = seconds / 10
    pieces = [rate_of(seen, began + n * piece, began + (n + 1) * piece) for n in range(1, 10)]
    later = [mb for at, mb in held if began + seconds / 10 <= at <= began + seconds] or [held[-1][1]]
    tenth = max(1, len(later) // 10)
    growth = statistics.mean(later[-tenth:]) - statistics.mean(later[:tenth])
    peak = max(*ramp.values(), statistics.mean(pieces))
    statuses = [one.status for one in seen]
    return {
        "capacity_per_s": round(most, 2),
        "requests": len(seen),
        "statuses": {str(status): statuses.count(status) for status in sorted(set(statuses))},
        "cpu_ms_per_request": round(1000 * used / len(seen), 2),
        "goodput_before": {part: round(rate, 2) for part, rate in ramp.items()},
        "goodput": round(statistics.mean(pieces), 2),
        "goodput_by_tenths": [round(rate, 2) for rate in pieces],
        "goodput_over_peak": round(statistics.mean(pieces) / peak, 3),
        "worst_tenth_over_peak": round(min(pieces) / peak, 3),
        "memory_mb": [round(later[0], 1), round(max(later), 1), round(later[-1], 1)],
        "memory_growth_mb": round(growth, 2),
        "retry_after": honesty(seen),
    }


async def flood(arm: Arm, seconds: float, places: int, token_time: float) -> dict[str, Any]:
    """Return one tenant's wait beside another that keeps to its share, and beside one that floods."""
    share = capacity(places, token_time) / 2
    found: dict[str, Any] = {"share_per_s": round(share, 2)}
    for name, times in (("calm", 1.0), ("flood", 100.0)):
        say(f"a tenant at {times:.0f} times its share")
        seen = await load(arm, {"quiet": 0.8 * share, "loud": times * share}, seconds, 3, "quiet")
        quiet = [one for one in seen if one.tenant == "quiet"]
        loud = [one for one in seen if one.tenant == "loud"]
        waits = sorted(one.wait for one in quiet if one.status == 200)
        found[name] = {
            "quiet_requests": len(quiet),
            "quiet_refused": sum(one.status != 200 for one in quiet),
            "quiet_wait_p50_s": round(statistics.median(waits), 3),
            "quiet_wait_p99_s": round(waits[int(0.99 * (len(waits) - 1))], 3),
            "loud_requests": len(loud),
            "loud_refused": sum(one.status == 503 for one in loud),
            "errors": sum(one.status not in (200, 503) and one.ended < math.inf for one in seen),
        }
    calm, flooded = found["calm"]["quiet_wait_p99_s"], found["flood"]["quiet_wait_p99_s"]
    return {**found, "p99_flood_over_calm": round(flooded / max(calm, 1e-3), 2)}


@contextmanager
def before_an_engine(places: int, token_time: float, waiting: int) -> Iterator[Arm]:
    """Run a gateway before an emulated engine, and give it."""
    with tempfile.TemporaryDirectory() as folder:
        spec, config = Path(folder, "engine.toml"), Path(folder, "gateway.toml")
        spec.write_text(ENGINE.format(token_time=token_time), encoding="utf-8")
        with serving("--emulate", str(spec), "--bare") as engine:
            url = f"http://{engine.host}:{engine.port}"
            config.write_text(GATEWAY.format(url=url, waiting=waiting, places=places), encoding="utf-8")
            with serving("--config", str(config)) as ours:
                yield ours


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long the overload lasts")
    parser.add_argument("--flood", type=float, default=60.0, help="how long the flood lasts; 0: none")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    before = os.getloadavg()[0]
    with before_an_engine(PLACES, TOKEN_TIME, WAITING) as ours:
        over = asyncio.run(overload(ours, options.seconds))
    flooded: dict[str, Any] | None = None
    if options.flood:
        with before_an_engine(8, TOKEN_TIME, 1000) as ours:
            flooded = asyncio.run(flood(ours, options.flood, 8, TOKEN_TIME))
    machine = {"cpus": os.cpu_count(), "load_before": round(before, 1), "python": platform.python_version()}
    result: dict[str, Any] = {
        "what": "gateway overload",
        "machine": machine,
        "overload": over,
        "flood": flooded,
        "targets": {
            "goodput >= 90 % of its peak": over["goodput_over_peak"] >= 0.9,
            "memory flat (within 3 MB)": over["memory_growth_mb"] <= 3.0,
            "Retry-After within a factor of 2 for 80 %": over["retry_after"]["within_a_factor_of_2"] >= 0.8,
            "no errors": set(over["statuses"]) <= {"200", "503"},
        },
    }
    if flooded is not None:
        result["targets"]["p99 wait beside a flood < 2 x"] = flooded["p99_flood_over_calm"] < 2.0
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
