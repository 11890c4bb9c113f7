"""What `sooner generate` brings on the real vLLM, with the reply lengths of the whole SmolLM2-135M.

    python benchmarks/generate_served.py [--prompts 400] [--groups 60] [--samples 8] [--slots 48] [--draws 3]

Arms are compared in engine steps, which hang on how long replies are and not on what they say. So how long
they are is what the whole model said, sample by sample, at temperature 0.6, cut at 512 tokens
(`demo_held_out_lengths.jsonl.gz` for one sample a prompt, `generate_sibling_lengths.jsonl.gz` for eight: ids
and numbers), and what says it is a model of one small random layer, which speaks noise of just that length.
All else is as with `sooner generate --model`: prompts, tokenizer, chat template, ranker, vLLM, order, turns.
The ranker is the demo's, trained on the model's replies to other prompts. Ratios are to the same goal in
arrival order. Each arm's report is in `--work` as soon as it is there; the same command goes on. Prints JSON.

With `--emulated` the same jobs are played on an emulated engine of as many slots: seconds, not an hour.
`--collect` makes the file of eight samples anew, by a job of the whole model (an hour or two, gone on with).
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from generate_simulated import play
from sooner.demo import model, prompts
from sooner.demo.run import TEMPERATURE, fit_ranker, versions
from sooner.generate.engines import Answer, Begun, Told
from sooner.generate.goals import Goal
from sooner.generate.inprocess import InProcess
from sooner.generate.job import OfflineJob
from sooner.generate.prompts import Ask
from sooner.generate.settings import JobSettings
from sooner.sim.cost import Engine

HERE = Path(__file__).parent
ONE, EIGHT = HERE / "demo_held_out_lengths.jsonl.gz", HERE / "generate_sibling_lengths.jsonl.gz"
CAP, HELD_OUT = 512, 788
ENGINE = {"load_format": "dummy", "dtype": "float32", "max_model_len": 2048, "enforce_eager": True}
SMALL = {
    "hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 128, "num_hidden_layers": 1,
}  # fmt: skip
Lengths = Mapping[tuple[str, int], int]


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def lengths(path: Path) -> dict[tuple[str, int], int]:
    """Return the known lengths by id and number of the sample."""
    rows = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    return {(row["id"], row.get("sample", 0)): min(row["output_len"], CAP) for row in rows}


def small_model(folder: Path) -> None:
    """Write SmolLM2's tokenizer and the shape of a model that computes next to nothing."""
    if not folder.exists():
        whole = model.prepare()
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
        config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, **SMALL}), encoding="utf-8")


class Forced(InProcess):
    """vLLM in this process, whose replies are as long as is known: of each id, its samples as they come."""

    def __init__(self, model: str, settings: Mapping[str, Any]) -> None:
        super().__init__(model, settings, stream=True)
        self.known: Lengths = {}
        self._came: dict[str, int] = {}
        self._number: dict[int, int] = {}

    def forget(self, known: Lengths) -> None:
        """Begin anew, with these lengths."""
        self.known, self._came = known, {}

    async def reply(self, ask: Ask, told: Told | None, begun: Begun | None = None) -> Answer | Begun:
        """Return a reply of the known length, whoever says it."""
        name = str(ask.id)
        if begun is None:
            number = self._came[name] = self._came.get(name, -1) + 1
        else:
            number = self._number.pop(id(begun))
        body = {**ask.body, "max_tokens": self.known[name, number], "ignore_eos": True, "temperature": 0.0}
        made = await super().reply(ask._replace(body=body), told, begun)
        if isinstance(made, Begun):
            self._number[id(made)] = number
        return made


def write(path: Path, n: int, draw: int) -> None:
    """Write n of the held-out prompts, others for each draw."""
    if not path.exists():
        chosen = np.random.default_rng(draw).permutation(HELD_OUT)[:n]
        there = prompts.held_out(HELD_OUT)
        lines = [{"id": there[at].id, "messages": list(there[at].messages)} for at in chosen]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


async def arm(
    engine: Forced | Engine, folder: Path, source: Path, name: str, known: Lengths, **settings: Any
) -> dict[str, Any]:
    """Return the report of one job on an engine, from disk where it was run before."""
    kept = folder / f"{name}.json"
    if not kept.exists():
        with OfflineJob(source, folder / f"{name}.jsonl", JobSettings(max_tokens=CAP, **settings)) as job:
            job.forget()
            job.prepare("SmolLM2")
            if isinstance(engine, Engine):
                report = emulated(job, engine, known)
            else:
                engine.forget(known)
                report = await job.run([engine])
        kept.write_text(json.dumps(report), encoding="utf-8")
    report = json.loads(kept.read_text(encoding="utf-8"))
    say(f"{name}: {report['goal_steps']} steps, {report['made_room']} made room")
    return dict(report)


def emulated(job: OfflineJob, cost: Engine, known: Lengths) -> dict[str, Any]:
    """Play a job's course on an emulated engine; return what of its report is compared."""
    each = job.settings.samples
    names = [str(ask.id) for ask in job.file.scan()]
    work = {
        "true": [known[name, number] for name in names for number in range(each)],
        "prompt": job.known.prompt_len.repeat(each),
    }
    return {**play(job.course, work, cost), "estimated_mean_len": None}


