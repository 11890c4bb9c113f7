"""`sooner generate --model --order arrival` beside vLLM's own `LLM.chat` and `vllm run-batch`, in turns.

    python benchmarks/generate_peers.py [--prompts 240] [--slots 48] [--pairs 4] [--commands 3]

The same prompts, every reply of `--max-tokens` tokens, of SmolLM2's tokenizer and one small random layer: the
less the model computes, the more everything beside it shows. Counted are engine steps and CPU seconds, which
other work on the machine moves little: in one process beside `LLM.chat`, arms in the order A B B A ..., and
whole commands, loading and all their processes included, beside `vllm run-batch`. Prints JSON; ratios are
ours to theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from generate_served import ENGINE, small_model
from sooner.demo import prompts
from sooner.demo.run import versions
from sooner.generate.inprocess import InProcess
from sooner.generate.job import OfflineJob
from sooner.generate.settings import JobSettings
from sooner.vllm.offline import SteppedEngine

NAMES = ("ours", "theirs")
Spent = tuple[float, int]  # CPU seconds and engine steps


async def ours(engine: InProcess, source: Path, out: Path) -> Spent:
    """Return what a job takes, from the file of prompts to the file of replies."""
    steps, cpu = engine.steps or 0, time.process_time()
    with OfflineJob(source, out, JobSettings(order="arrival", ranker="none")) as job:
        job.prepare(engine.model)
        report = await job.run([engine])
    spent = time.process_time() - cpu
    assert not report["failed"], report
    return spent, (engine.steps or 0) - steps


def theirs(stepped: SteppedEngine, source: Path, out: Path) -> Spent:
    """Return what vLLM's own offline call takes for the same, the file of replies included."""
    llm, steps = stepped.llm, 0
    step: Callable[[], Any] = llm.llm_engine.step

    def counted() -> Any:
        nonlocal steps
        steps += 1
        return step()

    cpu = time.process_time()
    bodies = [json.loads(line)["body"] for line in source.read_text(encoding="utf-8").splitlines()]
    params = []
    for body in bodies:
        one: Any = llm.get_default_sampling_params().clone()
        one.max_tokens, one.temperature, one.ignore_eos = body["max_tokens"], 0.0, True
        params.append(one)
    llm.llm_engine.step = counted  # type: ignore[method-assign]
    try:
        made = llm.chat([body["messages"] for body in bodies], params, use_tqdm=False)
    finally:
        llm.llm_engine.step = step  # type: ignore[method-assign]
    lines = [{"text": reply.outputs[0].text, "output_len": len(reply.outputs[0].token_ids)} for reply in made]
    out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return time.process_time() - cpu, steps


def command(words: list[str]) -> float:
    """Return the CPU seconds of a command and of all processes it started, as far as /proc showed them."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, start_new_session=True, **quiet)
    seen: dict[str, int] = {}
    while process.poll() is None:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            if int(fields[3]) == process.pid:
                seen[stat.parent.name] = int(fields[11]) + int(fields[12])
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{' '.join(words)} ended with {process.returncode}")
    return sum(seen.values()) / os.sysconf("SC_CLK_TCK")


def beside_run_batch(folder: Path, weights: Path, source: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Return whole commands' CPU seconds, pair by pair."""
    engine = settings(asked)
    flags = ["--load-format", "dummy", "--dtype", "float32", "--max-model-len", "2048", "--enforce-eager"]
    flags += ["--max-num-seqs", str(asked.slots)]
    pairs = []
    for pair in range(asked.commands):
        own, their = folder / f"own{pair}.jsonl", folder / f"their{pair}.jsonl"
        words = {
            "ours": [
                sys.executable, "-m", "sooner", "generate", str(source), "--out", str(own), "--model",
                str(weights), "--order", "arrival", "--ranker", "none", "--engine", json.dumps(engine),
            ],
            "theirs": [
                sys.executable, "-m", "vllm.entrypoints.cli.main", "run-batch", "-i", str(source), "-o",
                str(their), "--model", str(weights), "--served-model-name", "small", *flags,
            ],
        }  # fmt: skip
        pairs.append({name: command(words[name]) for name in (NAMES if pair % 2 else NAMES[::-1])})
        done = [sum(1 for _ in path.open(encoding="utf-8")) for path in (own, their)]
        assert done == [asked.prompts] * 2, done
    return {"cpu_s": pairs, "cpu_ratio": ratios([(each["ours"], each["theirs"]) for each in pairs])}


def ratios(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Return ours to theirs, pair by pair, and over all."""
    each = np.array(pairs)
    return {
        "pairs": (each[:, 0] / each[:, 1]).round(4).tolist(),
        "over_all": round(float(each[:, 0].sum() / each[:, 1].sum()), 4),
    }


def settings(asked: argparse.Namespace) -> dict[str, Any]:
    return {**ENGINE, "max_num_seqs": asked.slots}


async def beside_chat(folder: Path, weights: Path, source: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Return both arms' CPU seconds and steps on one engine, pair by pair."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that the engine's CPU seconds are this process's
    engine = InProcess(str(weights), settings(asked))
    await engine.start()
    del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]
    pairs = []
    try:
        theirs(engine.stepped, source, folder / "first")  # warms up
        for pair in range(asked.pairs):
            arms = {}
            for name in NAMES if pair % 2 else NAMES[::-1]:
                out = folder / f"{name}{pair}.jsonl"
                if name == "ours":
                    arms[name] = await ours(engine, source, out)
                else:
                    arms[name] = theirs(engine.stepped, source, out)
            pairs.append(arms)
    finally:
        await engine.close()
    return {
        "cpu_s": [{name: round(arms[name][0], 3) for name in NAMES} for arms in pairs],
        "cpu_ratio": ratios([(arms["ours"][0], arms["theirs"][0]) for arms in pairs]),
        "steps": [{name: arms[name][1] for name in NAMES} for arms in pairs],
        "steps_ratio": ratios([(arms["ours"][1], arms["theirs"][1]) for arms in pairs]),
    }


def main() -> None:
    """Run both comparisons and print their JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument("--slots", type=int, default=48)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=4, help="beside LLM.chat")
    parser.add_argument("--commands", type=int, default=3, help="pairs beside vllm run-batch")
    parser.add_argument("--out", type=Path, help="also write the JSON there: vLLM's log is on stdout too")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        weights, source = folder / "weights", folder / "batch.jsonl"
        small_model(weights)
        more = {"model": "small", "max_tokens": asked.max_tokens, "temperature": 0.0, "ignore_eos": True}
        lines = [
            {"custom_id": str(each.id), "method": "POST", "url": "/v1/chat/completions",
             "body": {"messages": list(each.messages), **more}}
            for each in prompts.held_out(asked.prompts)
        ]  # fmt: skip
        source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        result: dict[str, Any] = {"settings": {**vars(asked), "out": None}, "versions": versions()}
        result["beside LLM.chat"] = asyncio.run(beside_chat(folder, weights, source, asked))
        if asked.commands:
            result["beside vllm run-batch"] = beside_run_batch(folder, weights, source, asked)
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
