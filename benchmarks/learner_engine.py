"""An empty learner on the real vLLM, beside a ranker that was trained on the same two applications' traffic.

    python benchmarks/learner_engine.py --out FOLDER [--warm 300] [--judged 480] [--arms fcfs trained learner]

A model of one small layer and random weights, with SmolLM2-135M's tokenizer, on 6 slots of vLLM's CPU
engine serves bursts of 60 requests, half from each of two applications with a system prompt of its own.
What they say is noise. How long they are is a quarter (`full`) or a thirty-second (`quick`) of what SmolLM2
once answered to the same prompt, and nobody is told: a reply ends by itself. The engine is stepped by this
benchmark, without a server. Arms: arrival order; shortest predicted first with a ranker that was trained on
the first arm's first `--warm` replies and learns nothing; the same with no ranker and nothing learned
(`learner`), and with the shipped ranker and nothing learned (`beside`), as a fresh installation has it; the
last three once more in the default order. Judged are the bursts after `--warm` finished requests, in engine
steps, so that other work on the machine does not count. What an arm served stays in FOLDER, and is not
served again. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sooner import policies, training
from sooner.chat import Signals
from sooner.demo import model, prompts
from sooner.demo.run import versions
from sooner.metrics import kendall_tau
from sooner.workloads.logs import LogRow

BURST = 60
SLOTS = 6
LONGEST = 200  # letters of a prompt
MAX_TOKENS = 200  # of every request: the limit says nothing
END = 2  # SmolLM2's token that ends a reply
SYSTEMS = {
    "quick": "You answer in one short sentence.",
    "full": "You are a patient teacher. Explain in detail, step by step, with examples.",
}
SHARES = {"quick": 1 / 32, "full": 1 / 4}
ORDERS = {"": "spjf", "-default": policies.DEFAULT}
ARMS = ("fcfs", *(f"{kind}{order}" for order in ORDERS for kind in ("trained", "learner", "beside")))


class Asked(NamedTuple):
    """A request: which application sends it, and how long its reply will be [tokens]."""

    tag: str
    app: str
    messages: Sequence[dict[str, Any]]
    length: int


def requests(n: int) -> list[Asked]:
    """Return n requests of both applications, in bursts of mixed order."""
    short = [one for one in prompts.collected() if len(one.prompt.messages[-1]["content"]) <= LONGEST]
    rng, found = np.random.default_rng(0), []
    for burst in range(n // BURST):
        for at, app in enumerate(rng.permutation(list(SYSTEMS) * (BURST // 2)).tolist()):
            known = short[(burst * BURST + at) % len(short)]
            messages = [{"role": "system", "content": SYSTEMS[app]}, known.prompt.messages[-1]]
            length = max(2, round(known.output_len * SHARES[app]))
            found.append(Asked(f"{burst}-{at}", app, messages, length))
    return found


def small_model(folder: Path) -> None:
    """Write the configuration of a model as small as can be, with SmolLM2's tokenizer; it has no weights."""
    whole = model.prepare()
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    config |= {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 32,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def serve(folder: Path, label: str, settings: Mapping[str, Any], asked: Sequence[Asked]) -> dict[str, Any]:
    """Serve the requests in a process of its own; return the engine's lines by tag."""
    trace, done = folder / f"{label}.trace.jsonl", folder / f"{label}.done"
    if not done.exists():
        for path in folder.glob(f"{label}.*"):
            path.unlink()
        options = {"trace": str(trace), "state": str(folder / f"{label}.state.json"), **settings}
        process = multiprocessing.get_context("spawn").Process(
            target=engine, args=(folder, label, options, asked)
        )
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{label}: the engine ended with {process.exitcode}; see {folder / label}.log")
        done.touch()
    lines = {line["tag"]: line for line in map(json.loads, trace.read_text(encoding="utf-8").splitlines())}
    wrong = [one.tag for one in asked if not 0 <= lines[one.tag]["output_tokens"] - one.length <= 1]
    if wrong:
        raise SystemExit(f"{label}: {len(wrong)} of {len(asked)} replies have another length than meant")
    return lines


def engine(folder: Path, label: str, settings: Mapping[str, Any], asked: Sequence[Asked]) -> None:
    """Serve the requests in bursts, each when the last has ended. vLLM runs in this process, step by step."""
    with (folder / f"{label}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder / "model"), load_format="dummy", dtype="float32", max_model_len=2048,
        max_num_seqs=SLOTS, max_num_batched_tokens=2048, enable_chunked_prefill=False, enforce_eager=True,
        enable_prefix_caching=False, disable_log_stats=True, scheduler_cls="sooner.vllm.Scheduler",
        additional_config={"sooner": dict(settings)},
    )  # fmt: skip
    for at in range(0, len(asked), BURST):
        burst = asked[at : at + BURST]
        params = [
            SamplingParams(
                temperature=0.0, max_tokens=MAX_TOKENS, min_tokens=one.length, logit_bias={END: 100.0},
                extra_args={"user": one.app, "sooner_tag": one.tag},
            )
            for one in burst
        ]  # fmt: skip
        llm.chat([list(one.messages) for one in burst], params, use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()


def fit(folder: Path, asked: Sequence[Asked], lines: Mapping[str, Any]) -> Path:
    """Train a ranker on what the first arm served; return its folder."""
    data = training.dataset([
        LogRow(
            conversation=one.tag,
            messages=one.messages,
            output_len=lines[one.tag]["output_tokens"],
            signals=Signals(MAX_TOKENS),
        )
        for one in asked
    ])  # fmt: skip
    ranker = training.fit("lexical", data.prompts, data.lengths, context=data.context, groups=data.groups)
    ranker.save(folder / "ranker")
    return folder / "ranker"


def settings_of(arm: str, ranker: Path) -> dict[str, Any]:
    """Return the plugin's settings of an arm."""
    kind, _, order = arm.partition("-")
    if kind == "fcfs":
        return {"policy": "fcfs", "ranker": "", "learn": False}
    told = {
        "trained": {"ranker": str(ranker), "learn": False},
        "learner": {"ranker": ""},
        "beside": {"ranker": "default"},
    }
    return {"policy": ORDERS[f"-{order}" if order else ""], **told[kind]}


def mean_steps(asked: Sequence[Asked], lines: Mapping[str, Any]) -> float:
    """Return the mean steps from arrival to end."""
    return float(np.mean([lines[one.tag]["finish_step"] - lines[one.tag]["arrival_step"] for one in asked]))


def tau(asked: Sequence[Asked], lines: Mapping[str, Any]) -> float:
    """Return Kendall's tau of what was expected when a request ended, against its length."""
    told = np.array([lines[one.tag]["predicted_len"] for one in asked])
    return kendall_tau(told, np.array([float(one.length) for one in asked]))


def judged_arm(
    asked: Sequence[Asked], warm: int, arrival: Mapping[str, Any], lines: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what an arm is worth after `warm` requests, and burst by burst from the first."""
    bursts = [asked[at : at + BURST] for at in range(0, len(asked), BURST)]
    return {
        "mean_steps": mean_steps(asked[warm:], lines),
        "over_fcfs": mean_steps(asked[warm:], lines) / mean_steps(asked[warm:], arrival),
        "kendall_tau": tau(asked[warm:], lines),
        "over_fcfs_by_burst": [
            round(mean_steps(burst, lines) / mean_steps(burst, arrival), 3) for burst in bursts
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--warm", type=int, default=300)
    parser.add_argument("--judged", type=int, default=480)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options = parser.parse_args()
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    small_model(folder / "model")
    asked, warm = requests(options.warm + options.judged), options.warm
    arrival = serve(folder, "fcfs", settings_of("fcfs", folder), asked)
    ranker = fit(folder, asked[:warm], arrival)
    found = {
        arm: judged_arm(asked, warm, arrival, serve(folder, arm, settings_of(arm, ranker), asked))
        for arm in options.arms
    }
    gains = {arm: 1.0 - one["over_fcfs"] for arm, one in found.items() if arm != "fcfs"}
    result = {
        "finished_before": warm, "judged": len(asked) - warm, "slots": SLOTS, "burst": BURST,
        "mean_reply_tokens": {
            app: float(np.mean([one.length for one in asked if one.app == app])) for app in SYSTEMS
        },
        "share_of_trained_gain": {
            arm: gain / gains[trained] for arm, gain in gains.items()
            if (trained := "-".join(["trained", *arm.split("-")[1:]])) in gains and arm != trained
        },
        "arms": found, "versions": versions(),
    }  # fmt: skip
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
