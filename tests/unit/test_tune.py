"""`sooner tune`: chosen on what came before, judged on what came after, and "leave it off"."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sooner.cli import root
from sooner.core import ConfigError, DataError
from sooner.sim.cost import Engine
from sooner.sim.study import Prepared, Study, prepare
from sooner.sim.tune import Point, advice, choose, tune
from sooner.workloads.build import Shape

SMALL = Engine(max_num_seqs=8, num_blocks=4_000)


def prepared(load: float, requests: int = 2_000) -> tuple[Study, Prepared]:
    study = Study(workload="lognormal", engine=SMALL, shape=Shape(requests=requests), load=load, tau=0.5)
    return study, prepare(study)


def point(policy: str, mean: float, p99: float, gamma: float | None = None) -> Point:
    return Point(policy, gamma, mean, p99, mean, p99)


FCFS = point("fcfs", 1.0, 1.0)


def test_where_requests_wait_an_order_is_found_and_its_tail_kept() -> None:
    found = tune(*prepared(1.0), tail=1.2)
    assert found.chosen.policy == "boost"
    assert found.chosen.mean_ratio < 0.95
    assert [p.mean_ratio for p in found.frontier] == sorted(p.mean_ratio for p in found.frontier)
    assert {p.policy for p in found.frontier} == {"fcfs", "boost", "aged", "spw"}
    assert len(found.folds) == 3
    assert found.settings["vllm"]["sooner"]["policy"] == "boost"


def test_where_nobody_waits_the_answer_is_to_leave_it_off() -> None:
    found = tune(*prepared(0.2))
    assert found.chosen == FCFS
    assert found.advice.startswith("No queue, no gain: leave it off.")


def test_the_answer_is_the_same_each_time() -> None:
    assert tune(*prepared(0.9)) == tune(*prepared(0.9))


def test_what_is_chosen_stays_within_the_tail_in_every_part() -> None:
    good, risky = point("boost", 0.8, 1.04, 0.1), point("boost", 0.5, 1.04, 0.01)
    whole = [FCFS, good, risky]
    part = [FCFS, good, risky._replace(p99_ratio=1.2)]
    assert choose([whole, whole], 1.05) == risky
    assert choose([whole, part], 1.05) == good
    assert choose([[FCFS, point("aged", 0.2, 1.0)]], 1.05) == FCFS  # nothing holds its tail
    assert choose([[FCFS, point("boost", 0.995, 1.0, 0.0)]], 1.05) == FCFS  # no gain worth its risk


def test_the_advice_says_where_the_halves_differ() -> None:
    for chosen, says in (
        (point("boost", 0.6, 1.2, 0.1), "above the 1.05 asked for"),
        (point("boost", 1.02, 1.0, 0.1), "Leave it off"),
        (point("boost", 0.6, 1.0, 0.0), "gamma estimated: mean latency 0.60"),
        (FCFS, "no order gained"),
    ):
        assert says in advice(chosen, [FCFS, point("aged", 0.4, 2.0), chosen], 1.05)


def test_what_cannot_be_tuned_is_refused() -> None:
    study, ready = prepared(0.9, requests=399)
    with pytest.raises(DataError, match="399 requests, allowed: at least 400"):
        tune(study, ready)
    for tail in (0.9, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="tail="):
            tune(study, ready, tail=tail)


def test_the_command_prints_json_and_writes_a_page(tmp_path: Path) -> None:
    page = tmp_path / "tune.html"
    common = ("tune", "lognormal", "--requests", "1000", "--set", "max_num_seqs=8", "--tail", "1.3")
    result = CliRunner().invoke(root, [*common, "--load", "1.1", "--json", "--html", str(page)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["chosen"].keys() >= {"policy", "gamma", "mean_ratio", "p99_ratio"}
    assert len(found["frontier"]) == 10
    assert found["advice"]
    text = page.read_text()
    assert found["advice"].replace("'", "&#x27;") in text
    assert "<script" not in text
    told = CliRunner().invoke(root, [*common, "--load", "1.1"])
    assert "--additional-config" in told.stdout
    off = CliRunner().invoke(root, [*common, "--load", "0.2"])
    assert off.exit_code == 1
    assert "leave it off" in off.stdout
