"""Magnus's ladder: from plain static batches to predicted lengths, adaptive batches and HRRN."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sooner import metrics, policies
from sooner.reproduce.magnus_claims import MagnusRuns, claims, figures, rows
from sooner.reproduce.result import Reproduction
from sooner.sim.cost import Engine
from sooner.sim.engine import simulate
from sooner.sim.static import Bilinear, Counts
from sooner.sim.systems import magnus, magnus_apps
from sooner.sim.systems.magnus_learning import VARIANTS, LengthPredictor, Prompts
from sooner.workloads.columns import Workload

TRUTH = Bilinear(prefill=(2e-4, 0.0, 0.0, 0.045), decode=(1e-6, 5e-4, 0.0, 0.045))
"""What ChatGLM-6B batches take on one V100, assumed: 45 ms a step, 0.5 ms a row, 1 us a cached token."""
FOUR_BIT_STEP, FOUR_BIT_REPLY, FOUR_BIT_BYTES = 1.3, 1.15, 8.8e9
"""VSQ, assumed: steps 30 % slower, replies 15 % longer, and this much more memory for the cache."""
RECALLED = 50_000.0
"""The threshold of WMA as it is recalled; at these lengths it lets almost any two join."""
SETTINGS = magnus.MagnusSettings(threshold=20_000.0)
HISTORY, SERVED = 1000, 1500
RATES = (1.0, 4.0, 8.0, 16.0)
BUSY = RATES[-1]


class Draw(NamedTuple):
    """One draw of the service: requests at 1 req/s, their prompts, and a predictor trained on its past."""

    service: magnus_apps.Service
    prompts: Prompts
    predictor: LengthPredictor


def ladder(seed: int, report: Callable[[str], None]) -> Reproduction:
    """Run every rung and baseline at each load, then the control, the drift and the predictors alone."""
    plain = _draw(seed)
    loads: dict[float, dict[str, dict[str, float]]] = {}
    for rate in RATES:
        report(f"magnus-ladder: {rate:g} req/s")
        arms = {arm: magnus.measures(_serve(plain, arm, rate, seed)) for arm in magnus.LADDER}
        loads[rate] = {
            **arms,
            "VSQ": _quantised(plain, rate, seed),
            "CCB": _continuous(plain, rate, SETTINGS.fixed_rows),
            "CCB, no cap": _continuous(plain, rate, 256),
        }
    report("magnus-ladder: control, drift, predictors")
    unrelated = _draw(seed, unrelated=True)
    control = {arm: magnus.measures(_serve(unrelated, arm, BUSY, seed)) for arm in ("VS", "GLP")}
    summed = replace(SETTINGS, aggregate="sum", threshold=20 * SETTINGS.threshold)
    recalled = replace(SETTINGS, threshold=RECALLED)
    drifting = _draw(seed, drift_after=HISTORY + SERVED // 4)
    found = MagnusRuns(
        loads=loads,
        control=control,
        summed=magnus.measures(_serve(plain, "Magnus", BUSY, seed, settings=summed)),
        recalled={
            arm: magnus.measures(_serve(plain, arm, BUSY, seed, settings=recalled)) for arm in magnus.LADDER
        },
        rmse=_rmse(plain),
        learning=_serve(drifting, "Magnus", 1.0, seed),
        frozen=_serve(drifting, "Magnus", 1.0, seed, learning=False),
    )
    return Reproduction(
        name="magnus-ladder",
        title="Magnus: throughput and response from fixed batches to HRRN",
        paper="Magnus (arXiv 2406.04785)",
        rows=rows(found.loads, found.rmse, BUSY),
        claims=claims(found, BUSY, RATES[0]),
        figures=figures(found, list(RATES)),
        settings={
            **{name: getattr(SETTINGS, name) for name in magnus.UNCONFIRMED if hasattr(SETTINGS, name)},
            "truth": str(TRUTH),
            "4-bit": f"steps x {FOUR_BIT_STEP}, replies x {FOUR_BIT_REPLY}, {FOUR_BIT_BYTES:.2g} bytes more",
            "encoder": "hashed words and pairs, 768 dimensions, in place of LaBSE",
            "compression": "principal components: 4 for the instruction, 16 for the user's input",
            "workload": f"{SERVED} requests of six made-up applications; trained on {HISTORY} earlier",
            "seed": seed,
        },
        unconfirmed={
            **magnus.UNCONFIRMED,
            "threshold": f"set after a first run for these lengths, where the recalled {RECALLED:,.0f} lets"
            " almost any two join",
        },
        notes=(
            "Only the headline (+234 % throughput, -89.7 % response) is confirmed, and the low ends"
            " second-hand. The"
            " paper's data are not published; ours is a made-up service whose replies follow the inputs.",
            "The predictor reads no truth but that of finished requests, the estimator only timed batches.",
            "Every reply waits for its batch to end. Under continuous batching that wait, and the padding,"
            " vanish, so WMA is a modelled quantity there.",
            "CCB is the paper's conservative continuous batching: as few rows as VS. 'No cap' is what"
            " engines do"
            " today (256 rows, paged KV, the same memory), and it needs no prediction.",
        ),
    )


def _draw(seed: int, *, drift_after: int | None = None, unrelated: bool = False) -> Draw:
    rng = np.random.default_rng([seed, 0])
    service = magnus_apps.draw(
        HISTORY + SERVED, 1.0, rng, limit=SETTINGS.limit, drift_after=drift_after, unrelated=unrelated
    )
    prompts = Prompts(service.app, service.user_len, service.instructions, service.user_texts)
    return Draw(service, prompts, _predictor(prompts, service, "USIN"))


def _predictor(prompts: Prompts, service: magnus_apps.Service, variant: str) -> LengthPredictor:
    predictor = LengthPredictor(prompts, variant, limit=SETTINGS.limit, history=HISTORY)
    predictor.learn(np.arange(-HISTORY, 0), service.output_len[:HISTORY].astype(np.float64))
    return predictor


def _requests(draw: Draw, rate: float) -> magnus.Requests:
    """The requests after the history, at another rate."""
    times = draw.service.arrival_time[HISTORY:]
    return magnus.Requests(
        (times - times[0]) / rate, draw.service.prompt_len[HISTORY:], draw.service.output_len[HISTORY:]
    )


def _serve(
    draw: Draw,
    arm: str,
    rate: float,
    seed: int,
    *,
    settings: magnus.MagnusSettings = SETTINGS,
    learning: bool = True,
) -> magnus.MagnusOutcome:
    rng, variant = np.random.default_rng([seed, 1]), magnus.LADDER[arm]
    server = magnus.MagnusServer(
        _requests(draw, rate),
        variant,
        settings,
        TRUTH,
        rng,
        predictor=copy.copy(draw.predictor) if variant.similar else None,
        estimator=magnus.profile(TRUTH, settings, rng) if variant.similar else None,
        learning=learning,
    )
    return server.run()


def _quantised(draw: Draw, rate: float, seed: int) -> dict[str, float]:
    """VSQ: VS with 4-bit weights."""
    settings = replace(SETTINGS, memory_bytes=SETTINGS.memory_bytes + FOUR_BIT_BYTES)
    requests = _requests(draw, rate)
    longer = np.minimum(np.rint(FOUR_BIT_REPLY * requests.output_len), settings.limit).astype(np.int64)
    slower = Bilinear(prefill=TRUTH.prefill, decode=(*TRUTH.decode[:3], FOUR_BIT_STEP * TRUTH.decode[3]))
    rng = np.random.default_rng([seed, 1])
    done = magnus.MagnusServer(
        requests._replace(output_len=longer), magnus.LADDER["VS"], settings, slower, rng
    ).run()
    return magnus.measures(done)


def _continuous(draw: Draw, rate: float, rows: int) -> dict[str, float]:
    requests = _requests(draw, rate)
    engine = Engine(
        name="ccb",
        iteration_s=TRUTH.decode[3],
        prefill_token_s=TRUTH.prefill[0],
        decode_seq_s=TRUTH.decode[1],
        context_token_s=TRUTH.decode[0],
        max_num_seqs=rows,
        num_blocks=SETTINGS.memory_tokens // 16,
    )
    workload = Workload(
        arrival_time=requests.arrival_time, prompt_len=requests.prompt_len, output_len=requests.output_len
    )
    done = simulate(workload, [engine] * SETTINGS.instances, policies.get("fcfs")).completed
    response, summary = np.asarray(metrics.e2e(done)), metrics.summary(done)
    return {
        "throughput_rps": summary["throughput_rps"],
        "valid_tokens_per_s": summary["throughput_tps"],
        "tokens_per_s": summary["throughput_tps"],
        "mean_response_s": float(response.mean()),
        "p95_response_s": float(np.percentile(response, 95)),
    }


def _rmse(draw: Draw) -> dict[str, float]:
    """Each variant's root mean squared error [tokens] on the requests after its history."""
    served: Counts = np.arange(SERVED)
    truth = draw.service.output_len[HISTORY:]
    return {
        variant: float(
            np.sqrt(np.mean((_predictor(draw.prompts, draw.service, variant).predict(served) - truth) ** 2))
        )
        for variant in VARIANTS
    }
