"""Calibration finds the engine that made a run; on the real runs it is as true as promised."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba, the sim extra, is not installed")
pytest.importorskip("scipy", reason="scipy, the sim extra, is not installed")

from click.testing import CliRunner

from sooner import policies
from sooner.cli import root
from sooner.core import Completed, ConfigError, DataError
from sooner.sim.calibrate import COEFFICIENTS, calibrate
from sooner.sim.cost import Engine, load
from sooner.sim.engine import simulate
from sooner.sim.runs import meta_beside, part_of, read_limits
from sooner.sim.validate import validate
from sooner.workloads.arrivals import poisson
from sooner.workloads.columns import Workload
from sooner.workloads.traces.engine_run import EngineRun, read

DATA = Path(__file__).parents[1] / "data"
FCFS = policies.get("fcfs")
TRUE = Engine(
    iteration_s=0.012,
    prefill_token_s=4e-5,
    decode_seq_s=2e-5,
    context_token_s=9e-8,
    max_num_seqs=64,
    max_num_batched_tokens=1024,
    num_blocks=50_000,
)


def made_by(engine: Engine, rate: float, n: int = 200, seed: int = 0, instances: int = 1) -> EngineRun:
    """Return the run of a simulated engine, as if it were a real one."""
    rng = np.random.default_rng(seed)
    workload = Workload(
        arrival_time=poisson(n, rate, rng),
        prompt_len=rng.integers(20, 800, n),
        output_len=rng.integers(20, 400, n),
    )
    done = simulate(workload, [engine] * instances, FCFS, router="vllm-dp").completed
    noise = rng.normal(0.0, 0.005, (2, n))  # the clock's and the network's
    done = done._replace(
        first_token_time=done.first_token_time + noise[0], finish_time=done.finish_time + noise[1]
    )
    unknown = np.full(n, np.nan)
    return EngineRun(workload, done, unknown, unknown)


def test_pooled_loads_give_back_the_coefficients() -> None:
    runs = [made_by(TRUE, rate, seed=seed) for seed, rate in enumerate((2.0, 8.0, 30.0))]
    found = calibrate(runs, TRUE.with_coefficients(1e-3, 1e-3, 1e-3, 1e-6))
    for name in COEFFICIENTS:
        near = max(0.05, 4 * found.uncertainty[name])
        assert getattr(found.engine, name) == pytest.approx(getattr(TRUE, name), rel=near), name
        assert found.uncertainty[name] < 0.2, name
    assert not found.engine.approximate
    other = made_by(TRUE, 15.0, seed=9)  # a load that no fitted run had
    assert abs(validate(other, found.engine, FCFS)["mean_e2e_s"].error_pct) < 0.5


def test_what_a_client_waits_beside_the_engine_is_found() -> None:
    slow = dataclasses.replace(TRUE, overhead_s=0.03)
    runs = [made_by(slow, rate, seed=seed) for seed, rate in enumerate((1.0, 8.0))]
    found = calibrate(runs, TRUE, find_overhead=True)
    assert found.engine.overhead_s == pytest.approx(0.03, rel=0.1)
    assert found.uncertainty["overhead_s"] < 0.5
    other = made_by(slow, 3.0, seed=9)
    assert abs(validate(other, found.engine, FCFS)["mean_ttft_s"].error_pct) < 1
    without = calibrate(runs, TRUE).engine
    assert abs(validate(other, without, FCFS)["mean_ttft_s"].error_pct) > 2


def test_a_coefficient_that_a_run_did_not_vary_is_called_undetermined() -> None:
    alone = made_by(TRUE, 0.01, n=40)  # one request at a time: nothing tells a from c
    found = calibrate([alone], TRUE)
    assert found.uncertainty["iteration_s"] < 0.3
    assert found.uncertainty["decode_seq_s"] > 1


def test_memory_is_found_where_it_bound_the_run() -> None:
    tight = dataclasses.replace(TRUE, num_blocks=900)
    run = made_by(tight, 20.0)
    assert np.sum(run.completed.preemptions) > 0
    found = calibrate([run], dataclasses.replace(TRUE, num_blocks=1), find_memory=True)
    assert found.engine.num_blocks == pytest.approx(900, rel=0.1)
    assert abs(validate(run, found.engine, FCFS)["mean_e2e_s"].error_pct) < 2
    ample = calibrate([made_by(TRUE, 20.0)], TRUE, find_memory=True)
    assert ample.engine.num_blocks > 3_000


def test_requests_without_times_are_served_but_not_looked_at() -> None:
    run = made_by(TRUE, 20.0)
    times = np.where(np.arange(200) < 100, np.asarray(run.completed.finish_time), np.nan)
    half = run._replace(completed=run.completed._replace(finish_time=times))
    assert half.observed.sum() == 100
    found = calibrate([half], TRUE)
    assert validate(run, found.engine, FCFS)["each_e2e_s"].error_pct < 1
    with pytest.raises(DataError, match="at least 8"):
        calibrate([run], TRUE, rows=[np.arange(200) < 7])
    with pytest.raises(DataError, match="no request with times"):
        validate(half, TRUE, FCFS, np.arange(200) >= 100)


@pytest.mark.parametrize("model", ["Llama-3.1-8B", "Qwen3-32B"])
def test_the_real_runs_by_the_command_line(model: str, tmp_path: Path) -> None:
    run = DATA / f"vllm019_real_RTXPRO6000_{model}_requests.jsonl.gz"
    meta = DATA / f"vllm019_real_RTXPRO6000_{model}_meta.json"

    def errors(fit: list[str], judge: list[str]) -> dict[str, float]:
        engine = str(tmp_path / "engine.toml")
        fitted = CliRunner().invoke(root, ["calibrate", str(run), "--meta", str(meta), "--out", engine, *fit])
        assert fitted.exit_code == 0, fitted.output
        judged = CliRunner().invoke(root, ["validate", str(run), "--engine", engine, "--json", *judge])
        return {name: row["error_pct"] for name, row in json.loads(judged.stdout).items()}

    whole = errors([], [])
    assert {"mean_ttft_s", "p50_tpot_s", "p90_e2e_s", "p99_ttft_s"} <= whole.keys()
    assert abs(whole["mean_e2e_s"]) <= 0.5
    assert abs(whole["mean_tpot_s"]) <= 0.5
    assert abs(whole["mean_ttft_s"]) <= 2
    assert abs(whole["p99_e2e_s"]) <= 1
    assert whole["each_e2e_s"] <= 1
    unseen = errors(["--part", "0:0.5"], ["--part", "0.5:1"])
    assert abs(unseen["mean_e2e_s"]) <= 1
    assert abs(unseen["mean_ttft_s"]) <= 2
    assert load(str(tmp_path / "engine.toml")).max_num_seqs == 128


def test_a_run_bound_by_kv_memory_needs_no_flag_but_its_meta(tmp_path: Path) -> None:
    run, engine = DATA / "vllm019_real_RTX4090_Llama-3.1-8B_requests.jsonl.gz", tmp_path / "engine.toml"
    meta = DATA / "vllm019_real_RTX4090_Llama-3.1-8B_meta.json"
    words = ["calibrate", str(run), "--meta", str(meta), "--out", str(engine)]
    assert CliRunner().invoke(root, words).exit_code == 0
    assert load(str(engine)).num_blocks == 2588
    judged = CliRunner().invoke(root, ["validate", str(run), "--engine", str(engine), "--json"])
    error = {name: abs(row["error_pct"]) for name, row in json.loads(judged.stdout).items()}
    assert error["mean_e2e_s"] <= 0.5
    assert error["mean_tpot_s"] <= 0.5
    assert error["mean_ttft_s"] <= 2


def test_limits_come_from_the_meta_file_and_the_caller(tmp_path: Path) -> None:
    meta = tmp_path / "x_meta.json"
    meta.write_text(json.dumps({"engine_kwargs": {"max_num_seqs": 7, "num_gpu_blocks": 99, "dtype": "auto"}}))
    run = tmp_path / "x_requests.jsonl.gz"
    assert meta_beside(run) == meta
    assert meta_beside(tmp_path / "y_requests.jsonl") is None
    engine, known, _, _ = read_limits(meta, {"max_num_seqs": 5, "block_size": None})
    assert (engine.max_num_seqs, engine.num_blocks) == (5, 99)
    assert known == {"max_num_seqs", "num_blocks"}
    meta.write_text("[]")
    with pytest.raises(DataError, match="cannot read the run's settings"):
        read_limits(meta, {})


def test_what_the_engine_resolved_is_surer_than_what_it_was_asked(tmp_path: Path) -> None:
    meta = tmp_path / "x_meta.json"
    content = {
        "engine_kwargs": {"max_num_seqs": 7, "block_size": 8, "data_parallel_size": 2},
        "resolved_config": {
            "cache_config": {"block_size": 16, "num_gpu_blocks": None},
            "scheduler_config": {"max_num_seqs": 9, "max_num_batched_tokens": 512},
            "parallel_config": {"data_parallel_size": 3},
        },
        "kv_cache": {"num_gpu_blocks": 2588, "block_size": 32},
    }
    meta.write_text(json.dumps(content))
    limits = read_limits(meta, {})
    told = limits.engine
    assert (told.max_num_seqs, told.max_num_batched_tokens) == (9, 512)
    assert (told.num_blocks, told.block_size) == (2588, 32)
    assert (limits.instances, limits.ranks) == (3, 1)
    assert read_limits(meta, {"data_parallel_size": 4}).instances == 4
    content["engine_kwargs"]["enable_expert_parallel"] = True
    meta.write_text(json.dumps(content))
    together = read_limits(meta, {})
    assert (together.instances, together.ranks) == (1, 3)
    assert (together.engine.max_num_seqs, together.engine.num_blocks) == (27, 3 * 2588)
    with pytest.raises(ConfigError, match="data_parallel_size=0"):
        read_limits(None, {"data_parallel_size": 0})


def written(run: EngineRun, folder: Path, **meta: object) -> Path:
    """Write a run as LLMServingSim's benchmark of vLLM does, settings beside it."""
    path, done = folder / "dp_requests.jsonl", run.completed
    lines = [
        {
            "request_id": str(i), "input_toks": int(run.workload.prompt_len[i]),
            "output_toks": int(run.workload.output_len[i]),
            "arrival_time": 1e9 + float(run.workload.arrival_time[i]),
            "queued_ts": 5.0 + float(run.workload.arrival_time[i]),
            "scheduled_ts": 5.0 + float(done.start_time[i]),
            "first_token_ts": 5.0 + float(done.first_token_time[i]),
            "last_token_ts": 5.0 + float(done.finish_time[i]),
        }
        for i in range(len(run.workload))
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "dp_meta.json").write_text(json.dumps({"engine_kwargs": meta}))
    return path


