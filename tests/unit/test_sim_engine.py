"""The simulated engine from outside: presets, files, options, what it refuses, progress."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba, the sim extra, is not installed")

from sooner import policies
from sooner.core import ConfigError, DataError, EngineError, UnknownName
from sooner.sim.cost import PRESETS, Engine, changed, load
from sooner.sim.engine import Options, simulate
from sooner.workloads.columns import Workload

FCFS = policies.get("fcfs")


def workload(
    prompt: list[int], output: list[int], arrival: list[float] | None = None, **columns: object
) -> Workload:
    return Workload(
        arrival_time=np.array(arrival or [0.0] * len(prompt)),
        prompt_len=np.array(prompt),
        output_len=np.array(output),
        **columns,  # type: ignore[arg-type]
    )


def test_presets_are_labelled_and_survive_a_file(tmp_path: Path) -> None:
    assert {"llama3-8b-a100", "llama3-8b-h100", "llama3-70b-8xa100"} <= PRESETS.keys()
    for name, preset in PRESETS.items():
        assert preset.approximate
        assert preset.source
        path = tmp_path / f"{name}.toml"
        path.write_text(dataclasses.replace(preset, source='a "quoted" \\ path').to_toml(), encoding="utf-8")
        assert dataclasses.replace(load(str(path)), source=preset.source) == load(name) == preset


def test_an_engine_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownName, match="did you mean 'llama3-8b-h100'"):
        load("llama3-8b-h10")
    with pytest.raises(ConfigError, match="cannot read"):
        load("missing.toml")
    with pytest.raises(UnknownName, match="num_blocks"):
        changed(Engine(), {"num_block": 3})
    assert changed(Engine(), {"num_blocks": 3.0}).num_blocks == 3
    for field, value in (
        ("iteration_s", 0.0),
        ("num_blocks", 0),
        ("max_num_batched_tokens", 8),
        ("watermark", 1.0),
    ):
        with pytest.raises(ConfigError, match=field):
            changed(Engine(), {field: value})


def test_one_request_takes_what_the_formula_says() -> None:
    engine = Engine(iteration_s=0.01, prefill_token_s=1e-3, decode_seq_s=1e-4, context_token_s=1e-5)
    done = simulate(workload([100], [3]), engine, FCFS).completed
    first = 0.01 + 100e-3
    second = 0.01 + 1e-4 + 101e-5
    assert done.first_token_time == pytest.approx([first])
    assert done.finish_time == pytest.approx([first + 2 * second + 1e-5])


def test_what_a_request_spends_beside_the_engine_delays_its_tokens_only() -> None:
    load_ = workload([10, 10], [5, 5])
    plain = simulate(load_, Engine(max_num_seqs=1), FCFS).completed
    late = simulate(load_, Engine(max_num_seqs=1, overhead_s=0.5), FCFS).completed
    assert late.start_time == pytest.approx(plain.start_time)
    assert late.first_token_time == pytest.approx(plain.first_token_time + 0.5)
    assert late.finish_time == pytest.approx(plain.finish_time + 0.5)


def test_a_prompt_longer_than_the_budget_is_cut_into_chunks() -> None:
    engine = Engine(iteration_s=0.01, prefill_token_s=0.0, max_num_seqs=4, max_num_batched_tokens=40)
    done = simulate(workload([100], [1]), engine, FCFS).completed
    assert done.finish_time == pytest.approx([0.03])


def test_a_cached_prefix_is_not_computed() -> None:
    engine = Engine(iteration_s=0.01, prefill_token_s=1e-3)
    done = simulate(workload([100], [1], cached_len=np.array([90])), engine, FCFS).completed
    assert done.finish_time == pytest.approx([0.02])


def test_what_cannot_be_served_is_rejected_and_who_leaves_is_cancelled() -> None:
    engine = Engine(num_blocks=10, block_size=16, max_num_seqs=1)
    outcome = simulate(
        workload([200, 10, 10], [1, 100, 100], cancel_time=np.array([np.inf, np.inf, 0.1])), engine, FCFS
    )
    assert outcome.rejected.tolist() == [0]
    assert outcome.cancelled.tolist() == [2]
    assert np.asarray(outcome.completed.id).tolist() == [1]


def test_recompute_makes_up_for_blocks_that_are_short() -> None:
    engine = Engine(num_blocks=12, block_size=4, max_num_seqs=4)
    done = simulate(workload([8] * 4, [30] * 4), engine, FCFS).completed
    assert np.sum(done.preemptions) > 0
    assert np.asarray(done.preemptions)[0] == 0  # the first to come is never the victim


def test_requests_that_only_evict_each_other_are_an_error() -> None:
    engine = Engine(max_num_seqs=1, max_num_batched_tokens=1, block_size=1, num_blocks=8)
    with pytest.raises(EngineError, match="only evict each other"):
        simulate(
            workload([4, 4, 4], [3, 3, 3]), engine, policies.get("sjf"),
            options=Options(iteration_level=True, guard=1, quantum=1),
        )  # fmt: skip


def test_progress_ends_with_everything_done() -> None:
    seen: list[tuple[int, int]] = []
    load_ = workload([10] * 50, [10] * 50)
    watched = simulate(load_, Engine(), FCFS, progress=lambda done, n: seen.append((done, n)))
    assert seen[-1] == (50, 50)
    plain = simulate(load_, Engine(), FCFS)
    assert np.array_equal(watched.completed.finish_time, plain.completed.finish_time)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"router": "random"}, "unknown router 'random'"),
        ({"engine": []}, "0 instances"),
        ({"options": Options(swap=True)}, "swap=True needs iteration_level=True"),
        ({"engine": [Engine()] * 2, "options": Options(iteration_level=True)}, "one instance"),
        ({"score": np.zeros(3)}, "score: shape"),
        ({"score": np.array([np.nan])}, "1 finite numbers"),
    ],
)
def test_options_that_do_not_go_together(arguments: dict[str, object], says: str) -> None:
    given = {"engine": Engine(), **arguments}
    with pytest.raises((ConfigError, DataError), match=says):
        simulate(workload([1], [1]), given.pop("engine"), FCFS, **given)  # type: ignore[arg-type]


def test_options_and_times_are_checked() -> None:
    for bad in ({"guard": -1}, {"quantum": 0}, {"predict_s": -0.1}):
        with pytest.raises(ConfigError, match="allowed: guard >= 0"):
            Options(**bad)  # type: ignore[arg-type]
    for weights in ({0: 0}, {0: 999_983, 1: 2}):
        with pytest.raises(ConfigError, match="whole numbers >= 1, a common multiple"):
            Options(weights=weights)
    with pytest.raises(DataError, match="arrivals up to"):
        simulate(workload([1], [1], [1e9]), Engine(), FCFS)


def test_nothing_to_do_is_nothing_done() -> None:
    outcome = simulate(workload([], []), Engine(), FCFS)
    assert np.size(outcome.completed.id) == 0


def test_a_cluster_of_unlike_engines_sends_work_where_it_is_done() -> None:
    n = 2_000
    fast, slow = Engine(), Engine(iteration_s=0.03)
    load_ = workload([50] * n, [100] * n, np.linspace(0.0, 20.0, n).tolist())
    shares = {}
    for router in ("round-robin", "least-requests", "least-work", "max-min"):
        outcome = simulate(load_, [fast, slow], FCFS, predicted_len=np.full(n, 100.0), router=router)
        shares[router] = float(np.mean(outcome.instance == 0))
    assert shares["round-robin"] == 0.5
    assert shares["least-requests"] > 0.7
    assert shares["least-work"] > 0.7
    assert shares["max-min"] > shares["least-work"]
