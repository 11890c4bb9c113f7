"""The papers' rankers trained on the same rows and judged on the same rows, beside what the papers say."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sooner import rankers
from sooner import training as train
from sooner.core import DataError, UnknownName
from sooner.judging import certainty, measures
from sooner.metrics import kendall_tau, pairwise_accuracy
from sooner.rankers import Ranker
from sooner.rankers.neural import encoding
from sooner.rankers.papers.head import Classifier

_TIMED = 64  # requests scored to time one


class Entrant(NamedTuple):
    """One ranker of the comparison: its settings, and what its paper reports for it."""

    ranker: str
    settings: Mapping[str, Any] = {}
    encoded: bool = False  # takes the comparison's encoder
    paper: str = ""
    reported: str = ""  # figures that the paper, its release or a rerun gives, with their data


class Standing(NamedTuple):
    """What one arm did here. Figures that an arm does not have are None."""

    name: str
    kendall_tau: float
    kendall_tau_se: float
    pairwise_accuracy: float
    class_accuracy: float | None
    rmse: float
    train_cpu_s: float | None
    ms_per_request: float


class PaperClaim(NamedTuple):
    """What a paper says about its arms, and what became of it here, in one of the words of `outcome`.

    `held` is None where the arms were not run, and where they differ by less than the larger of their
    standard errors (of RMSE: by less than 1 %).
    """

    paper: str
    claim: str
    held: bool | None
    outcome: str  # "held", "did not hold", "too close to call", "not run"
    here: str


_LTR, _SSJF, _PARS, _MAGNUS = "vllm-ltr", "SSJF", "PARS", "Magnus"
_BUCKET = "ShareGPT, Llama-3-70B, OPT-350M: accuracy {}, tau {}"

ARMS: dict[str, Entrant] = {
    "prompt_length": Entrant("prompt_length"),
    "lexical": Entrant("lexical"),
    "boosted": Entrant("boosted"),
    "ltr": Entrant("ltr", {}, True, _LTR, "ShareGPT, Llama-3-8B, OPT-125M: tau 0.52"),
    "buckets 820": Entrant("buckets", {"size": 820}, True, _LTR, _BUCKET.format("85.1 %", 0.24)),
    "buckets 100": Entrant("buckets", {"size": 100}, True, _LTR, _BUCKET.format("28.1 %", 0.49)),
    "buckets 10": Entrant("buckets", {"size": 10}, True, _LTR, _BUCKET.format("4.7 %", 0.46)),
    "buckets 1": Entrant("buckets", {"size": 1}, True, _LTR, _BUCKET.format("1.0 %", 0.32)),
    "pars": Entrant(
        "pars", {}, True, _PARS, "LMSYS, BERT, an independent rerun: tau 0.596 (ListMLE on OPT: 0.559)"
    ),
    "ssjf regression l1": Entrant("ssjf", {"task": "regression", "distance": "l1"}, True, _SSJF),
    "ssjf regression mse": Entrant("ssjf", {"task": "regression", "distance": "mse"}, True, _SSJF),
    "ssjf classes3": Entrant(
        "ssjf",
        {"task": "classes3"},
        True,
        _SSJF,
        "LMSYS, Vicuna-13B, BERT, released predictions: accuracy 80.7 %, tau 0.567",
    ),
    "ssjf classes5": Entrant(
        "ssjf",
        {"task": "classes5"},
        True,
        _SSJF,
        "LMSYS, Vicuna-13B, BERT, released predictions: accuracy 60.0 %, tau 0.635",
    ),
    "ssjf ordinal3": Entrant("ssjf", {"task": "ordinal3"}, True, _SSJF),
    "ssjf ordinal5": Entrant("ssjf", {"task": "ordinal5"}, True, _SSJF),
    "magnus uilo": Entrant("magnus", {"variant": "uilo"}, True, _MAGNUS),
    "magnus inst": Entrant("magnus", {"variant": "inst"}, True, _MAGNUS),
    "magnus usin": Entrant("magnus", {"variant": "usin"}, True, _MAGNUS),
    "transformer": Entrant("transformer"),
    "blend": Entrant("blend"),
}

QUICK = tuple(name for name in ARMS if name not in ("transformer", "blend"))
"""The arms that train in a minute or two each on a CPU."""


def compare(
    known: train.Dataset,
    unseen: train.Dataset,
    *,
    arms: Sequence[str] = QUICK,
    trained: Sequence[str] = (),
    encoder: str = encoding.DEFAULT_ENCODER,
    seed: int = 0,
    progress: Callable[[float, str], None] = lambda done, words: None,
) -> dict[str, Any]:
    """Return each arm's figures and the papers' claims; repeated prompts are merged, leaks left out.

    `trained` names folders of rankers that are judged as they are, beside the arms; `encoder` may be such a
    folder too, and the arms then learn heads on its encoder. That neither has seen the test rows is for
    the caller to know. Raises UnknownName for an arm, DataError where nothing is left to test on.
    """
    for name in arms:
        if name not in ARMS:
            raise UnknownName("arm", name, ARMS)
    known, unseen = train.merged(known), _unseen(train.merged(known), train.merged(unseen))
    shared, encode_s = (
        _encoded(encoder, known, seed) if any(ARMS[name].encoded for name in arms) else (None, 0.0)
    )
    rows = []
    for number, name in enumerate(arms):
        progress(number / len(arms), name)
        rows.append(_run(name, known, unseen, shared, encode_s, seed))
    rows += [_judged(place, rankers.load(place), unseen, None, None, seed) for place in trained]
    progress(1.0, "done")
    cited = {row.name: ARMS.get(row.name, Entrant("")) for row in rows}
    return {
        "train_rows": len(known.prompts),
        "test_rows": len(unseen.prompts),
        "encoder": encoder,
        "encoder_trained": encoding.trained(encoder),
        "arms": [
            {**row._asdict(), "paper": cited[row.name].paper, "reported": cited[row.name].reported}
            for row in rows
        ],
        "claims": [claim._asdict() for claim in claims({row.name: row for row in rows})],
    }


def _unseen(known: train.Dataset, unseen: train.Dataset) -> train.Dataset:
    """The rows of `unseen` that share neither conversation nor prompt with `known`."""
    groups, prompts = set(known.groups), set(known.prompts)
    apart = [
        i
        for i, (group, prompt) in enumerate(zip(unseen.groups, unseen.prompts, strict=True))
        if group not in groups and prompt not in prompts
    ]
    if len(apart) < 2:
        raise DataError(f"{len(apart)} test rows share nothing with the training rows; allowed: at least 2")
    return unseen.take(apart)


def _encoded(encoder: str, known: train.Dataset, seed: int) -> tuple[encoding.Remembered, float]:
    """The encoder with the training prompts' vectors remembered, and the CPU seconds these took."""
    start = time.process_time()
    shared = encoding.Remembered(encoding.start(encoder, known.prompts, seed=seed))
    shared(known.prompts)
    return shared, time.process_time() - start