def test_data_parallel_runs_are_simulated_as_such(tmp_path: Path) -> None:
    small = dataclasses.replace(TRUE, max_num_seqs=16)
    run = made_by(small, 20.0, instances=2)
    known = {"max_num_seqs": 16, "max_num_batched_tokens": 1024, "num_gpu_blocks": 50_000}
    path, out = written(run, tmp_path, **known, data_parallel_size=2), tmp_path / "engine.toml"
    fitted = CliRunner().invoke(root, ["calibrate", str(path), "--out", str(out), "--json"])
    assert fitted.exit_code == 0, fitted.output
    report = json.loads(fitted.stdout)
    assert (report["instances"], report["holds"]) == (2, True)
    assert report["iteration_s"] == pytest.approx(small.iteration_s, rel=0.1)
    judged = CliRunner().invoke(root, ["validate", str(path), "--engine", str(out), "--json"])
    errors = {name: row["error_pct"] for name, row in json.loads(judged.stdout).items()}
    assert abs(errors["mean_e2e_s"]) < 2
    assert abs(errors["mean_ttft_s"]) < 5
    alone = CliRunner().invoke(
        root, ["validate", str(path), "--engine", str(out), "--json", "--data-parallel", "1"]
    )
    assert json.loads(alone.stdout)["mean_ttft_s"]["error_pct"] > 100


