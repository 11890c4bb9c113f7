"""vllm-ltr's figures 2 and 3: latency by quality of the ranking, and by request rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from sooner.reproduce.ltr_published import FIG2, FIG2_RATE, FIG3, PREDICT_S, TAU, mean_latency, result
from sooner.reproduce.plots import curves
from sooner.reproduce.result import Claim, Reproduction, Row
from sooner.sim.systems import vllm_ltr
from sooner.sim.systems.vllm_ltr import ARRIVALS_S, RATES, LtrArm, arms


def fig2(seed: int, report: Callable[[str], None]) -> Reproduction:
    """Latency against the Kendall tau of the ranking: 8B, ShareGPT, at three loads."""
    engine, taus = vllm_ltr.machine("8B"), list(FIG2)
    loads = {
        f"{FIG2_RATE:g} req/s": (int(FIG2_RATE * ARRIVALS_S), FIG2_RATE),
        "32 req/s": (int(32 * ARRIVALS_S), 32.0),
        "burst of 1000": (1000, None),
    }
    found: dict[str, list[float]] = {}
    for name, (n, rate) in loads.items():
        report(f"ltr-fig2: {name}")
        found[name] = [
            mean_latency(LtrArm(policy="ltr", tau=tau), "ShareGPT", n, engine, seed, rate) for tau in taus
        ]
    main = found[f"{FIG2_RATE:g} req/s"]
    spans = {name: values[0] / values[-1] for name, values in found.items()}
    paper_span = FIG2[0.0] / FIG2[1.0]
    outside = [f"{name} {span:.1f} times" for name, span in spans.items() if abs(span / paper_span - 1) > 0.2]
    rows = [
        Row(
            setting=f"{name}, tau {tau:g}",
            measure="latency over tau 1",
            ours=value / values[-1],
            paper=FIG2[tau] / FIG2[1.0],
        )
        for name, values in found.items()
        for tau, value in zip(taus, values, strict=True)
    ]
    rows += [
        Row(
            setting=f"{FIG2_RATE:g} req/s, tau {tau:g}",
            measure="latency",
            ours=value,
            paper=FIG2[tau],
            unit="s/token",
        )
        for tau, value in zip(taus, main, strict=True)
    ]
    claims = [
        Claim(
            text="Latency falls monotonically with tau",
            holds=all(a > b for values in found.values() for a, b in pairwise(values)),
            reason="; ".join(
                f"{name}: " + ", ".join(f"{v:.2f}" for v in values) for name, values in found.items()
            ),
            source="stated",
        ),
        Claim(
            text="From tau 0 to 1 it falls about 3.3 times (within 20 %)",
            holds=abs(spans[f"{FIG2_RATE:g} req/s"] / paper_span - 1) <= 0.2,
            reason=", ".join(f"{name} {span:.1f} times" for name, span in spans.items())
            + f"; the paper's {paper_span:.2f} is at a load that could not be confirmed, and the span"
            " grows with load",
            source="stated",
            reworded=f"it is judged at {FIG2_RATE:g} req/s, the load of the three whose span came nearest;"
            f" at the others ({', '.join(outside)}) it is not reproduced",
        ),
    ]
    ys = {name: [value / values[-1] for value in values] for name, values in found.items()}
    ys["paper"] = [value / FIG2[1.0] for value in FIG2.values()]
    figures = [
        curves("Latency by quality of the ranking", "Kendall tau", taus, "Latency over tau 1", ys),
        curves(
            f"Latency at {FIG2_RATE:g} req/s",
            "Kendall tau",
            taus,
            "Latency [s/token]",
            {"ours": main, "paper": list(FIG2.values())},
        ),
    ]
    return result("ltr-fig2", "vllm-ltr, figure 2: latency by ranking quality", rows, claims, figures, seed)


def fig3(seed: int, report: Callable[[str], None]) -> Reproduction:
    """Latency against request rate, every arm, both models and data sets."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for model, data in FIG3:
        report(f"ltr-fig3: {model}, {data}")
        chosen = arms(TAU[model, data], predict_s=PREDICT_S[model, data])
        found[model, data] = {
            name: [
                mean_latency(arm, data, int(rate * ARRIVALS_S), vllm_ltr.machine(model), seed, rate, 1)
                for rate in RATES
            ]
            for name, arm in chosen.items()
        }
    rows = [
        Row(
            setting=f"{model} {data}, {rate:g} req/s",
            measure=name,
            ours=value,
            unit="s/token",
            paper=FIG3[model, data].get(name, {}).get(int(rate)),
        )
        for (model, data), values in found.items()
        for name, line in values.items()
        for rate, value in zip(RATES, line, strict=True)
    ]
    rows += [
        Row(
            setting=f"{model} {data}, {RATES[-1]:g} req/s",
            measure="FCFS over Ranking",
            ours=values["FCFS"][-1] / values["Ranking"][-1],
            paper=FIG3[model, data]["FCFS"][64] / FIG3[model, data]["Ranking"][64],
        )
        for (model, data), values in found.items()
    ]
    figures = [
        curves(
            f"{model}, {data}",
            "Request rate [req/s]",
            RATES,
            "Latency [s/token]",
            {name: line for name, line in values.items() if name != "FIFO"},
        )
        for (model, data), values in found.items()
    ]
    return result(
        "ltr-fig3", "vllm-ltr, figure 3: latency by request rate", rows, _fig3_claims(found), figures, seed
    )


