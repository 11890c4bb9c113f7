"""What vllm-ltr published, and what its reproductions share. Latency is the mean of e2e / reply tokens."""

from __future__ import annotations

import numpy as np

from sooner import metrics
from sooner.core import Completed
from sooner.reproduce.result import Claim, Figure, Reproduction, Row, Value
from sooner.sim.cost import Engine
from sooner.sim.systems import vllm_ltr
from sooner.sim.systems.lengths import (
    LLAMA3_LMSYS_REPLY,
    LLAMA3_SHAREGPT_REPLY,
    LMSYS_PROMPT,
    SHAREGPT_PROMPT,
)
from sooner.sim.systems.vllm_ltr import LtrArm
from sooner.workloads.arrivals import poisson
from sooner.workloads.columns import Workload

PAPER = "vllm-ltr (arXiv 2408.15792)"
Panel = dict[str, dict[int, float]]
DATA = {"ShareGPT": (SHAREGPT_PROMPT, LLAMA3_SHAREGPT_REPLY), "LMSYS": (LMSYS_PROMPT, LLAMA3_LMSYS_REPLY)}
TAU = {("8B", "ShareGPT"): 0.52, ("8B", "LMSYS"): 0.64, ("70B", "ShareGPT"): 0.54, ("70B", "LMSYS"): 0.62}
PREDICT_S = {
    ("8B", "ShareGPT"): 2.81e-3,
    ("8B", "LMSYS"): 1.03e-3,
    ("70B", "ShareGPT"): 7.09e-3,
    ("70B", "LMSYS"): 2.46e-3,
}
"""The predictor's time a request, from table 4; the engine waits for it."""
DRAWS = 3
FIG2 = {0.0: 1.26, 0.135: 1.11, 0.22: 0.99, 0.385: 0.88, 0.515: 0.69, 0.685: 0.48, 1.0: 0.385}
FIG2_RATE = 16.0
_ARMS3 = ("Class-10", "PO", "MLFQ")


def _panel(fcfs: tuple[float, ...], others: tuple[float, ...], ranking: tuple[float, ...]) -> Panel:
    """FCFS and Ranking at 16, 32 and 64 req/s; the others at 64."""
    panel = {arm: {64: value} for arm, value in zip(_ARMS3, others, strict=True)}
    both = {"FCFS": fcfs, "Ranking": ranking}
    return panel | {arm: dict(zip((16, 32, 64), values, strict=True)) for arm, values in both.items()}


FIG3 = {
    ("8B", "LMSYS"): _panel((0.48, 1.87, 5.60), (3.33, 1.52, 1.28), (0.14, 0.33, 0.78)),
    ("8B", "ShareGPT"): _panel((0.5, 1.49, 3.92), (3.22, 2.66, 2.67), (0.25, 0.63, 1.58)),
    ("70B", "LMSYS"): _panel((0.69, 2.33, 6.61), (2.42, 2.05, 2.4), (0.24, 0.48, 1.13)),
    ("70B", "ShareGPT"): _panel((0.65, 1.70, 4.12), (3.99, 2.69, 3.9), (0.34, 0.75, 1.64)),
}
"""Digitised, about 0.05 s/token off; two of MLFQ's and PO's markers are hidden by others."""
TABLE3 = {
    # method: class width, then by data: (tau, latency s/token, seconds to 1K samples)
    "Optimal prediction": (0, {"ShareGPT": (0.74, 0.46, 102.04), "LMSYS": (0.84, 0.34, 34.60)}),
    "Ranking": (0, {"ShareGPT": (0.54, 0.78, 231.59), "LMSYS": (0.62, 0.54, 59.67)}),
    "Class, 10 buckets": (820, {"ShareGPT": (0.24, 1.26, 512.84), "LMSYS": (0.17, 2.23, 338.83)}),
    "Class, size 100": (100, {"ShareGPT": (0.49, 0.84, 265.91), "LMSYS": (0.58, 0.77, 101.61)}),
    "Class, size 10": (10, {"ShareGPT": (0.46, 0.86, 272.13), "LMSYS": (0.57, 0.61, 78.84)}),
    "Class, size 1": (1, {"ShareGPT": (0.32, 1.00, 341.63), "LMSYS": (0.50, 0.68, 92.93)}),
    "PO": (0, {"ShareGPT": (0.51, 1.04, 600.0), "LMSYS": (0.67, 0.95, 322.13)}),
}
SETTINGS: dict[str, Value] = {
    "machine": "; ".join(str(machine.coefficients) for machine in vllm_ltr.MACHINES.values()),
    "lengths": "lognormal: Llama-3 replies to ShareGPT and LMSYS prompts",
    "class errors": "noise cut into classes",
    "draws": f"{DRAWS} a point, 1 in figure 3 and of queues of 10,000",
}
NOTES = (
    "One number is fitted a machine: the time a decoding sequence adds, by FCFS on LMSYS at 64 req/s in"
    " figure 3."
    " All else is predicted. The same value follows from a third party's runs of this fork on another GPU.",
    "FCFS is stock vLLM, which recomputes evicted KV; FIFO is the fair control, in the ranked arms' own"
    " scheduler.",
    "Ties go to the running request, then to the earlier one; the fork lets a waiting one displace a"
    " running one.",
    "In an overload that lasts 60 s the latency grows with the window, so ratios at 64 req/s are of that"
    " window.",
)


def workload(data: str, n: int, rng: np.random.Generator, rate: float | None = None) -> Workload:
    """Return n requests, all at once or at `rate` [req/s]."""
    prompt, reply = DATA[data]
    arrival = np.zeros(n) if rate is None else poisson(n, rate, rng)
    return Workload(arrival_time=arrival, prompt_len=prompt.draw(n, rng), output_len=reply.draw(n, rng))


def latency(done: Completed) -> float:
    """Mean normalized latency [s/token]."""
    return float(np.mean(metrics.normalized_latency(done)))


def mean_latency(
    arm: LtrArm,
    data: str,
    n: int,
    engine: Engine,
    seed: int,
    rate: float | None = None,
    draws: int = DRAWS,
) -> float:
    """Mean over `draws` workloads, the same ones for every arm."""
    found = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, n, draw])
        found.append(latency(vllm_ltr.serve(arm, workload(data, n, rng, rate), engine, rng)))
    return float(np.mean(found))


def result(
    name: str, title: str, rows: list[Row], claims: list[Claim], figures: list[Figure], seed: int, *notes: str
) -> Reproduction:
    return Reproduction(
        name=name,
        title=title,
        paper=PAPER,
        rows=rows,
        claims=claims,
        figures=figures,
        settings={**SETTINGS, "seed": seed},
        unconfirmed=vllm_ltr.UNCONFIRMED,
        notes=(*NOTES, *notes),
    )
