"""What the learner is worth, and what it costs where it is wrong: its claims, on data and in the simulator.

    python benchmarks/learner.py --servegen servegen_m-small.tar.gz --alpaca alpaca_eval_lengths.csv.gz
        [--requests 200000] [--out benchmarks/results/learner.json]

`stationary`: ServeGen's senders and lengths in a random order, so that nothing changes; every alarm is false.
`traffic`: the same in their own order, an hour; what changes there is theirs. `measured`: that of the clients
alone whose lengths were measured, in four hours of the two weeks; the others draw one client's. `changed`:
AlpacaEval's prompts again and again, of one served model and then of another: requests until the alarm, and
Kendall's tau of 500 requests after the first 500, beside what it reaches later. `mixed`: those prompts under
12 system prompts, each application's served by one of 4 models; the shipped ranker alone, and with a learner.
`shuffled`: a simulated A100 under load, senders that say nothing of lengths; mean E2E over `fcfs`, and where
senders say all. Prints JSON. ALPACA has the column `instruction` and a column of lengths for each model.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import sooner
from sooner import metrics, policies, rankers
from sooner.chat import ChatRequest, clean
from sooner.learning import Identity, Learner, prequential
from sooner.learning.prequential import Facts
from sooner.metrics import kendall_tau
from sooner.workloads.columns import Workload
from sooner.workloads.traces import servegen

MODELS = ("Meta-Llama-3-8B-Instruct", "gpt4_0613", "gemma-7b-it", "claude-3-opus-20240229")
_HOUSES = ("bank", "school", "shop", "clinic", "museum", "town", "airline", "library", "farm", "theatre",
           "port", "court")  # fmt: skip
SYSTEMS = tuple(f"You are the assistant of the {name}. Answer as its customers like it." for name in _HOUSES)
Lengths: TypeAlias = dict[str, NDArray[np.float64]]
HOURS = (30, 114, 198, 282)  # of the two weeks
HOURLY = 100_000  # requests of each, at most
BEHIND = 16  # requests after which a reply is known


def learned_from(facts: Facts, lengths: NDArray[np.float64]) -> tuple[list[int], NDArray[np.float64]]:
    """Play requests through a learner; return the rows whose ends raised an alarm, and the scores (n,)."""
    learner, alarms, scores = Learner(), [], np.empty(len(lengths))
    for row in range(len(lengths) + BEHIND):
        if row >= BEHIND and learner.finished(row - BEHIND, float(lengths[row - BEHIND])).alarm:
            alarms.append(row - BEHIND)
        if row < len(lengths):
            scores[row] = learner.predict(row, facts.identities[row], facts.texts[row]).score
    return alarms, scores


def sender_streams(path: Path, requests: int, seed: int) -> dict[str, Any]:
    """Return what a learner of senders does on ServeGen, in a random order and in its own."""
    sent = servegen.sent(path, hours=1.0)
    rng = np.random.default_rng(seed)
    n = min(requests, len(sent.output_len))
    found: dict[str, Any] = {"measured": [measured_hour(path, hour, requests) for hour in HOURS]}
    for name, rows in {
        "stationary": rng.permutation(len(sent.output_len))[:n],
        "traffic": np.arange(n),
    }.items():
        lengths = np.asarray(sent.output_len)[rows].astype(np.float64)
        facts = prequential.of_senders(np.asarray(sent.sender)[rows].tolist(), None)
        start = time.perf_counter()
        played = prequential.play(facts, lengths)
        found[name] = {
            "requests": n,
            "kendall_tau": played.kendall_tau,
            "alarms": played.alarms,
            "requests_an_alarm": n / played.alarms if played.alarms else None,
            "off_share": played.off_share,
            "microseconds_a_request": (time.perf_counter() - start) / n * 1e6,
        }
    return found


def measured_hour(path: Path, hour: int, requests: int) -> dict[str, Any]:
    """Return what a learner of senders does on the clients that have lengths, in one hour."""
    sent = servegen.sent(path, start=3600.0 * hour, hours=1.0, measured=True)
    n = min(requests, HOURLY, len(sent.output_len))
    facts = prequential.of_senders(sent.sender[:n].tolist(), sent.arrival_time[:n])
    played = prequential.play(facts, sent.output_len[:n])
    senders = len(set(sent.sender[:n].tolist()))
    return {"hour": hour, "requests": n, "senders": senders, "kendall_tau": played.kendall_tau,
            "alarms": played.alarms, "off_share": played.off_share}  # fmt: skip


def read_alpaca(path: Path) -> tuple[list[str], dict[str, NDArray[np.float64]]]:
    """Return the prompts that all of MODELS answered, and the lengths (n,) of their replies."""
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))
    known = [row for row in rows if all(float(row[name] or -1) > 0 for name in MODELS)]
    lengths = {name: np.array([float(row[name]) for row in known]) for name in MODELS}
    return [clean(row["instruction"]) for row in known], lengths


def changed_model(
    prompts: list[str], lengths: dict[str, NDArray[np.float64]], seed: int
) -> list[dict[str, Any]]:
    """Return how soon a change of the served model is noticed and learned, for some pairs of models."""
    ranker, rng, found = rankers.load(rankers.DEFAULT), np.random.default_rng(seed), []
    texts = ranker.predictions(prompts)
    for before, after in (MODELS[:2], MODELS[1:3], MODELS[2:], (MODELS[3], MODELS[0])):
        rows = np.concatenate([rng.permutation(len(prompts)) for _ in range(-(-6000 // len(prompts)))])[:6000]
        whole = np.where(np.arange(6000) < 3000, lengths[before][rows], lengths[after][rows])
        identity = Identity(model=1, sender=2)
        facts = Facts([identity] * 6000, [None] * 6000, [texts[row] for row in rows], None)
        alarms, scores = learned_from(facts, whole)
        late = [row - 3000 for row in alarms if row >= 3000]
        found.append({
            "models": [before, after],
            "alarm_after": late[0] if late else None,
            "false_alarms": len(alarms) - bool(late),
            "tau_500_to_1000": kendall_tau(scores[3500:4000], whole[3500:4000]),
            "tau_reached": kendall_tau(scores[4500:], whole[4500:]),
        })  # fmt: skip
    return found


def mixed_stream(prompts: list[str], lengths: Lengths, seed: int) -> dict[str, Any]:
    """Return Kendall's tau of the shipped ranker alone and with a learner, on 12 applications' traffic."""
    rng = np.random.default_rng(seed)
    row, app = np.divmod(rng.permutation(len(prompts) * len(SYSTEMS)), len(SYSTEMS))
    requests, whole = [], np.empty(len(row))
    for at, (prompt, system) in enumerate(zip(row.tolist(), app.tolist(), strict=True)):
        model = MODELS[system % len(MODELS)]
        whole[at] = lengths[model][prompt]
        messages = [
            {"role": "system", "content": SYSTEMS[system]},
            {"role": "user", "content": prompts[prompt]},
        ]
        requests.append(ChatRequest.of({"model": model, "messages": messages}))
    facts = prequential.of_requests(requests, rankers.load(rankers.DEFAULT), None)
    alone = np.array([text.score for text in facts.texts if text is not None])
    played = prequential.play(facts, whole)
    after = slice(500, None)
    tau = kendall_tau(alone[after], whole[after])
    learned = kendall_tau(played.scores[after], whole[after])
    return {
        "requests": len(row),
        "ranker": tau,
        "with_learner": learned,
        "better_by": learned - tau,
        "alarms": played.alarms,
    }


def shuffled_lengths(n: int, seed: int) -> list[dict[str, Any]]:
    """Return mean E2E over that of arrival order, where senders say all of lengths and where nothing."""
    from sooner.sim.cost import load
    from sooner.sim.engine import Outcome, simulate
    from sooner.sim.learned import learned
    from sooner.sim.predictions import Predictions

    engine, order, plain = load("llama3-8b-a100"), policies.get(policies.DEFAULT), policies.get("fcfs")

    def mean_e2e(outcome: Outcome) -> float:
        return float(np.mean(metrics.e2e(outcome.completed)))

    def serve(part: Workload, told: Predictions) -> Outcome:
        return simulate(part, engine, order, predicted_len=told.predicted_len, score=told.score)

    found = []
    for name, shuffle in (("true", False), ("shuffled", True)):
        rng = np.random.default_rng(seed)
        means, sender = rng.normal(5.0, 1.0, 20), rng.integers(0, 20, n)
        lengths = np.maximum(1, np.exp(means[sender] + 0.5 * rng.standard_normal(n))).astype(np.int64)
        work = Workload(
            arrival_time=np.cumsum(rng.exponential(1.0 / 40.0, n)),
            prompt_len=np.full(n, 200),
            output_len=rng.permutation(lengths) if shuffle else lengths,
            sender=sender,
        )
        facts = prequential.of_senders(sender.tolist(), work.arrival_time)
        told = learned(work, facts, serve)
        arrival = simulate(work, engine, plain)
        found.append({
            "lengths": name,
            "requests": n,
            "kendall_tau": kendall_tau(told.score, work.output_len.astype(np.float64)),
            "fcfs_mean_e2e": mean_e2e(arrival),
            "mean_e2e_over_fcfs": mean_e2e(serve(work, told)) / mean_e2e(arrival),
        })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--servegen", type=Path, help="ServeGen's clients, a .tar.gz")
    parser.add_argument("--alpaca", type=Path, help="AlpacaEval's lengths by model, a .csv.gz")
    parser.add_argument("--requests", type=int, default=200_000, help="of ServeGen, at most")
    parser.add_argument("--simulated", type=int, default=6000, help="requests of `shuffled`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {
        "sooner": sooner.__version__, "python": platform.python_version(), "machine": platform.machine(),
        "command": " ".join(sys.argv),
    }  # fmt: skip
    found["shuffled"] = shuffled_lengths(options.simulated, options.seed)
    if options.alpaca:
        prompts, lengths = read_alpaca(options.alpaca)
        found["changed"] = changed_model(prompts, lengths, options.seed)
        found["mixed"] = mixed_stream(prompts, lengths, options.seed)
    if options.servegen:
        found.update(sender_streams(options.servegen, options.requests, options.seed))
    text = json.dumps(found, indent=2)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
