"""Studies, predictions of a chosen quality, sweeps, and the two commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba, the sim extra, is not installed")

from click.testing import CliRunner

from sooner import rankers
from sooner.cli import root
from sooner.core import ConfigError, DataError
from sooner.metrics import kendall_tau
from sooner.sim import predictions
from sooner.sim.cost import PRESETS, Engine
from sooner.sim.engine import Options
from sooner.sim.study import REPORTED, Study, prepare, run
from sooner.sim.sweep import averages, cases, sweep
from sooner.workloads import named
from sooner.workloads.build import Shape, build

TIGHT = Engine(max_num_seqs=8, max_num_batched_tokens=512)
CONTRACT = {
    "n", "makespan_s", "mean_e2e_s", "p50_e2e_s", "p99_e2e_s", "mean_ttft_s", "p99_ttft_s", "mean_tpot_s",
    "mean_normalized_latency", "p90_normalized_latency", "max_wait_s", "throughput_rps", "throughput_tps",
    "preemptions", "requests_per_cpu_second",
}  # fmt: skip


def study(**changes: object) -> Study:
    base: dict[str, object] = {
        "workload": "lognormal", "policy": "ltr", "engine": TIGHT, "shape": Shape(requests=400, rate=20.0)
    }  # fmt: skip
    return Study(**(base | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [2_000, 60_000])
@pytest.mark.parametrize("tau", [-0.4, 0.0, 0.33, 0.7, 1.0])
def test_predictions_have_the_tau_that_was_asked_for(n: int, tau: float) -> None:
    rng = np.random.default_rng(0)
    workload, _ = build(named.load("lognormal", n), Shape(burst=True), rng)
    told = predictions.spoiled(workload, tau, rng)
    assert kendall_tau(told.score, workload.output_len) == pytest.approx(tau, abs=0.02)
    assert told.tau == pytest.approx(tau, abs=0.03)
    assert np.array_equal(np.sort(told.predicted_len), np.sort(workload.output_len))
    if tau != 1.0:
        order = np.argsort(told.score, kind="stable")
        assert (np.diff(told.predicted_len[order]) >= 0).all()


def test_a_tau_out_of_range_is_refused() -> None:
    for n in (100, 30_000):
        workload, _ = build(named.load("lognormal", n), Shape(burst=True), np.random.default_rng(0))
        with pytest.raises(ConfigError, match=r"tau=1\.5"):
            predictions.spoiled(workload, 1.5, np.random.default_rng(0))


def test_better_predictions_answer_sooner() -> None:
    waits = [run(study(tau=tau))["mean_e2e_s"] for tau in (0.0, 0.5, 1.0)]
    assert waits[0] > waits[1] > waits[2]
    fcfs = run(study(policy="fcfs"))["mean_e2e_s"]
    assert fcfs == pytest.approx(waits[0], rel=0.2)  # a random order is as good as any that knows nothing


def test_a_study_reports_the_contract_and_is_repeatable() -> None:
    one, same, other = run(study()), run(study()), run(study(seed=1))
    assert one.keys() >= CONTRACT
    assert set(REPORTED) | {"requests_per_cpu_second"} >= CONTRACT
    assert one["predictions"] == "oracle"
    assert {name: one[name] for name in REPORTED} == {name: same[name] for name in REPORTED}
    assert one["mean_e2e_s"] != other["mean_e2e_s"]
    assert one["n"] == 400


def test_everybody_leaves_and_nothing_is_measured() -> None:
    report = run(study(shape=Shape(requests=50, burst=True, cancel_after=0.0)))
    assert (report["n"], report["cancelled"], report["mean_e2e_s"]) == (0, 50, None)


def test_a_trace_may_say_what_the_policy_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"arrival_time": 0.0, "prompt_len": 5, "output_len": 9 - i, "score": float(i)} for i in range(5)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    prepared = prepare(study(workload=str(path), shape=Shape()))
    assert prepared.told.kind == "from the workload"
    assert prepared.told.tau == pytest.approx(-1.0)


def test_a_ranker_scores_the_prompts_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [{"prompt": "word " * k, "output_len": 10 * k, "prompt_len": k} for k in range(1, 30)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    ranker = rankers.create("oracle").fit(
        [("word " * k).strip() for k in range(1, 30)], [10 * k for k in range(1, 30)]
    )
    prepared = prepare(study(workload=str(path), shape=Shape(burst=True)), ranker)
    assert prepared.told.kind == "ranker oracle"
    assert prepared.told.tau == pytest.approx(1.0)
    with pytest.raises(DataError, match="lengths only"):
        prepare(study(), ranker)
    with pytest.raises(ConfigError, match="one of the two"):
        prepare(study(tau=0.5), ranker)


def test_an_oracle_fed_policy_takes_no_predictions() -> None:
    with pytest.raises(ConfigError, match=r"allowed with predictions: 'sprpt'"):
        study(policy="srpt", tau=0.5)
    with pytest.raises(ConfigError, match="instances=0"):
        study(instances=0)


def test_tenants_and_classes_are_told_apart() -> None:
    shape = Shape(requests=600, burst=True, tenants=(0.8, 0.2), classes=((0.3, 5.0), (0.7, np.inf)))
    fcfs, vtc = (run(study(policy=name, shape=shape)) for name in ("fcfs", "vtc"))
    assert fcfs.keys() == vtc.keys() >= {"tenants", "levels", "deadlines_met"}
    assert sum(one["n"] for one in vtc["tenants"].values()) == 600
    small = [report["tenants"]["1"]["mean_e2e_s"] for report in (fcfs, vtc)]
    assert small[1] < 0.7 * small[0]  # who sends little no longer waits behind who sends much
    urgent = run(study(policy="edf_classes", shape=shape))
    assert urgent["deadlines_met"] > 1.5 * fcfs["deadlines_met"]
    assert urgent["levels"]["0"]["deadlines_met"] == urgent["deadlines_met"]
    assert urgent["levels"]["1"]["deadlines_met"] is None
    plain = run(study())
    assert plain["deadlines_met"] is None
    assert "tenants" not in plain
    late = run(
        study(shape=Shape(requests=50, burst=True, cancel_after=0.0, tenants=(0.5, 0.5), deadline=9.0))
    )
    assert late["deadlines_met"] == 0.0
    assert late["tenants"]["0"]["n"] == 0


def test_a_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "sweep.jsonl"
    studies = cases(study(policy="fcfs"), ["fcfs", "ltr", "sjf"], 2, rates=[10.0, 20.0], taus=[0.3, 0.9])
    assert len(studies) == (2 + 2 + 1) * 2 * 2  # an oracle-fed policy has no tau
    seen: list[tuple[int, int]] = []
    rows = sweep(studies, out, progress=lambda done, n: seen.append((done, n)))
    assert seen[-1] == (20, 20)
    text = out.read_text(encoding="utf-8")
    out.write_text(text[: len(text) // 2], encoding="utf-8")  # in the middle of a line
    seen.clear()
    again = sweep(studies, out, progress=lambda done, n: seen.append((done, n)))
    assert 5 < len(seen) < 15
    assert [row["mean_e2e_s"] for row in again] == [row["mean_e2e_s"] for row in rows]
    seen.clear()
    sweep(studies, out, progress=lambda done, n: seen.append((done, n)))
    assert not seen
    assert [group[4] for group in averages(rows, "mean_e2e_s")] == [2] * 10
    out.write_text("{}\n", encoding="utf-8")
    with pytest.raises(DataError, match="not what a sweep writes"):
        sweep(studies, out)


def test_a_sweep_in_processes_gives_the_same_rows(tmp_path: Path) -> None:
    studies = cases(study(shape=Shape(requests=400)), ["fcfs", "ltr"], 1, rates=[20.0], loads=[0.9])
    alone = sweep(studies, tmp_path / "a.jsonl")
    together = sweep(studies, tmp_path / "b.jsonl", processes=2)
    assert [row["mean_e2e_s"] for row in alone] == [row["mean_e2e_s"] for row in together]
    groups = [(policy, arrivals) for policy, arrivals, *_ in averages(alone, "mean_e2e_s")]
    assert groups == [(name, where) for name in ("fcfs", "ltr") for where in ("20/s", "load 0.9")]
    with pytest.raises(ConfigError, match="processes=0"):
        sweep(studies, tmp_path / "c.jsonl", processes=0)
    with pytest.raises(ConfigError, match="0 seeds"):
        cases(study(), ["fcfs"], 0)


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(root, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_simulate_prints_the_contract() -> None:
    common = ("simulate", "sharegpt", "--requests", "300", "--engine", "llama3-8b-h100")
    report = json.loads(
        invoke(*common, "--policy", "aged", "--param", "beta=0.05", "--rate", "40", "--tau", "0.5", "--json")
    )
    assert report.keys() >= CONTRACT
    assert report["approximate"] is True
    assert report["engine"] == "llama3-8b-h100"
    assert "mean_e2e_s" in invoke(*common, "--burst", "--set", "max_num_seqs=4")
    cluster = json.loads(
        invoke(
            *common, "--burst", "--instances", "3", "--router", "least-work", "--cancel-after", "1", "--json"
        )
    )
    assert cluster["cancelled"] > 0
    assert cluster["n"] + cluster["cancelled"] == 300


def test_simulate_takes_tenants_weights_and_classes() -> None:
    common = ("simulate", "lognormal", "--requests", "300", "--burst", "--set", "max_num_seqs=8", "--json")
    report = json.loads(
        invoke(*common, "--policy", "vtc", "--tenants", "0.5,0.5", "--weight", "0=4", "--classes", "1:9")
    )
    one, other = (report["tenants"][name]["mean_e2e_s"] for name in ("0", "1"))
    assert one < 0.8 * other
    assert 0 < report["deadlines_met"] < 1


def test_simulate_says_what_is_wrong() -> None:
    for arguments, says in (
        (("simulate", "sharegpt", "--burst", "--tenants", "half"), "shares such as 0.9,0.1"),
        (("simulate", "sharegpt", "--burst", "--classes", "0.5"), "shares and seconds"),
        (("simulate", "sharegpt", "--burst", "--weight", "0=1.5"), "whole numbers such as 0=2"),
        (("simulate", "sharegpt", "--load", "0.5", "--burst"), "without a rate or a burst"),
        (("simulate", "sharegpt", "--burst", "--policy", "sprtp"), "did you mean 'sprpt'"),
        (("simulate", "sharegpt", "--burst", "--param", "beta"), "NAME=NUMBER"),
        (("simulate", "sharegpt", "--burst", "--engine", "h100"), "unknown engine"),
    ):
        result = CliRunner().invoke(root, arguments)
        assert result.exit_code != 0
        assert says in str(result.exception), result.exception


def test_sweep_prints_a_table(tmp_path: Path) -> None:
    out = str(tmp_path / "s.jsonl")
    common = (
        "sweep",
        "lognormal",
        "--policies",
        "fcfs,sjf",
        "--rates",
        "30",
        "--requests",
        "200",
        "--out",
        out,
    )
    table = invoke(*common, "--set", "max_num_seqs=4")
    assert "sjf" in table
    rows = json.loads(invoke(*common, "--set", "max_num_seqs=4", "--json"))
    assert [row["policy"] for row in rows] == ["fcfs", "sjf"]
    assert rows[1]["mean_e2e_s"] < rows[0]["mean_e2e_s"]
    bad = CliRunner().invoke(root, [*common, "--measure", "mean_e2e"])
    assert "unknown measure" in str(bad.exception)


def test_a_load_is_a_share_of_what_the_engines_can_do() -> None:
    shape = Shape(requests=2_000)
    usual, half = run(study(shape=shape)), run(study(shape=shape, load=0.4))
    assert half["rate"] == pytest.approx(usual["rate"] / 2)
    assert half["throughput_rps"] == pytest.approx(half["rate"], rel=0.1)
    twice = run(study(shape=shape, load=0.4, instances=2))
    assert twice["rate"] == pytest.approx(2 * half["rate"])
    over = run(study(shape=shape, load=2.0))
    assert over["throughput_rps"] == pytest.approx(usual["rate"] / 0.8, rel=0.1)
    with pytest.raises(ConfigError, match="more num_blocks"):
        run(study(shape=shape, engine=replace(TIGHT, num_blocks=1), load=0.5))


def test_options_reach_the_engine() -> None:
    plain = run(study())
    guarded = run(study(options=Options(guard=50)))
    assert guarded["mean_e2e_s"] > plain["mean_e2e_s"]  # a bound on waiting has its price
    swapped = run(study(policy="srpt", options=Options(swap=True), engine=replace(TIGHT, num_blocks=200)))
    assert swapped["preemptions"] > 0
    charged = run(study(options=Options(predict_s=1.0)))
    assert charged["mean_e2e_s"] > plain["mean_e2e_s"] + 0.5
    assert run(study(engine=PRESETS["llama3-70b-8xa100"]))["mean_e2e_s"] > 0