def _run(
    name: str,
    known: train.Dataset,
    unseen: train.Dataset,
    shared: encoding.Remembered | None,
    encode_s: float,
    seed: int,
) -> Standing:
    arm = ARMS[name]
    settings = {**arm.settings, "encoder": shared} if arm.encoded else dict(arm.settings)
    start = time.process_time()
    ranker: Ranker = rankers.create(arm.ranker, seed=seed, **settings)
    ranker.fit(known.prompts, known.lengths, context=known.context, groups=known.groups)
    spent = time.process_time() - start + (encode_s if arm.encoded else 0.0)
    sorts = isinstance(ranker, Classifier) and arm.settings.get("task") != "regression"
    accuracy = ranker.accuracy(unseen.prompts, unseen.lengths) if sorts else None  # type: ignore[attr-defined]
    return _judged(name, ranker, unseen, accuracy, spent, seed)


def _judged(
    name: str,
    ranker: Ranker,
    unseen: train.Dataset,
    accuracy: float | None,
    train_cpu_s: float | None,
    seed: int,
) -> Standing:
    scores = ranker.predict(unseen.prompts, context=unseen.context)
    lengths = ranker.predict_len(unseen.prompts, context=unseen.context)
    return Standing(
        name,
        kendall_tau(scores, unseen.lengths),
        certainty.tau_error(scores, unseen.lengths, unseen.groups, seed=seed),
        pairwise_accuracy(scores, unseen.lengths),
        accuracy,
        float(np.sqrt(np.mean((lengths - unseen.lengths) ** 2))),
        train_cpu_s,
        _ms(ranker, unseen),
    )


