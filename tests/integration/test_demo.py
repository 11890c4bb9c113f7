"""The demo: its measures on records with a known answer, and all of it, small, on the real engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sooner.core import DataError, EngineError
from sooner.demo import arms, engine, model, page, prompts, run
from sooner.replay.record import Record
from sooner.replay.work_clock import read_steps

ONE_SECOND = {"prefill": 0, "decoding": 1, "context": 100}


def served(lengths: list[int], order: list[int], folder: Path, label: str) -> tuple[list[Record], Path]:
    """What one slot makes of a burst: each request runs alone, one token a step, in `order`."""
    step, found = 0, {}
    for place in order:
        start, step = step, step + lengths[place]
        found[place] = Record(
            index=place, id=f"r{place}", request_id=f"r{place}", seed=0, arrival_time=0.0, sent_time=0.0,
            start_time=float(start), first_token_time=float(start + 1), finish_time=float(step),
            prompt_len=3, output_len=lengths[place], finish_reason="stop", arrival_step=0,
            first_scheduled_step=start + 1, first_token_step=start + 1, finish_step=step, preemptions=0,
        )  # fmt: skip
    trace = folder / f"{label}.trace.jsonl"
    lines = [
        {"step": k, "time": float(k), "running": 1, "waiting": 0, **ONE_SECOND} for k in range(1, step + 1)
    ]
    Path(f"{trace}.steps").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [found[place] for place in range(len(lengths))], trace


def compared(lengths: list[int], orders: dict[str, list[int]], folder: Path) -> dict[str, Any]:
    made = {label: served(lengths, order, folder, label) for label, order in orders.items()}
    runs, traces = ({label: one[i] for label, one in made.items()} for i in (0, 1))
    return arms.comparison(runs, {"r0": 2.0, "r1": 1.0, "r2": 3.0}, traces)


def test_gains_are_those_of_the_engines_work(tmp_path: Path) -> None:
    orders = {
        "fcfs": [0, 1, 2],  # ends at 30, 40, 60: mean 130 / 3
        "boost": [1, 0, 2],  # 10, 40, 60: mean 110 / 3
        "ltr": [0, 2, 1],  # 30, 50, 60: mean 140 / 3
        "oracle": [1, 2, 0],  # 10, 30, 60: mean 100 / 3
    }
    result = compared([30, 10, 20], orders, tmp_path)
    assert result["gain_vs_fcfs"] == pytest.approx(130 / 110)
    assert result["share_of_oracle_gain"] == pytest.approx(20 / 30)
    assert result["length_gain_vs_fcfs"] == pytest.approx(130 / 140)
    assert result["normalized_gain_vs_fcfs"] == pytest.approx((1 + 4 + 3) / (40 / 30 + 1 + 3))
    assert result["kendall_tau"] == pytest.approx(1 / 3)
    assert result["capped_share"] == 0.0
    assert result["same_lengths_share"] == 1.0
    assert [arm["policy"] for arm in result["arms"]] == ["fcfs", "boost", "ltr", "oracle"]
    assert result["arms"][0]["mean_e2e_s"] == pytest.approx(130 / 3, rel=0.01)  # a step took a second
    assert "1.18 times sooner" in page.headline(result | {"scale": {}})


def test_the_machines_noise_moves_no_figure(tmp_path: Path) -> None:
    orders = {"fcfs": [0, 1, 2], "boost": [1, 2, 0]}
    calm = compared([30, 10, 20], orders, tmp_path)
    for label, slow in (("fcfs", 1.0), ("boost", 1.7)):  # another program beside one of the two
        steps = tmp_path / f"{label}.trace.jsonl.steps"
        lines = [json.loads(line) for line in steps.read_text().splitlines()]
        for line in lines:
            line["time"] *= slow
        steps.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    noisy = arms.comparison(
        {label: served([30, 10, 20], order, elsewhere, label)[0] for label, order in orders.items()},
        {"r0": 2.0, "r1": 1.0, "r2": 3.0},
        {label: tmp_path / f"{label}.trace.jsonl" for label in orders},
    )
    assert noisy["gain_vs_fcfs"] == pytest.approx(calm["gain_vs_fcfs"])
    assert noisy["p99_gain_vs_fcfs"] == pytest.approx(calm["p99_gain_vs_fcfs"])


def test_an_arm_with_a_failed_request_is_not_compared(tmp_path: Path) -> None:
    records, trace = served([5], [0], tmp_path, "fcfs")
    broken = replace(records[0], error="it broke")
    with pytest.raises(DataError, match="it broke"):
        arms.comparison({"fcfs": [broken]}, {"r0": 1.0}, {"fcfs": trace})


def test_a_trace_without_its_steps_work_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl.steps").write_text('{"step": 1, "time": 1.0, "running": 1, "waiting": 0}\n')
    with pytest.raises(DataError, match="have every step's work"):
        read_steps(tmp_path / "old.jsonl")


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
    scale = run.Scale(max_num_seqs=2, questions=9, documents=3, max_tokens=48)
    result = run.run(tmp_path, scale, "lexical", say=lambda words: None, bars=silent)
    assert [arm["n"] for arm in result["arms"]] == [12, 12, 12, 12]
    assert result["same_lengths_share"] > 0.7
    assert result["gain_vs_fcfs"] > 1.0
    assert result["oracle_gain_vs_fcfs"] > 1.0
    assert {"fcfs.jsonl", "ltr.jsonl", "oracle.server.log", "demo.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    scored = [json.loads(line) for line in (tmp_path / "boost.trace.jsonl").read_text().splitlines()]
    assert sum(line["scored"] for line in scored) >= 10
    assert all(line["work"] > 0 for line in scored)
    text = page.write(tmp_path, result).read_text(encoding="utf-8")
    assert "<svg" in text
    assert page.headline(result) in text
    assert processes_of(tmp_path) == []


def test_documents_are_long_and_fit_the_model(tmp_path: Path) -> None:
    tokenizer = model.prepare() / "tokenizer.json"
    found = prompts.documents(20, tokenizer)
    assert len({prompt.messages[-1]["content"] for prompt in found}) == 20
    assert all(len(prompt.messages[-1]["content"]) > prompts.MAX_BYTES for prompt in found)
    with pytest.raises(DataError, match="documents, allowed"):
        prompts.documents(10_000, tokenizer)


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
