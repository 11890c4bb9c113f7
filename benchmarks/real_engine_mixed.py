"""Short questions and long documents on the real vLLM: order by work, kept by the plugin and by the gateway.

    python benchmarks/real_engine_mixed.py [--requests 400] [--seeds 2] [--homes plugin gateway] [--out FILE]

The first 3 of SmolLM2-135M's 30 layers on 6 slots of the CPU engine: so many requests that a queue comes to
be, in minutes. What they say is noise; how long they are is forced. Every fourth request is a document of
about 3,200 words, the others are short chats; orders are told the reply lengths spoiled to a Kendall tau of
about 0.5. A request arrives, in either home, when its client sends it. Arrivals are Poisson at 1.1 and at 0.5
of capacity; above it ratios are means over the seeds, below it one is enough. Arrivals and latencies are
counted in engine work at one pace, fitted to a first burst: so the load is what it is said to be, and two
runs of the same steps give the same figures on any machine, however busy. Seconds by the wall clock stand
beside. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from gateway_engines import gateway
from sooner import metrics
from sooner.demo import arms, engine, model
from sooner.demo.run import versions
from sooner.metrics import kendall_tau
from sooner.replay.client import Endpoint, Sampling
from sooner.replay.drive import attach_fields
from sooner.replay.record import Record
from sooner.replay.saved import replay_to_file
from sooner.replay.work_clock import WorkClock, pace_of, read_steps
from sooner.work import Pace, work
from sooner.workloads.arrivals import poisson
from sooner.workloads.prompts import Prompt

SLOTS = 6
LONGEST = 5000  # tokens of prompt and reply, and of a step
LOADS = (1.1, 0.5)
ORDERS = ("fcfs", "ltr", "boost")
MEASURES = ("mean_e2e_s", "p50_e2e_s", "p99_e2e_s", "mean_ttft_s", "p99_ttft_s")
TEXT = (
    "the a of to and in is it you that he was for on are with as they at be this have from or one had by "
    "word but not what all were we when your can said there use an each which she do how their if will up"
)


def workload(n: int, seed: int) -> list[Prompt]:
    """Return n requests in random order, a quarter of them documents."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        document = i % 4 == 0
        words = int(rng.integers(2800, 3600)) if document else int(rng.integers(8, 40))
        law, low, high = ((3.0, 0.6), 6, 80) if document else ((3.3, 0.6), 5, 80)
        reply = int(np.clip(rng.lognormal(*law), low, high))
        text = ("Summarise this: " if document else "Question: ") + " ".join(rng.choice(TEXT.split(), words))
        made.append((f"{seed}-{i}", text, reply))
    log = np.log([reply for *_, reply in made])
    told = np.exp(log + rng.normal(0, log.std(), n))
    return [
        Prompt(
            id=made[k][0],
            messages=({"role": "user", "content": made[k][1]},),
            output_len=made[k][2],
            fields={"told": float(np.clip(told[k], 1, 500))},
        )
        for k in rng.permutation(n)
    ]


def cut_model(folder: Path, layers: int) -> Path:
    """Return the demo's model with its first layers only."""
    from transformers import AutoConfig, AutoModelForCausalLM

    whole = model.prepare()
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = AutoConfig.from_pretrained(whole)
    config.num_hidden_layers = layers
    AutoModelForCausalLM.from_pretrained(whole, config=config).save_pretrained(folder)
    return folder


class WorkArrivals:
    """Lets requests leave once the engine has done so much work; an idle engine goes on to the next one."""

    def __init__(self, trace: Path, pace: Pace) -> None:
        self._file = Path(f"{trace}.steps").open(encoding="utf-8")  # noqa: SIM115  # read on and on
        self._pace = pace
        self._work = 0.0
        self._begun = ""  # of a line that is still being written
        self._read()
        self._zero = self._work
        self._done = 0
        self.sent: list[float] = []  # the work that was done when each request was sent

    async def until(self, arrival: float) -> None:
        """Wait until `arrival` seconds of work are done, from the start."""
        while self._work - self._zero < arrival:
            if len(self.sent) == self._done:
                self._zero = self._work - arrival
                break
            await asyncio.sleep(0.002)
            self._read()
        self.sent.append(self._work)

    def _read(self) -> None:
        *lines, self._begun = (self._begun + self._file.read()).split("\n")
        for line in lines:
            step, pace = json.loads(line), self._pace
            self._work += pace.iteration_s + pace.prefill_token_s * step["prefill"]
            self._work += pace.decode_seq_s * step["decoding"] + pace.context_token_s * step["context"]

    def ended(self, done: int, _total: int) -> None:
        """Say how many requests have ended."""
        self._done = done


@contextmanager
def vllm(folder: Path, weights: Path, policy: str, label: str) -> Iterator[tuple[str, Path]]:
    """Run an engine in an order; give its URL and its trace."""
    trace = folder / f"{label}.trace.jsonl"
    settings = {"policy": policy, "ranker": "", "state": "", "trace": str(trace)}
    log = folder / f"{label}.log"
    lengths = ("--max-model-len", str(LONGEST), "--max-num-batched-tokens", str(LONGEST))
    with engine.serve(
        weights, name=model.NAME, log=log, settings=settings, max_num_seqs=SLOTS, options=lengths
    ) as url:
        yield url, trace


