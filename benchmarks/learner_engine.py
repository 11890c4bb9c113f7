"""An empty learner on the real vLLM, beside a ranker that was trained on the same two applications' traffic.

    python benchmarks/learner_engine.py --out FOLDER [--warm 300] [--judged 90] [--max-tokens 40]

SmolLM2 on vLLM's CPU engine serves bursts of two applications, half each. `quick` stops at its first full
stop, as it asks; `full` tells it all. Nothing is forced: lengths are the model's own, the same in every arm
by the requests' seeds. Arms: arrival order; the plugin with no ranker and nothing learned; the plugin with a
ranker that was trained on the first arm's first `--warm` replies and learns nothing. Judged are the bursts
after `--warm` finished requests. Latency is in engine steps, so other work on the machine does not count.
What an arm served stays in FOLDER, and is not served again. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sooner import training
from sooner.chat import Signals
from sooner.demo import engine, model, prompts
from sooner.demo.run import TEMPERATURE, versions
from sooner.workloads.logs import LogRow

BURST = 30
SLOTS = 6
LONGEST = 200  # letters of a prompt
SYSTEMS = {
    "quick": "You answer in one short sentence.",
    "full": "You are a patient teacher. Explain in detail, step by step, with examples.",
}
STOPS: dict[str, list[str]] = {"quick": ["."], "full": []}


def requests(n: int) -> list[dict[str, Any]]:
    """Return n requests of both applications, in bursts of mixed order."""
    asked = [known.prompt for known in prompts.collected()]
    short = [one for one in asked if len(one.messages[-1]["content"]) <= LONGEST]
    rng, found = np.random.default_rng(0), []
    for burst in range(n // BURST):
        for at, app in enumerate(rng.permutation(["quick", "full"] * (BURST // 2)).tolist()):
            prompt = short[(burst * BURST + at) % len(short)]
            messages = [{"role": "system", "content": SYSTEMS[app]}, prompt.messages[-1]]
            found.append({"app": app, "messages": messages, "tag": f"{burst}-{at}"})
    return found


def body(asked: Mapping[str, Any], max_tokens: int, seed: int) -> dict[str, Any]:
    """Return what is sent to vLLM; who asks comes as a client of the plugin says it."""
    return {
        "model": model.NAME, "messages": asked["messages"], "max_tokens": max_tokens, "seed": seed,
        "temperature": TEMPERATURE, "stop": STOPS[asked["app"]],
        "vllm_xargs": {"user": asked["app"], "sooner_tag": asked["tag"]},
    }  # fmt: skip


def serve(folder: Path, label: str, settings: Mapping[str, Any], asked: Sequence[dict[str, Any]],
          max_tokens: int) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Serve the requests in bursts, each when the last has ended; return the engine's lines by tag."""
    trace = folder / f"{label}.trace.jsonl"
    done = folder / f"{label}.done"
    if not done.exists():
        for path in folder.glob(f"{label}.trace.jsonl*"):
            path.unlink()
        options = {"trace": str(trace), "state": str(folder / f"{label}.state.json"), **settings}

        sent_ones = [
            *asked,
            {**asked[-1], "tag": "last"},
        ]  # with the next one vLLM tells of a stop string's end

        def ask(at: int) -> None:
            data = json.dumps(body(sent_ones[at], max_tokens, seed=at)).encode()
            sent = urllib.request.Request(
                f"{url}/v1/chat/completions", data, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(sent, timeout=600) as answer:
                answer.read()

        with (
            engine.serve(model.prepare(), name=model.NAME, log=folder / f"{label}.log", settings=options,
                         max_num_seqs=SLOTS) as url,
            ThreadPoolExecutor(BURST) as pool,
        ):  # fmt: skip
            for at in range(0, len(asked), BURST):
                list(pool.map(ask, range(at, min(at + BURST, len(asked)))))
            ask(len(asked))
        done.touch()
    lines = map(json.loads, trace.read_text(encoding="utf-8").splitlines())
    return {line["tag"]: line for line in lines}


def fit(folder: Path, asked: Sequence[dict[str, Any]], lines: Mapping[str, Any], max_tokens: int) -> Path:
    """Train a ranker on what the first arm served; return its folder."""
    data = training.dataset([
        LogRow(
            conversation=one["tag"],
            messages=one["messages"],
            output_len=lines[one["tag"]]["output_tokens"],
            signals=Signals(max_tokens),
        )
        for one in asked
    ])  # fmt: skip
    ranker = training.fit("lexical", data.prompts, data.lengths, context=data.context, groups=data.groups)
    ranker.save(folder / "ranker")
    return folder / "ranker"


def mean_steps(asked: Sequence[dict[str, Any]], lines: Mapping[str, Any]) -> float:
    """Return the mean steps from arrival to end."""
    return float(
        np.mean([lines[one["tag"]]["finish_step"] - lines[one["tag"]]["arrival_step"] for one in asked])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--warm", type=int, default=300)
    parser.add_argument("--judged", type=int, default=90)
    parser.add_argument("--max-tokens", type=int, default=40)
    options = parser.parse_args()
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    asked = requests(options.warm + options.judged)
    warm, judged = asked[: options.warm], asked[options.warm :]
    plain = {"ranker": "", "learn": False}
    arrival = serve(folder, "fcfs", {"policy": "fcfs", **plain}, asked, options.max_tokens)
    ranker = fit(folder, warm, arrival, options.max_tokens)
    learned = serve(folder, "learner", {"policy": "spjf", "ranker": ""}, asked, options.max_tokens)
    told = {"policy": "spjf", "ranker": str(ranker), "learn": False}
    trained = serve(folder, "trained", told, judged, options.max_tokens)
    first, second, third = (mean_steps(judged, lines) for lines in (arrival, learned, trained))
    by_burst = [
        mean_steps(asked[at : at + BURST], learned) / mean_steps(asked[at : at + BURST], arrival)
        for at in range(0, len(asked), BURST)
    ]
    lengths = {
        app: float(np.mean([arrival[one["tag"]]["output_tokens"] for one in asked if one["app"] == app]))
        for app in SYSTEMS
    }
    found = {
        "finished_before": options.warm, "judged": len(judged), "mean_reply_tokens": lengths,
        "mean_steps": {"fcfs": first, "learner": second, "trained": third},
        "learner_share_of_trained_gain": (first - second) / (first - third),
        "learner_over_fcfs_by_burst": [round(one, 3) for one in by_burst],
        "versions": versions(),
    }  # fmt: skip
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
