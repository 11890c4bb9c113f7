"""What learned order gains through the gateway, beside what it gains inside vLLM, on the same bursts.

    python benchmarks/gateway_engines.py [--requests 192] [--bursts 3] [--slots 16] [--out FILE]

A Llama with random weights serves bursts of real prompts with the demo model's own reply lengths times
`--length-scale`, forced on the engine. The order is kept by the plugin inside vLLM, or by `sooner serve`
in front of a vLLM in order of arrival, with the bound on requests in flight found by itself and with one
that is the engine's number of slots. `ltr` is a ranker trained on other prompts of the same model, run
live in both places; `sjf` is told the true lengths. Latencies are engine steps from the burst's first
arrival, which the machine's load cannot change, and seconds. Prints JSON; takes about 5 minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from real_engine_load import tiny_model
from sooner import training as train
from sooner.demo import engine, prompts
from sooner.demo.run import versions
from sooner.replay.client import Endpoint, Sampling
from sooner.replay.drive import attach_fields
from sooner.replay.record import Record
from sooner.replay.saved import replay_to_file
from sooner.workloads.logs import LogRow
from sooner.workloads.prompts import Prompt

WARM = 16  # requests that wake everything up
ORDERS = ("fcfs", "ltr", "sjf")
FOUND, GIVEN = "gateway", "gateway, in flight = slots"


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=192)
    parser.add_argument("--bursts", type=int, default=3)
    parser.add_argument(
        "--slots", type=int, default=16, help="places in the engine; the gateway begins at 16"
    )
    parser.add_argument("--length-scale", type=float, default=0.25)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gateway_engines.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.requests, options.bursts, options.length_scale, options.slots)
    text = json.dumps(result, indent=2)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(folder: Path, requests: int, bursts: int, scale: float, slots: int) -> dict[str, Any]:
    """Return each home's mean latency in each order, what the order gained, and the gains' ratio."""
    weights = tiny_model(folder / "model")
    parts = workload(folder / "ranker", requests, bursts, scale)
    homes = in_both(folder, weights, parts, slots)
    found = {home: gains(arms) for home, arms in homes.items()}
    return {
        "requests": requests,
        "bursts": bursts,
        "slots": slots,
        "mean_output_len": float(np.mean([one.output_len or 0 for part in parts for one in part])),
        **found,
        "gain_beside_the_plugins": {
            home: {name: found[home][name] / found["plugin"][name] for name in found[home] if "gain" in name}
            for home in (FOUND, GIVEN)
        },
        "versions": versions(),
    }


def workload(out: Path, requests: int, bursts: int, scale: float) -> list[list[Prompt]]:
    """Return the bursts, and leave a ranker in `out` that was trained on other prompts."""
    rows = prompts.collected()
    training, rest = rows[::2], rows[1::2]
    if len(rest) < requests * bursts:
        sys.exit(f"{len(rest)} collected lengths for {requests * bursts} requests; lower --requests")
    data = train.dataset(
        [
            LogRow(
                conversation=str(row.prompt.id),
                messages=row.prompt.messages,
                output_len=row.output_len * scale,
            )
            for row in training
        ]
    )
    prior = train.load("default")
    train.fit("lexical", data.prompts, data.lengths, context=data.context, prior=prior).save(out)
    forced = [
        Prompt(
            id=row.prompt.id, messages=row.prompt.messages, output_len=max(1, round(row.output_len * scale))
        )
        for row in rest[: requests * bursts]
    ]
    return [forced[n * requests : (n + 1) * requests] for n in range(bursts)]


def in_both(
    folder: Path, weights: Path, parts: Sequence[list[Prompt]], slots: int
) -> dict[str, dict[str, list[list[Record]]]]:
    """Serve the bursts in every order, kept in the engine and kept before one that goes by arrival."""
    found: dict[str, dict[str, list[list[Record]]]] = {"plugin": {}}
    with vllm(folder, weights, "fcfs", slots) as (url, trace):
        found["plugin"]["fcfs"] = serve("plugin, fcfs", folder, url, trace, "fcfs", parts)
        for home, bound in ((FOUND, 0), (GIVEN, slots)):
            found[home] = {}
            for order in ORDERS:
                with gateway(folder, url, order, bound) as front:
                    found[home][order] = serve(f"{home}, {order}", folder, front, trace, order, parts)
    with vllm(folder, weights, "ltr", slots) as (url, trace):  # which takes given lengths as scores, too
        for order in ORDERS[1:]:
            found["plugin"][order] = serve(f"plugin, {order}", folder, url, trace, order, parts)
    return found


@contextmanager
def vllm(folder: Path, weights: Path, order: str, slots: int) -> Iterator[tuple[str, Path]]:
    """Run an engine with the plugin in this order; give its URL and its trace."""
    trace, log = folder / f"{order}.trace.jsonl", folder / f"{order}.log"
    ranker = str(folder / "ranker") if order == "ltr" else ""
    settings = {"policy": order, "ranker": ranker, "trace": str(trace)}
    with engine.serve(weights, name="tiny", log=log, settings=settings, max_num_seqs=slots) as url:
        yield url, trace


@contextmanager
def gateway(
    folder: Path, engine_url: str, order: str, bound: int, ranker: str | None = None
) -> Iterator[str]:
    """Run `sooner serve` in front of an engine; give its URL."""
    settings, log = folder / "gateway.toml", folder / "gateway.log"
    if ranker is None:
        ranker = str(folder / "ranker") if order == "ltr" else ""
    settings.write_text(
        f'port = 0\npolicy = "{order}"\nranker = "{ranker}"\nclient_scores = true\n'
        "[queue]\nmax_wait = 3600.0\noverdue = 3600.0\n"
        f'[[backend]]\nurl = "{engine_url}"\nkind = "vllm"\nmax_in_flight = {bound}\n',
        encoding="utf-8",
    )
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sooner", "serve", "--config", str(settings)], stderr=output
        )
    try:
        yield address(process, log)
    finally:
        process.terminate()
        process.wait()


def address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return where a gateway serves, once its log says so."""
    while process.poll() is None:
        for line in log.read_text(encoding="utf-8").splitlines():
            if line.startswith("serving "):
                return line.split()[1].removesuffix("/v1")
        time.sleep(0.1)
    sys.exit(f"sooner serve ended: {log.read_text(encoding='utf-8')[-500:]}")