def replayed(
    folder: Path, url: str, trace: Path, requests: list[Prompt], times: Any, pace: Pace | None, told: bool
) -> tuple[list[Record], list[float]]:
    """Send requests at `times` [s of work]; without a pace all at once. Stops where one fails.

    Returns their records and the work that was done when each was sent.
    """
    arrivals = WorkArrivals(trace, pace) if pace is not None else None
    run = replay_to_file(
        folder / "run.jsonl",
        requests,
        times,
        Endpoint(url=url, model=model.NAME),
        Sampling(),
        attach=attach_fields("told") if told else None,
        force_len=True,
        server_trace=trace,
        **({} if arrivals is None else {"until": arrivals.until, "progress": arrivals.ended}),
    )
    records = asyncio.run(run).records
    failed = [record.error for record in records if not record.finished]
    if failed:
        sys.exit(f"{len(failed)} requests failed, the first: {failed[0]}")
    return records, [] if arrivals is None else arrivals.sent


def measured(records: list[Record], sent: list[float], trace: Path, pace: Pace) -> dict[str, float]:
    """Return the measures on the work clock, and the mean on the wall clock.

    The engine's trace says when a request came to the engine; a gateway had it before.
    """
    done = arms.on_clock(records, WorkClock(read_steps(trace), pace))
    came = np.array([sent[record.index] for record in records])
    found = metrics.summary(done._replace(arrival_time=came))
    wall = float(np.mean([(record.finish_time or 0.0) - (record.sent_time or 0.0) for record in records]))
    return {**{name: found[name] for name in MEASURES}, "wall_mean_e2e_s": wall}


def in_plugin(
    folder: Path, weights: Path, pace: Pace, loads: Any, orders: list[str]
) -> dict[str, list[dict[str, float]]]:
    """Return each order's measures, one a load and seed, kept inside vLLM."""
    found: dict[str, list[dict[str, float]]] = {}
    for order in orders:
        with vllm(folder, weights, order, f"plugin-{order}") as (url, trace):
            for load, seed, requests, times in loads:
                records, sent = replayed(folder, url, trace, requests, times, pace, order != "fcfs")
                found.setdefault(order, []).append(measured(records, sent, trace, pace))
                print(f"plugin, {order}, load {load}, seed {seed}: {found[order][-1]}", file=sys.stderr)
    return found


def in_gateway(
    folder: Path, weights: Path, pace: Pace, loads: Any, orders: list[str]
) -> dict[str, list[dict[str, float]]]:
    """Return the same with the order kept by `sooner serve`, before a vLLM in order of arrival."""
    found: dict[str, list[dict[str, float]]] = {}
    with vllm(folder, weights, "fcfs", "behind") as (url, trace):
        for order in orders:
            with gateway(folder, url, order, SLOTS, ranker="") as front:
                for load, seed, requests, times in loads:
                    records, sent = replayed(folder, front, trace, requests, times, pace, order != "fcfs")
                    found.setdefault(order, []).append(measured(records, sent, trace, pace))
                    print(f"gateway, {order}, load {load}, seed {seed}: {found[order][-1]}", file=sys.stderr)
    return found


def ratios(found: dict[str, list[dict[str, float]]], loads: Any) -> list[dict[str, Any]]:
    """Return each order's measures as ratios to arrival order's, over the seeds of each load."""
    rows = []
    for load in dict.fromkeys(one[0] for one in loads):
        places = [i for i, one in enumerate(loads) if one[0] == load]
        for order, runs in found.items():
            each = [
                {name: runs[i][name] / found["fcfs"][i][name] for name in (*MEASURES, "wall_mean_e2e_s")}
                for i in places
            ]
            mean = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
            seconds = {name: float(np.mean([runs[i][name] for i in places])) for name in runs[0]}
            spread = float(np.ptp([one["mean_e2e_s"] for one in each]))
            rows.append({"load": load, "order": order, **mean, "spread": spread, "seconds": seconds})
    return rows


def measure(
    folder: Path, weights: Path, n: int, seeds: int, homes: list[str], shares: list[float], orders: list[str]
) -> dict[str, Any]:
    """Return every home's rows, and how the two compare."""
    with vllm(folder, weights, "fcfs", "first") as (url, trace):
        first = workload(min(n // 2, 60), 99)
        records, _ = replayed(folder, url, trace, first, np.zeros(len(first)), None, told=False)
        pace = replace(pace_of([read_steps(trace)]), batch=float(SLOTS))
    capacity = len(records) / sum(
        float(work(pace, float(one.prompt_len or 0), 0.0, float(one.output_len or 0))) for one in records
    )
    loads = []
    for load in shares:
        for seed in range(seeds if load > 1 else 1):
            requests = workload(n, seed)
            times = poisson(n, load * capacity, np.random.default_rng(seed))
            loads.append((load, seed, requests, times))
    lengths = [(one.number("told"), one.output_len) for *_, requests, _ in loads for one in requests]
    result: dict[str, Any] = {
        "requests": n,
        "layers": json.loads((weights / "config.json").read_text())["num_hidden_layers"],
        "seeds": seeds,
        "slots": SLOTS,
        "pace": asdict(pace),
        "requests_per_s_of_work": capacity,
        "kendall_tau": kendall_tau([told for told, _ in lengths], [length or 0 for _, length in lengths]),
        "versions": versions(),
    }
    serve = {"plugin": in_plugin, "gateway": in_gateway}
    for home in homes:
        result[home] = ratios(serve[home](folder, weights, pace, loads, orders), loads)
    return result


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--layers", type=int, default=3, help="of the model's 30")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--homes", nargs="+", default=["plugin", "gateway"], choices=["plugin", "gateway"])
    parser.add_argument("--orders", nargs="+", default=list(ORDERS), help="the first must be fcfs")
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real_engine_mixed.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            Path(folder), cut_model(Path(folder, "weights"), options.layers), options.requests, options.seeds,
            options.homes, options.loads, options.orders,
        )  # fmt: skip
    text = json.dumps(result, indent=1)
    options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
