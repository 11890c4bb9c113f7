"""The demo: its measures on records with a known answer, and all of it, small, on the real engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sooner.core import DataError, EngineError
from sooner.demo import arms, engine, page, prompts, run
from sooner.replay.record import Record


def served(lengths: list[int], order: list[int]) -> list[Record]:
    """What one slot makes of a burst: each request runs alone, one token a step, in `order`."""
    step, found = 0, {}
    for place in order:
        start, step = step, step + lengths[place]
        found[place] = Record(
            index=place, id=f"r{place}", request_id=f"r{place}", seed=0, arrival_time=0.0, sent_time=0.0,
            start_time=float(start), first_token_time=float(start + 1), finish_time=float(step),
            prompt_len=3, output_len=lengths[place], finish_reason="stop", arrival_step=0,
            first_scheduled_step=start, first_token_step=start + 1, finish_step=step, preemptions=0,
        )  # fmt: skip
    return [found[place] for place in range(len(lengths))]


def test_gains_are_those_of_the_steps() -> None:
    lengths = [30, 10, 20]
    runs = {
        "fcfs": [served(lengths, [0, 1, 2])],  # ends at 30, 40, 60: mean 130 / 3
        "ltr": [served(lengths, [1, 0, 2])],  # 10, 40, 60: mean 110 / 3
        "sjf": [served(lengths, [1, 2, 0])],  # 10, 30, 60: mean 100 / 3
    }
    result = arms.comparison(runs, {"ltr": {"r0": 2.0, "r1": 1.0, "r2": 3.0}})
    assert result["gain_vs_fcfs"] == pytest.approx(130 / 110)
    assert result["share_of_oracle_gain"] == pytest.approx(20 / 30)
    assert result["normalized_gain_vs_fcfs"] == pytest.approx((1 + 4 + 3) / (40 / 30 + 1 + 3))
    assert result["kendall_tau"] == pytest.approx(1 / 3)
    assert result["capped_share"] == 0.0
    assert result["same_lengths_share"] == 1.0
    assert [arm["policy"] for arm in result["arms"]] == ["fcfs", "ltr", "sjf"]
    needed = {
        "policy", "n", "mean_e2e_s", "mean_e2e_steps", "mean_normalized_latency", "mean_ttft_s", "p50_ttft_s",
        "p99_ttft_s", "p99_e2e_s", "output_tokens", "preemptions",
    }  # fmt: skip
    assert all(needed <= arm.keys() for arm in result["arms"])


def test_a_second_ranker_is_measured_beside_the_first() -> None:
    lengths = [30, 10, 20]
    runs = {
        "fcfs": [served(lengths, [0, 1, 2])],
        "ltr": [served(lengths, [1, 2, 0])],
        arms.BESIDE: [served(lengths, [1, 0, 2])],
        "sjf": [served(lengths, [1, 2, 0])],
    }
    told = {"ltr": {"r0": 3.0, "r1": 1.0, "r2": 2.0}, arms.BESIDE: {"r0": 2.0, "r1": 1.0, "r2": 3.0}}
    result = arms.comparison(runs, told)
    assert [arm["policy"] for arm in result["arms"]] == ["fcfs", "ltr", "sjf"]
    assert result["share_of_oracle_gain"] == pytest.approx(1.0)
    assert result["beside"]["share_of_oracle_gain"] == pytest.approx(20 / 30)
    assert result["beside"]["arm"]["policy"] == "ltr"
    assert result["beside"]["kendall_tau"] == pytest.approx(1 / 3)


def test_an_arm_with_a_failed_request_is_not_compared() -> None:
    broken = [
        *served([5], [0]),
        Record(index=1, id="r1", request_id="r1", seed=0, arrival_time=0.0, error="it broke"),
    ]
    with pytest.raises(DataError, match="it broke"):
        arms.summary("ltr", [broken])


def test_eligible_prompts_are_first_turns_once_each_and_not_excluded(tmp_path: Path) -> None:
    def item(id: str, said: str, who: str = "human") -> dict[str, object]:
        return {"id": id, "conversations": [{"from": who, "value": said}]}

    kept = [item("a_0", "hello"), item("b_0", "bye")]
    left = [
        item("a_3", "later"), item("c_0", "hello"), item("d_0", "first", "gpt"), item("held_0", "secret"),
        item("e_0", "x" * 1401), {"id": "f_0", "conversations": []},
    ]  # fmt: skip
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps(kept + left)[:-1], encoding="utf-8")  # cut off, as the packaged one is
    found = list(prompts.eligible(path, frozenset({"held"})))
    assert [prompt.id for prompt in found] == ["a_0", "b_0"]
    assert found[0].messages[-1] == {"role": "user", "content": "hello"}


def test_nothing_is_both_trained_on_and_held_out() -> None:
    collected = {prompt.prompt.id for prompt in prompts.collected()}
    held_out = {prompt.id for prompt in prompts.held_out(500)}
    assert len(collected) >= 1500
    assert len(held_out) == 500
    assert not collected & held_out


@pytest.mark.engine
def test_a_server_that_cannot_start_says_why_and_is_gone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    made = engine.serve(tmp_path / "model", name="x", log=tmp_path / "log", settings=None, max_num_seqs=2)
    with pytest.raises(EngineError, match=r"vllm serve ended with code [1-9]"), made:
        pass
    assert processes_of(tmp_path / "model") == []


@pytest.mark.engine
def test_an_interrupt_leaves_no_process_behind(tiny_model: Path, tmp_path: Path) -> None:
    def interrupted() -> None:
        with engine.serve(
            tiny_model, name="x", log=tmp_path / "log", settings={"policy": "fcfs"}, max_num_seqs=2,
            options=("--load-format", "dummy", "--max-model-len", "1024"),
        ):  # fmt: skip
            assert processes_of(tiny_model)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert processes_of(tiny_model) == []


@pytest.mark.engine
def test_the_demo_end_to_end(tmp_path: Path) -> None:
    scale = run.Scale(max_num_seqs=2, requests=8, bursts=2, max_tokens=64)
    result = run.run(tmp_path, scale, "lexical", beside="prompt_length", say=lambda words: None, bars=silent)
    assert [arm["n"] for arm in result["arms"]] == [16, 16, 16]
    assert len(result["by_burst"]) == 2
    assert result["same_lengths_share"] > 0.7
    assert result["oracle_gain_vs_fcfs"] >= 1.0
    assert {"fcfs-1.jsonl", "ltr-2.jsonl", "sjf.server.log", "demo.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    scored = [json.loads(line) for line in (tmp_path / "ltr.trace.jsonl").read_text().splitlines()]
    assert sum(line["scored"] for line in scored) >= 12
    assert result["beside"]["arm"]["n"] == 16
    assert "<svg" in page.write(tmp_path, result).read_text(encoding="utf-8")
    assert processes_of(tmp_path) == []


@contextmanager
def silent(title: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


def processes_of(argument: Path) -> list[int]:
    """Return the processes with a path in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(argument).encode() in command:
                found.append(int(entry.name))
    return found