def serve(
    label: str, folder: Path, url: str, trace: Path, order: str, parts: Sequence[list[Prompt]]
) -> list[list[Record]]:
    """Send each burst at once; return its records with the engine's steps. Stops where a request fails."""
    attach = attach_fields(score_field="output_len") if order == "sjf" else None
    served = []
    for number, part in enumerate([parts[0][:WARM], *parts]):  # the first few wake everything up
        run = replay_to_file(
            folder / "run.jsonl",
            part,
            np.zeros(len(part)),
            Endpoint(url=url, model="tiny"),
            Sampling(),
            attach=attach,
            force_len=True,
            server_trace=trace,
        )
        records = asyncio.run(run).records
        failed = [record.error for record in records if not record.finished]
        if failed:
            sys.exit(f"{label}: {len(failed)} requests failed, the first: {failed[0]}")
        if number:
            served.append(records)
            print(f"{label}: burst {number} of {len(parts)}", file=sys.stderr)
    return served


def gains(arms: dict[str, list[list[Record]]]) -> dict[str, float]:
    """Return mean latencies, and the ratios of those in order of arrival to those in the others."""
    found: dict[str, float] = {}
    for order, bursts in arms.items():
        found[f"{order}_mean_e2e_steps"] = float(np.mean([steps(burst) for burst in bursts]))
        found[f"{order}_makespan_steps"] = float(np.mean([steps(burst).max() for burst in bursts]))
        found[f"{order}_mean_e2e_s"] = float(np.mean([seconds(burst) for burst in bursts]))
    for order in ORDERS[1:]:
        for unit in ("steps", "s"):
            name = f"mean_e2e_{unit}"
            found[f"{order}_gain_{unit}"] = found[f"fcfs_{name}"] / found[f"{order}_{name}"]
        each = [
            steps(first).mean() / steps(own).mean()
            for first, own in zip(arms["fcfs"], arms[order], strict=True)
        ]
        found[f"{order}_least_gain_of_a_burst"] = float(min(each))
        found[f"{order}_most_gain_of_a_burst"] = float(max(each))
    return found


def steps(burst: Sequence[Record]) -> Any:
    """Return each request's latency in steps from the burst's first arrival at the engine, shape (n,)."""
    first = min(record.arrival_step or 0 for record in burst)
    return np.array([(record.finish_step or 0) - first for record in burst])


def seconds(burst: Sequence[Record]) -> float:
    """Return the mean latency of a burst that was due at 0 s."""
    return float(np.mean([record.finish_time or 0.0 for record in burst]))


if __name__ == "__main__":
    main()
