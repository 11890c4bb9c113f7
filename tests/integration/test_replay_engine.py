"""Collect and replay on the real vLLM, with a tiny random-weight model."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from serving import serve

from sooner.replay.client import Endpoint, Sampling
from sooner.replay.collect import collect
from sooner.replay.drive import attach_fields, replay
from sooner.replay.record import completed, read_run, summary
from sooner.replay.saved import replay_to_file
from sooner.replay.trace import join_trace
from sooner.workloads.arrivals import burst
from sooner.workloads.prompts import Prompt

pytestmark = pytest.mark.engine


def workload(n: int) -> list[Prompt]:
    return [
        Prompt(
            id=f"p{index}",
            messages=({"role": "user", "content": f"word{index} word{2 * index}"},),
            output_len=4 + 12 * (n - index),
            fields={"rank": n - index},
        )
        for index in range(n)
    ]


def test_collected_lengths_come_again_in_a_replay(plain_server: str, tmp_path: Path) -> None:
    endpoint, sampling = Endpoint(url=plain_server, model="tiny"), Sampling(max_tokens=24, temperature=1.0)
    prompts, out = workload(8), tmp_path / "lengths.jsonl"
    result = asyncio.run(collect(prompts, out, endpoint, sampling, concurrency=4))
    assert (result.n, result.failed) == (8, {})
    collected = {line["id"]: line for line in map(json.loads, out.read_text().splitlines())}
    run = asyncio.run(
        replay_to_file(tmp_path / "run.jsonl", prompts, burst(8), endpoint, sampling, label="fcfs")
    )
    assert run.meta["server_version"]
    for record in read_run(tmp_path / "run.jsonl").records:
        assert record.error is None
        assert record.prompt_len == collected[record.id]["prompt_len"]
        assert record.seed == collected[record.id]["seed"]
        assert record.output_len == collected[record.id]["output_len"]
        assert record.output_len is not None
        assert len(record.itl) <= record.output_len


def test_forced_lengths_and_priorities_hold(plain_server: str) -> None:
    """While long requests take all four slots, eight arrive; the four of best priority run first."""
    blockers = [dataclasses.replace(prompt, output_len=600, fields={"rank": 0}) for prompt in workload(16)]
    prompts = [*blockers, *workload(8)]
    records = asyncio.run(
        replay(
            prompts,
            np.r_[np.zeros(16), np.full(8, 0.5)],
            Endpoint(url=plain_server, model="tiny"),
            Sampling(),
            force_len=True,
            attach=attach_fields(priority_field="rank"),
        )
    )
    assert [record.output_len for record in records] == [prompt.output_len for prompt in prompts]
    done = completed(records)
    first = np.asarray(done.first_token_time)
    assert first[20:].max() <= first[16:20].min()  # the later of the eight have the smaller rank
    assert (first <= np.asarray(done.finish_time)).all()
    assert np.asarray(done.truncated).sum() == 0


def test_the_plugins_trace_joins(tiny_model: Path, tmp_path: Path) -> None:
    trace, out = tmp_path / "trace.jsonl", tmp_path / "run.jsonl"
    settings = {"policy": "ltr", "ranker": "", "trace": str(trace)}
    with serve(tiny_model, settings=settings, max_num_seqs=2) as url:
        run = asyncio.run(
            replay_to_file(
                out,
                workload(8),
                burst(8),
                Endpoint(url=url, model="tiny"),
                Sampling(),
                force_len=True,
                attach=attach_fields("output_len"),
                server_trace=trace,
            )
        )
    assert summary(run.records)["mean_e2e_steps"] > 0
    for record in run.records:
        assert record.arrival_step is not None
        assert record.first_token_step is not None
        assert record.finish_step is not None
        assert record.arrival_step <= record.first_token_step < record.finish_step
        assert record.start_time is not None
        assert record.finish_time is not None
        assert -0.5 < record.start_time < record.finish_time
    order = sorted(run.records, key=lambda record: record.finish_step or 0)
    assert order[-1].index in (0, 1)  # of the longest, one is last
    assert join_trace(run.records, trace) == run.records
