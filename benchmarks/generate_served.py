"""What `sooner generate` brings on the real vLLM: SmolLM2 in this process, the same requests each time.

    python benchmarks/generate_served.py [--prompts 400] [--groups 60] [--samples 8] [--slots 32] [--draws 3]

One engine, loaded once, serves every arm; arms are compared in engine steps, which no other work on the
machine moves. The ranker is the demo's, trained on the model's own replies to other prompts. Each arm is a
job of its own in a folder that is thrown away. Prints JSON: ratios to the same goal in arrival order, a
list of the draws.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from sooner.demo import model, prompts
from sooner.demo.run import TEMPERATURE, fit_ranker
from sooner.generate.goals import Goal
from sooner.generate.inprocess import InProcess
from sooner.generate.job import OfflineJob
from sooner.generate.settings import JobSettings


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def write(path: Path, n: int, draw: int) -> None:
    """Write n held-out prompts, others for each draw as far as they reach."""
    there = prompts.held_out(min(n * (draw + 1), 788))
    lines = [{"id": each.id, "messages": list(each.messages)} for each in there[-n:]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


async def arm(engine: InProcess, folder: Path, source: Path, **settings: Any) -> dict[str, Any]:
    """Run one job on the engine that is loaded; its steps are counted from its own beginning."""
    name = "-".join(str(settings.get(key, "")) for key in ("goal", "order", "ranker")).replace("/", "_")[-80:]
    chosen = JobSettings(temperature=TEMPERATURE, **settings)
    with OfflineJob(source, folder / f"{source.stem}{chosen.samples}{name}.jsonl", chosen) as job:
        job.prepare(engine.model)
        report = await job.run([engine])
    say(f"  {chosen.goal}, {chosen.order}, K={chosen.samples}: {report['goal_steps']} steps")
    return report


async def run(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    ranker = folder / "ranker"
    fit_ranker(ranker, "lexical", asked.max_tokens, say)
    engine = InProcess(
        str(model.prepare()),
        {
            "dtype": "float32", "max_model_len": 2048, "max_num_seqs": asked.slots, "enforce_eager": True,
            "enable_chunked_prefill": False, "max_num_batched_tokens": 2048, "enable_prefix_caching": False,
        },
        stream=True,
    )  # fmt: skip
    found: dict[str, dict[str, list[float]]] = {}
    await engine.start()
    try:
        for draw in range(asked.draws):
            await one_draw(engine, folder, asked, draw, str(ranker), found)
            say(json.dumps(found))
    finally:
        await engine.close()
    return found


async def one_draw(
    engine: InProcess, folder: Path, asked: argparse.Namespace, draw: int, ranker: str,
    found: dict[str, dict[str, list[float]]],
) -> None:  # fmt: skip
    """Run every goal in arrival order and in ours."""
    many, few = folder / f"many{draw}.jsonl", folder / f"few{draw}.jsonl"
    write(many, asked.prompts, draw)
    write(few, asked.groups, draw)
    quarter = asked.prompts // 4
    both = {"max_tokens": asked.max_tokens, "seed_base": draw, "seed": draw}
    pairs: list[tuple[str, Path, Goal, dict[str, Any]]] = [
        ("all, with a ranker", many, Goal(), {"ranker": ranker}),
        ("all, siblings only", few, Goal(), {"ranker": "none", "samples": asked.samples}),
        ("all, siblings and a ranker", few, Goal(), {"ranker": ranker, "samples": asked.samples}),
        ("sample a quarter", many, Goal(kind="sample", n=quarter), {"ranker": ranker}),
        ("first quarter", many, Goal(kind="first", n=quarter), {"ranker": ranker}),
    ]
    bases: dict[tuple[str, str, int], dict[str, Any]] = {}
    for name, source, goal, more in pairs:
        plain = Goal(kind=goal.kind, n=goal.n, control=0.0)
        key = (source.name, str(plain), more.get("samples", 1))
        if key not in bases:
            settings = {**more, **both, "ranker": "none", "goal": plain, "order": "arrival"}
            bases[key] = await arm(engine, folder, source, **settings)
        ours, base = await arm(engine, folder, source, goal=goal, **more, **both), bases[key]
        row = found.setdefault(name, {})
        row.setdefault("goal_steps", []).append(round(ours["goal_steps"] / base["goal_steps"], 3))
        row.setdefault("until_controls_ended", []).append(round(ours["steps"] / base["goal_steps"], 3))
        row.setdefault("kept_mean_len", []).append(ours["kept_mean_len"])
        row.setdefault("kept_mean_len_by_arrival", []).append(base["kept_mean_len"])
        row.setdefault("estimated_mean_len", []).append(ours["estimated_mean_len"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--groups", type=int, default=60)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--draws", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(asked, Path(folder)))
    print(json.dumps({"settings": vars(asked), "ratios_to_arrival_order": found}))


if __name__ == "__main__":
    main()
