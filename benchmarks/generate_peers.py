"""`sooner generate --model --order arrival` beside vLLM's own `LLM.chat`, on one engine, in turns.

    python benchmarks/generate_peers.py [--prompts 100] [--slots 32] [--max-tokens 128] [--pairs 3]

The same prompts and seeds, arms in the order A B B A ..., wall seconds; run it on a quiet machine. The last
line printed is the JSON: the ratio of ours to theirs, pair by pair.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from sooner.demo import model, prompts
from sooner.demo.run import TEMPERATURE
from sooner.generate.inprocess import InProcess
from sooner.generate.job import OfflineJob
from sooner.generate.settings import JobSettings
from sooner.replay.client import seed_of
from sooner.vllm.offline import SteppedEngine


async def ours(engine: InProcess, source: Path, out: Path, asked: argparse.Namespace) -> tuple[float, int]:
    """Return the seconds and the tokens of a job; reading the prompts counts."""
    settings = JobSettings(
        order="arrival", ranker="none", max_tokens=asked.max_tokens, temperature=TEMPERATURE, seed_base=0
    )
    start = time.monotonic()
    with OfflineJob(source, out, settings) as job:
        job.prepare(engine.model)
        report = await job.run([engine])
    return time.monotonic() - start, round(report["kept"] * report["kept_mean_len"])


def theirs(stepped: SteppedEngine, source: Path, asked: argparse.Namespace) -> tuple[float, int]:
    """Return the seconds and the tokens of vLLM's own offline call."""
    start = time.monotonic()
    lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    params = []
    for line in lines:
        one: Any = stepped.llm.get_default_sampling_params().clone()
        one.max_tokens, one.temperature = asked.max_tokens, TEMPERATURE
        one.seed = seed_of(f"{line['id']}/0", 0)
        params.append(one)
    made = stepped.llm.chat([line["messages"] for line in lines], params, use_tqdm=False)
    return time.monotonic() - start, sum(len(reply.outputs[0].token_ids) for reply in made)


async def run(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source = folder / "prompts.jsonl"
    lines = [{"id": each.id, "messages": list(each.messages)} for each in prompts.held_out(asked.prompts)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    settings = {
        "dtype": "float32", "max_model_len": 2048, "max_num_seqs": asked.slots, "enforce_eager": True,
        "enable_chunked_prefill": False, "max_num_batched_tokens": 2048, "enable_prefix_caching": False,
    }  # fmt: skip
    engine = InProcess(str(model.prepare()), settings)
    await engine.start()
    pairs = []
    try:
        stepped = engine.stepped
        theirs(stepped, source, asked)  # the first one warms up
        for pair in range(asked.pairs):
            arms = {}
            for name in ("ours", "theirs") if pair % 2 else ("theirs", "ours"):
                if name == "ours":
                    arms[name] = await ours(engine, source, folder / f"out{pair}.jsonl", asked)
                else:
                    arms[name] = theirs(stepped, source, asked)
            pairs.append(arms)
    finally:
        await engine.close()
    return {
        "settings": vars(asked),
        "seconds_of_ours_to_theirs": [round(arms["ours"][0] / arms["theirs"][0], 4) for arms in pairs],
        "tokens": [[arms["ours"][1], arms["theirs"][1]] for arms in pairs],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(run(asked, Path(folder)))))


if __name__ == "__main__":
    main()
