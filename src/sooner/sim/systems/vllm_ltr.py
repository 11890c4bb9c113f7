"""vllm-ltr: every arm of "Efficient LLM Scheduling by Learning to Rank" (arXiv 2408.15792).

All arms but FCFS run in its iteration-level scheduler: everything is sorted before each iteration, a
strict prefix runs, and who loses its KV is swapped to the host. FCFS is stock vLLM, which recomputes;
FIFO, the fair control, is arrival order in the same scheduler as the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sooner import policies
from sooner.core import Completed, ConfigError, UnknownName
from sooner.metrics import kendall_tau
from sooner.sim.cost import Engine
from sooner.sim.engine import Options, simulate
from sooner.sim.static import Column, Counts
from sooner.sim.systems.lengths import spoiled
from sooner.workloads.columns import Workload

BURST, RATES, ARRIVALS_S = 2000, (2.0, 4.0, 8.0, 16.0, 32.0, 64.0), 60.0
LONGEST = 8192
"""The longest reply the class arms know: 8192 tokens."""
ANNOUNCEMENT = 15
"""Tokens that PO's announcement adds to each reply."""

MACHINES = {
    "8B": Engine(
        name="vllm-0.4.1-llama3-8b-a100-40g",
        iteration_s=0.015,
        prefill_token_s=65e-6,
        decode_seq_s=493e-6,
        context_token_s=0.074e-6,
        num_blocks=9_700,
        swap_block_s=175e-6,
        swap_blocks=7_600,
        max_num_seqs=256,
        max_num_batched_tokens=768,
        watermark=0.01,
        source="assumed; time a sequence set by figure 3: FCFS, LMSYS, 64 req/s, 5.60 s/token",
    ),
    "70B": Engine(
        name="vllm-0.4.1-llama3-70b-8xa100-40g",
        iteration_s=0.030,
        prefill_token_s=115e-6,
        decode_seq_s=544e-6,
        context_token_s=0.03e-6,
        num_blocks=27_500,
        swap_block_s=55e-6,
        swap_blocks=24_000,
        max_num_seqs=256,
        max_num_batched_tokens=768,
        watermark=0.01,
        source="assumed; time a sequence set by figure 3: FCFS, LMSYS, 64 req/s, 6.61 s/token",
    ),
}
"""vLLM 0.4.1 in eager mode, which all arms used: slow steps, and Python's work for each sequence."""
UNCONFIRMED = {
    "machine": "assumed but for the time a sequence, set by figure 3's FCFS on LMSYS at 64 req/s",
    "lengths": "lognormal stand-ins; the papers' traces carry no licence",
    "class errors": "noise of the published tau on the true lengths, then cut into classes",
}
"""Which constants no source confirms, and where each comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LtrArm:
    """One arm: an order, the Kendall tau of what it is told, and how the scheduler treats it.

    `width` > 0 cuts predictions into classes so many tokens wide; `tau` is of the classes then. PO
    pays `announce` tokens a reply. `predict_s` is charged to the engine for each request.
    """

    policy: str
    tau: float | None = None
    width: int = 0
    announce: int = 0
    predict_s: float = 0.0
    guard: int = 0
    quantum: int = 10
    stock: bool = False


def arms(tau: float, *, predict_s: float = 0.0028) -> dict[str, LtrArm]:
    """Return the arms of figure 3, where the ranker's predictions have Kendall tau `tau`."""
    return {
        "FCFS": LtrArm(policy="fcfs", stock=True),
        "FIFO": LtrArm(policy="fcfs"),
        "Class-10": LtrArm(policy="ltr", tau=0.22, width=820, predict_s=predict_s),
        "PO": LtrArm(policy="po", tau=0.51, announce=ANNOUNCEMENT),
        "MLFQ": LtrArm(policy="mlfq"),
        "Ranking": LtrArm(policy="ltr", tau=tau, predict_s=predict_s),
        "SRTF oracle": LtrArm(policy="srpt"),
    }


def serve(arm: LtrArm, workload: Workload, engine: Engine, rng: np.random.Generator) -> Completed:
    """Serve a workload under an arm; lengths and latencies per token are of the reply alone."""
    chosen = policies.get(arm.policy)
    if "seconds_per_token" in chosen.parameters:
        step = engine.iteration_s + engine.decode_seq_s * engine.max_num_seqs
        chosen = policies.get(arm.policy, seconds_per_token=step)
    told = None if arm.tau is None else predictions(workload.output_len, arm.tau, arm.width, rng)
    longer = replace(workload, output_len=workload.output_len + arm.announce)
    options = Options(
        iteration_level=not arm.stock,
        swap=not arm.stock,
        guard=arm.guard,
        quantum=arm.quantum,
        predict_s=arm.predict_s,
        predict_blocks=arm.predict_s > 0,
    )
    done = simulate(longer, engine, chosen, predicted_len=told, score=told, options=options).completed
    return done._replace(output_len=np.asarray(done.output_len) - arm.announce)


def predictions(lengths: Counts, tau: float, width: int, rng: np.random.Generator) -> Column:
    """Return predicted lengths (n,) of Kendall tau-b `tau` with the truth, or classes `width` tokens wide.

    The predictions have the distribution of the lengths. A tau that classes cannot reach is
    approached as far as they can: ties bound it. Raises ConfigError for a width < 0.
    """
    if width < 0:
        raise ConfigError(f"width={width!r}, allowed: >= 0 [tokens]")
    n = len(lengths)
    normal, noise = np.empty(n), rng.standard_normal(n)
    normal[np.lexsort((rng.random(n), lengths))] = np.sort(rng.standard_normal(n))
    latent = tau if not width else _latent(lengths, tau, width, normal, noise)
    told = _as_lengths(spoiled(normal, latent, noise), lengths)
    return np.floor(np.minimum(told, LONGEST) / width) if width else told


def _latent(lengths: Counts, tau: float, width: int, normal: Column, noise: Column) -> float:
    """The tau that predictions need before they are cut into classes, by bisection on some of them."""
    some = slice(0, 3000)
    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        told = _as_lengths(spoiled(normal[some], middle, noise[some]), lengths[some])
        reached = kendall_tau(np.floor(np.minimum(told, LONGEST) / width), lengths[some])
        low, high = (middle, high) if reached < tau else (low, middle)
    return (low + high) / 2


def _as_lengths(score: Column, lengths: Counts) -> Column:
    """Return the lengths dealt out in order of score."""
    dealt = np.empty(lengths.shape[0])
    dealt[np.argsort(score, kind="stable")] = np.sort(lengths)
    return dealt


def class_accuracy(lengths: Counts, classes: Column, width: int) -> float:
    """Share of requests put in their true class."""
    return float(np.mean(np.floor(np.minimum(lengths, LONGEST) / width) == classes))


def machine(name: str) -> Engine:
    """Return one of MACHINES. Raises UnknownName."""
    if name not in MACHINES:
        raise UnknownName("vllm-ltr machine", name, MACHINES)
    return MACHINES[name]