def _ms(ranker: Ranker, data: train.Dataset) -> float:
    """CPU milliseconds a request of a copy from disk, which remembers nothing."""
    with tempfile.TemporaryDirectory() as folder:
        ranker.save(folder)
        return measures.cpu_ms(rankers.load(folder), data, 1, rows=_TIMED)


def claims(rows: Mapping[str, Standing]) -> list[PaperClaim]:
    """Return what the papers claim of these arms, and what became of it here."""
    buckets = [f"buckets {size}" for size in (820, 100, 10, 1)]
    classes = ["ssjf classes5", "ssjf classes3"]
    forests = ["magnus usin", "magnus inst", "magnus uilo"]

    def claim(paper: str, words: str, needs: Sequence[str], *steps: tuple[str, str, str]) -> PaperClaim:
        """`steps` are (measure, the arm that has more of it, the other)."""
        if any(name not in rows for name in needs):
            return PaperClaim(paper, words, None, "not run", "")
        found = [_more(measure, rows[a], rows[b]) for measure, a, b in steps]
        held = False if False in found else None if None in found else True
        outcome = {True: "held", False: "did not hold", None: "too close to call"}[held]
        return PaperClaim(paper, words, held, outcome, "; ".join(_told(rows[name]) for name in needs))

    others = buckets[1:]
    return [
        claim(
            _LTR,
            "ranking orders better than every choice of buckets",
            ["ltr", *buckets],
            *(("kendall_tau", "ltr", name) for name in buckets),
        ),
        claim(
            _LTR,
            "ten buckets are the most accurate and order worst",
            buckets,
            *(("class_accuracy", "buckets 820", name) for name in others),
            *(("kendall_tau", name, "buckets 820") for name in others),
        ),
        claim(
            _LTR,
            "of the buckets, those of 100 tokens order best",
            buckets,
            *(("kendall_tau", "buckets 100", name) for name in ("buckets 820", "buckets 10", "buckets 1")),
        ),
        claim(
            _LTR,
            "buckets of 1 token order worse than those of 10",
            buckets[2:],
            ("kendall_tau", "buckets 10", "buckets 1"),
        ),
        claim(
            _PARS,
            "pairs with a margin order better than ListMLE",
            ["pars", "ltr"],
            ("kendall_tau", "pars", "ltr"),
        ),
        claim(
            _SSJF,
            "five classes order better than three, and are predicted less accurately",
            classes,
            ("kendall_tau", "ssjf classes5", "ssjf classes3"),
            ("class_accuracy", "ssjf classes3", "ssjf classes5"),
        ),
        claim(
            _MAGNUS,
            "the error falls from length alone, to the instruction's meaning, to the user input's",
            forests,
            ("rmse", "magnus inst", "magnus usin"),
            ("rmse", "magnus uilo", "magnus inst"),
        ),
    ]


def _more(measure: str, a: Standing, b: Standing) -> bool | None:
    """Whether `a` has more of a measure than `b`; None where that is too close to call."""
    x, y = getattr(a, measure), getattr(b, measure)
    near = {
        "kendall_tau": max(a.kendall_tau_se, b.kendall_tau_se),
        "rmse": 0.01 * max(a.rmse, b.rmse),
        "class_accuracy": 0.01,
    }[measure]
    return bool(x > y) if abs(x - y) >= near else None


def _told(row: Standing) -> str:
    accuracy = "" if row.class_accuracy is None else f", accuracy {row.class_accuracy:.1%}"
    error = f", RMSE {row.rmse:.0f}" if row.name.startswith("magnus") else ""
    return f"{row.name}: tau {row.kendall_tau:.3f}{accuracy}{error}"