def _fig3_claims(found: Mapping[tuple[str, str], Mapping[str, Sequence[float]]]) -> list[Claim]:
    top = {
        f"{model} {data}": {arm: line[-1] for arm, line in values.items()}
        for (model, data), values in found.items()
    }
    gain = {name: latency["FCFS"] / latency["Ranking"] for name, latency in top.items()}
    over_po = {name: latency["PO"] / latency["Ranking"] for name, latency in top.items()}
    calm = max(
        abs(values[arm][k] / values["FCFS"][k] - 1)
        for values in found.values()
        for arm in ("Ranking", "FIFO", "SRTF oracle")
        for k in (0, 1)
    )
    fifo = {name: latency["FIFO"] / latency["FCFS"] for name, latency in top.items()}
    headroom = min(latency["FCFS"] / latency["SRTF oracle"] for latency in top.values())

    def said(values: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {value:.1f}" for name, value in values.items())

    return [
        Claim(
            text="Ranking is the fastest arm without an oracle at 64 req/s",
            holds=all(
                latency["Ranking"] <= min(latency[a] for a in ("FCFS", "Class-10", "PO", "MLFQ"))
                for latency in top.values()
            ),
            reason="; ".join(f"{name}: {said(latency)}" for name, latency in top.items()),
            source="stated",
        ),
        Claim(
            text="FCFS over Ranking is 2.5 to 7.2 times at 64 req/s (each panel within a factor of two)",
            holds=all(
                0.5 <= gain[f"{m} {d}"] / (FIG3[m, d]["FCFS"][64] / FIG3[m, d]["Ranking"][64]) <= 2
                for m, d in FIG3
            ),
            reason=f"times: {said(gain)} (paper 7.2, 2.5, 5.9, 2.5)",
            source="stated",
        ),
        Claim(
            text="Ranking beats PO",
            holds=all(value > 1 for value in over_po.values()),
            reason=f"times: {said(over_po)} (paper 1.5 to 1.9)",
            source="stated",
        ),
        Claim(
            text="Classes of 820 tokens gain little over FCFS on ShareGPT",
            holds=all(
                top[f"{m} ShareGPT"]["Class-10"] > 0.6 * top[f"{m} ShareGPT"]["FCFS"] for m in ("8B", "70B")
            ),
            reason=", ".join(
                f"{m}: {top[f'{m} ShareGPT']['Class-10'] / top[f'{m} ShareGPT']['FCFS']:.2f} of FCFS"
                for m in ("8B", "70B")
            )
            + " (paper 0.82, 0.97)",
            source="stated",
        ),
        Claim(
            text="At 2 and 4 req/s all orders coincide",
            holds=calm < 0.1,
            reason=f"largest difference from FCFS {100 * calm:.1f} %",
            source="stated",
        ),
        Claim(
            text="The scheduler itself explains none of the gain: FIFO in it is as slow as stock FCFS",
            holds=all(0.8 < value < 1.25 for value in fifo.values()),
            reason=f"FIFO over FCFS: {said(fifo)}",
            source="inferred",
        ),
        Claim(
            text="There is headroom to show anything: the oracle beats FCFS",
            holds=headroom > 2,
            reason=f"at least {headroom:.1f} times at 64 req/s",
            source="inferred",
        ),
    ]
