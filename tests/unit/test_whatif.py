"""What another order would have done: true where the truth is known, and silent where it cannot be told."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sooner import metrics, policies
from sooner.cli import root
from sooner.core import Completed, DataError
from sooner.sim.cost import Engine
from sooner.sim.engine import simulate
from sooner.sim.options import Options
from sooner.whatif.replays import Counterfactual, ask, sentence
from sooner.whatif.served import ServedRow, ServedTraffic, columns
from sooner.whatif.sources import read
from sooner.whatif.trace import read_trace
from sooner.workloads.columns import Workload

ENGINE = Engine(max_num_seqs=8, num_blocks=100_000)


def traffic(n: int = 400, rate: float = 5.0, seed: int = 0) -> tuple[Workload, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = np.maximum(rng.lognormal(4.5, 1.0, n), 1).astype(np.int64)
    workload = Workload(
        arrival_time=np.cumsum(rng.exponential(1 / rate, n)),
        prompt_len=rng.integers(20, 400, n),
        output_len=lengths,
        tenant=rng.integers(0, 3, n),
    )
    return workload, lengths * rng.lognormal(0.0, 0.4, n)


def run(workload: Workload, told: np.ndarray, policy: str) -> Completed:
    options = Options(iteration_level=False)
    return simulate(
        workload, ENGINE, policies.get(policy), predicted_len=told, score=told, options=options
    ).completed


def record(policy: str, n: int = 400, rate: float = 5.0, factor: float = 1.0) -> ServedTraffic:
    """Return what an engine served, `factor` times as slow as the one that is told of it."""
    workload, told = traffic(n, rate)
    done = run(workload, told, policy)
    rows = [
        ServedRow(
            arrival, arrival + (start - arrival) * factor, first, arrival + (finish - arrival) * factor,
            prompt, 0, output, score, score, f"tenant {tenant}",
        )
        for arrival, start, first, finish, prompt, output, score, tenant in zip(
            *map(np.asarray, (done.arrival_time, done.start_time, done.first_token_time, done.finish_time)),
            workload.prompt_len, workload.output_len, told, workload.tenant, strict=True,
        )
    ]  # fmt: skip
    return ServedTraffic(*columns(rows, "here"), ENGINE, True, "wall", policies.get(policy))


def against(answer: Counterfactual, policy: str) -> Any:
    return next(other for other in answer.others if other.policy == policy)


def test_where_the_engine_is_known_the_answer_is_the_truth() -> None:
    served = record("boost")
    answer = ask(served, [policies.get("fcfs"), policies.get("sjf")])
    truth = run(served.workload, served.predicted_len, "fcfs")
    assert answer.fidelity["mean_e2e"].error == pytest.approx(0.0, abs=1e-9)
    told = against(answer, "fcfs")
    assert told.measures["mean_e2e"] == pytest.approx(float(np.mean(metrics.e2e(truth))))
    saved = 1 - np.mean(metrics.e2e(served.completed)) / np.mean(metrics.e2e(truth))
    assert told.claims["mean_e2e"].saved == pytest.approx(saved)
    assert told.claims["mean_e2e"].stands
    assert sentence(answer).startswith("Saved ")
    # who lost: those that waited longer than the truth of arrival order says
    waits = np.asarray(served.completed.start_time - truth.start_time)
    assert sum(one.lost for one in answer.losses) == int((waits > 1e-3).sum()) > 0
    assert sum(one.requests for one in answer.losses) == 400


def test_a_claim_smaller_than_the_replays_error_is_refused() -> None:
    wrong = ask(record("boost", factor=1.5), [policies.get("fcfs")])
    for measure in ("mean_wait", "mean_e2e"):
        claim = against(wrong, "fcfs").claims[measure]
        assert 0 < abs(claim.saved) < claim.error
        assert not claim.stands
    assert sentence(wrong).startswith("No claim: ")


def test_where_nobody_waits_no_order_could_help() -> None:
    answer = ask(record("boost", rate=0.05, n=60), [policies.get("fcfs")])
    assert not answer.waited
    assert sentence(answer) == "Nobody waited: no order could have helped."


def test_an_order_that_goes_by_predictions_needs_some() -> None:
    served = record("fcfs")._replace(predicts=False)
    with pytest.raises(DataError, match="goes by predictions and the record has none"):
        ask(served, [policies.get("fcfs"), policies.get("boost")])
    ask(served, [policies.get("fcfs"), policies.get("sjf")])
    with pytest.raises(DataError, match="19 requests with times, allowed: at least 20"):
        ask(record("fcfs", n=19), [policies.get("fcfs")])


def exported(path: Path, served: ServedTraffic) -> Path:
    arrival_time, first, finish, start_time = (
        np.asarray(column)
        for column in (
            served.completed.arrival_time,
            served.completed.first_token_time,
            served.completed.finish_time,
            served.completed.start_time,
        )
    )
    with path.open("w", encoding="utf-8") as out:
        for row in range(len(served.workload)):
            arrival, start = float(arrival_time[row]), float(start_time[row])
            line = {
                "id": str(row),
                "tenant": served.tenants[served.workload.tenant[row]],
                "backend": "a",
                "arrival_time": 1e9 + arrival,
                "wait": start - arrival,
                "first_byte": float(first[row]) - start,
                "total": float(finish[row]) - arrival,
                "prompt_len": int(served.workload.prompt_len[row]),
                "output_len": int(served.workload.output_len[row]),
                "status": 200,
                "stream": True,
                "score": float(served.score[row]),
                "predicted_len": float(served.predicted_len[row]),
            }
            out.write(json.dumps(line) + "\n")
    return path


def test_a_journal_is_asked_from_the_command_line(tmp_path: Path) -> None:
    served = record("boost")
    file = exported(tmp_path / "journal.jsonl", served)
    engine = tmp_path / "engine.toml"
    engine.write_text(dataclasses.replace(ENGINE, approximate=False).to_toml(), encoding="utf-8")
    words = ["whatif", str(file), "--engine", str(engine), "--policy", "sjf"]
    done = CliRunner().invoke(root, [*words, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["served"] == "boost"
    assert [order["policy"] for order in told["orders"]] == ["fcfs", "sjf"]
    assert told["replay"]["mean_e2e"]["error"] < 1e-3
    truth = float(np.mean(metrics.e2e(run(served.workload, served.predicted_len, "fcfs"))))
    assert told["orders"][0]["mean_e2e_s"] == pytest.approx(truth, rel=1e-3)
    assert {one["tenant"] for one in told["lost"]} == {"tenant 0", "tenant 1", "tenant 2"}
    shown = CliRunner().invoke(root, words)
    assert "saved against fcfs" in shown.stdout
    assert "error of the replay" in shown.stdout


def test_an_engine_found_from_the_journal_states_its_error(tmp_path: Path) -> None:
    file = exported(tmp_path / "journal.jsonl", record("boost", n=120, rate=8.0))
    served = read(str(file))
    assert served.engine.max_num_seqs == 8
    answer = ask(served, [policies.get("fcfs")])
    assert answer.fidelity["mean_e2e"].error < 0.1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no finished request"),
        ('{"a": 1}\n', "lacks one of arrival_time"),
        ('{"finish_step": 3}\n', "a line without arrival_step"),
        ("nothing\n", "not JSON"),
    ],
)
def test_what_is_no_record_is_one_line(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read(str(file))
    with pytest.raises(DataError, match="no file"):
        read(str(tmp_path / "nowhere.jsonl"))


def test_columns_fill_in_what_nobody_said() -> None:
    rows = [
        ServedRow(float(i), i, i, i + 1, 5, 9, 3, math.nan if i else 4.0, math.nan, "t") for i in range(3)
    ]
    made = columns(rows, "here")
    assert made.score.tolist() == [4.0, 4.0, 4.0]
    assert made.predicted_len.tolist() == [0.0, 0.0, 0.0]
    assert made.workload.cached_len.tolist() == [4, 4, 4]


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Return a folder with the traces of a real vLLM that served 200 requests under boost and under fcfs."""
    for packed in (Path(__file__).parents[1] / "data").glob("whatif_*.gz"):
        (tmp_path / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return tmp_path


def test_a_real_vllm_does_what_was_said_it_would(real: Path) -> None:
    served = read(str(real / "whatif_boost.jsonl"))
    assert (served.policy.name, served.clock, served.engine.max_num_seqs) == ("boost", "work", 16)
    answer = ask(served, [policies.get("fcfs")])
    truth = read_trace(real / "whatif_fcfs.jsonl", pace=served.engine.pace)
    assert truth.policy.name == "fcfs"
    there = float(np.mean(metrics.e2e(truth.completed)))
    told = against(answer, "fcfs")
    assert told.measures["mean_e2e"] == pytest.approx(there, rel=0.05)
    saved = 1 - float(np.mean(metrics.e2e(served.completed))) / there
    assert told.claims["mean_e2e"].stands
    assert abs(told.claims["mean_e2e"].saved - saved) < answer.fidelity["mean_e2e"].error


def test_without_the_engines_own_word_its_limits_are_those_it_reached(real: Path) -> None:
    (real / "whatif_boost.jsonl.engine").unlink()
    served = read(str(real / "whatif_boost.jsonl"), "boost")
    assert served.engine.max_num_seqs == 16
    assert ask(served, [policies.get("fcfs")]).fidelity["mean_e2e"].error < 0.05


def test_a_trace_that_is_broken_is_one_line(real: Path) -> None:
    (real / "whatif_boost.jsonl.engine").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="allowed: what the plugin writes beside its trace"):
        read(str(real / "whatif_boost.jsonl"))
    steps = real / "whatif_fcfs.jsonl.steps"
    lines = steps.read_text(encoding="utf-8").splitlines(keepends=True)
    steps.write_text("".join(lines[:9]), encoding="utf-8")
    with pytest.raises(DataError, match="names steps that"):
        read(str(real / "whatif_fcfs.jsonl"))