def test_a_fit_that_does_not_hold_says_so(tmp_path: Path) -> None:
    small = dataclasses.replace(TRUE, max_num_seqs=4)
    run = made_by(small, 30.0, n=60)
    shuffled = run.completed._replace(
        finish_time=np.random.default_rng(0).permutation(run.completed.finish_time) + 3.0
    )
    path = written(run._replace(completed=shuffled), tmp_path, max_num_seqs=4, num_gpu_blocks=50_000)
    out = tmp_path / "engine.toml"
    found = CliRunner().invoke(root, ["calibrate", str(path), "--out", str(out)])
    assert found.exit_code == 1
    assert "the fit does not hold" in found.output
    assert load(str(out)).approximate


def test_parts_are_shares_in_order_of_arrival() -> None:
    assert part_of(None, 4).tolist() == [True] * 4
    assert part_of("0.5:1", 4).tolist() == [False, False, True, True]
    for bad in ("half", "0.5", "0.7:0.2", "0:2"):
        with pytest.raises(ConfigError, match="two shares"):
            part_of(bad, 4)


def test_a_replay_is_a_run_too(tmp_path: Path) -> None:
    path = tmp_path / "replay.jsonl"
    lines = [
        {
            "index": i,
            "arrival_time": 0.1 * i,
            "prompt_len": 5,
            "output_len": 6,
            "first_token_time": 1.0 + i,
            "finish_time": 2.0 + i,
            "attached": {"vllm_xargs": {"sooner_score": float(i)}},
        }
        for i in range(3)
    ] + [
        {"index": 3, "arrival_time": 0.5, "prompt_len": 5, "output_len": 9},
        {"index": 4, "error": "timeout"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    run = read(path)
    assert len(run.workload) == 4
    assert run.by_client
    assert run.observed.tolist() == [True, True, True, False]
    assert run.score[:3].tolist() == [0.0, 1.0, 2.0]
    assert np.isnan(run.score[3])
    path.write_text(json.dumps({"index": 4, "error": "timeout"}), encoding="utf-8")
    with pytest.raises(DataError, match="no finished request"):
        read(path)


def test_steps_judge_scheduling_alone(tmp_path: Path) -> None:
    path = tmp_path / "replay.jsonl"
    lines = [
        {"arrival_time": 0.0, "prompt_len": 5, "output_len": 4, "first_token_time": 9.0, "finish_time": 99.0,
         "arrival_step": 1, "first_token_step": 2 + 4 * i, "finish_step": 5 + 4 * i}
        for i in range(3)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    engine = tmp_path / "one.toml"
    one = dataclasses.replace(TRUE, max_num_seqs=1, overhead_s=0.1)
    engine.write_text(one.to_toml(), encoding="utf-8")
    assert not read(path, steps=True).by_client
    judged = CliRunner().invoke(root, ["validate", str(path), "--engine", str(engine), "--steps", "--json"])
    assert json.loads(judged.stdout)["each_e2e_s"] == {"real": 8.0, "simulated": 8.0, "error_pct": 0.0}


def test_a_run_whose_requests_do_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="raise num_blocks"):
        validate(made_by(TRUE, 5.0), dataclasses.replace(TRUE, num_blocks=30), FCFS)


def test_error_is_relative_to_the_real_value() -> None:
    run = made_by(TRUE, 5.0)
    doubled = Completed(*run.completed)._replace(
        finish_time=run.workload.arrival_time
        + 2 * np.asarray(run.completed.finish_time - run.workload.arrival_time)
    )
    table = validate(run._replace(completed=doubled), TRUE, FCFS)
    assert table["mean_e2e_s"].error_pct == pytest.approx(-50, abs=0.1)
    assert table["each_e2e_s"].error_pct == pytest.approx(50, abs=0.5)