def goals(asked: argparse.Namespace, ranker: str) -> list[tuple[str, Goal, dict[str, Any]]]:
    """Return the arms: their names, goals and settings; those of several samples are on fewer prompts."""
    quarter, siblings = asked.prompts // 4, {"ranker": "none", "samples": asked.samples}
    arms: list[tuple[str, Goal, dict[str, Any]]] = [
        ("all, with a ranker", Goal(), {"ranker": ranker}),
        ("sample a quarter", Goal(kind="sample", n=quarter), {"ranker": ranker}),
        ("first quarter", Goal(kind="first", n=quarter), {"ranker": ranker}),
        ("first quarter, no controls", Goal(kind="first", n=quarter, control=0.0), {"ranker": ranker}),
        ("all, with siblings", Goal(), siblings),
    ]
    if asked.more:
        arms += [
            ("all, with a ranker, no turns", Goal(), {"ranker": ranker, "turns": False}),
            ("all, nothing told", Goal(), {"ranker": "none"}),
            ("all, with siblings, no turns", Goal(), {**siblings, "turns": False}),
        ]
    return arms if EIGHT.exists() else [each for each in arms if "samples" not in each[2]]


async def one_draw(
    engine: Forced | Engine, asked: argparse.Namespace, draw: int, found: dict[str, dict[str, list[float]]]
) -> None:
    """Run every goal in arrival order and in ours."""
    folder = asked.work
    many, few = folder / f"many{draw}.jsonl", folder / f"few{draw}.jsonl"
    write(many, asked.prompts, draw)
    write(few, asked.groups, draw)
    one, eight = lengths(ONE), lengths(EIGHT) if EIGHT.exists() else {}
    for name, goal, more in goals(asked, str(folder / "ranker")):
        source, known = (few, eight) if "samples" in more else (many, one)
        plain = Goal(kind=goal.kind, n=goal.n, control=0.0)
        label = f"{draw}-{plain}-{more.get('samples', 1)}-arrival".replace(" ", "-")
        by_arrival = {**more, "ranker": "none", "goal": plain, "order": "arrival", "seed": draw}
        base = await arm(engine, folder, source, label, known, **by_arrival)
        label = f"{draw}-{name}".replace(" ", "-").replace(",", "")
        ours = await arm(engine, folder, source, label, known, goal=goal, seed=draw, **more)
        row = found.setdefault(name, {})
        for key, value in (
            ("goal_steps", round(ours["goal_steps"] / base["goal_steps"], 3)),
            ("until_controls_ended", round(ours["steps"] / base["goal_steps"], 3)),
            ("steps", [ours["goal_steps"], base["goal_steps"]]),
            ("made_room", ours["made_room"]),
            ("kept_mean_len", [ours["kept_mean_len"], base["kept_mean_len"]]),
            ("estimated_mean_len", ours["estimated_mean_len"]),
        ):
            row.setdefault(key, []).append(value)


async def run(asked: argparse.Namespace) -> dict[str, Any]:
    """Run the arms that are not there yet, on the engine that was asked for; return all ratios."""
    asked.work.mkdir(parents=True, exist_ok=True)
    if not (asked.work / "ranker").exists():
        fit_ranker(asked.work / "ranker", asked.ranker, CAP, say)
    small_model(asked.work / "weights")
    engine: Forced | Engine
    if asked.emulated:
        engine = Engine(name="slots", max_num_seqs=asked.slots, num_blocks=1_000_000)
    else:
        engine = Forced(str(asked.work / "weights"), {**ENGINE, "max_num_seqs": asked.slots})
        await engine.start()
    found: dict[str, dict[str, list[float]]] = {}
    try:
        for draw in range(asked.draws):
            await one_draw(engine, asked, draw, found)
            say(json.dumps({name: row["goal_steps"] for name, row in found.items()}))
    finally:
        if isinstance(engine, Forced):
            await engine.close()
    return found


async def collect(asked: argparse.Namespace) -> None:
    """Let the whole model say `samples` replies to each prompt of all draws; keep how long they are."""
    asked.work.mkdir(parents=True, exist_ok=True)
    settings = JobSettings(samples=asked.samples, ranker="none", max_tokens=CAP, temperature=TEMPERATURE)
    whole = {"dtype": "bfloat16", "max_model_len": 2048, "enforce_eager": True, "max_num_seqs": 128}
    engine = InProcess(str(model.prepare()), whole, stream=True)
    await engine.start()
    rows = []
    try:
        for draw in range(asked.draws):
            source, out = asked.work / f"few{draw}.jsonl", asked.work / f"said{draw}.jsonl"
            write(source, asked.groups, draw)
            with OfflineJob(source, out, settings) as job:
                job.prepare("SmolLM2")
                await job.run([engine])
            said = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
            rows += [{key: line[key] for key in ("id", "sample", "output_len")} for line in said]
    finally:
        await engine.close()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    EIGHT.write_bytes(gzip.compress(text.encode(), mtime=0))


def main() -> None:
    """Run what is not there yet and print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--groups", type=int, default=60)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--slots", type=int, default=48)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--ranker", default="lexical", choices=["lexical", "blend"])
    parser.add_argument("--emulated", action="store_true", help="on an emulated engine")
    parser.add_argument("--collect", action="store_true", help="make the file of eight samples anew")
    parser.add_argument("--more", action="store_true", help="also without a ranker, and without turns")
    parser.add_argument("--work", type=Path, default=Path("generate_served.work"))
    parser.add_argument("--out", type=Path, help="also write the JSON there: vLLM's log is on stdout too")
    asked = parser.parse_args()
    if asked.collect:
        asyncio.run(collect(asked))
        return
    found = asyncio.run(run(asked))
    settings = {name: value for name, value in vars(asked).items() if name not in ("work", "out")}
    told = {"settings": settings, "versions": versions(), "ratios_to_arrival_order": found}
    if asked.out:
        asked.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
