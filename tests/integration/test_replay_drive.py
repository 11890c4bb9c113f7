"""Replay against a real HTTP server, and against everything a server can do wrong."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakeserver import FakeServer

from sooner import metrics
from sooner.core import DataError, EngineError
from sooner.replay.client import Endpoint, Sampling, seed_of
from sooner.replay.drive import attach_fields, replay
from sooner.replay.record import Record, completed, read_run, summary
from sooner.replay.saved import replay_to_file
from sooner.replay.trace import join_trace
from sooner.workloads.arrivals import burst
from sooner.workloads.prompts import Prompt

_SOONER = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started without it
from sooner.cli import main
main()
"""


def prompt(id: str | int, text: str, *, output_len: int | None = None, **fields: Any) -> Prompt:
    messages = ({"role": "user", "content": text},)
    return Prompt(id=id, messages=messages, output_len=output_len, fields=fields)


def run(
    server: FakeServer, workload: list[Prompt], times: object = None, api: str = "chat", **options: Any
) -> list[Record]:
    async def main() -> list[Record]:
        async with server.serving():
            endpoint = Endpoint(url=server.url, model="m", api=api)
            arrivals: Any = burst(len(workload)) if times is None else times
            return await replay(workload, arrivals, endpoint, Sampling(max_tokens=50), **options)

    return asyncio.run(main())


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_measures_a_stream_by_its_definitions(api: str) -> None:
    (record,) = run(FakeServer(first_token_s=0.2, token_s=0.05), [prompt("a", "w " * 5)], api=api)
    done = record.completed()
    assert record.error is None
    assert (record.prompt_len, record.output_len, record.finish_reason) == (5, 5, "stop")
    assert len(record.itl) == 4
    assert metrics.ttft(done) >= 0.2
    assert metrics.tpot(done) >= 0.03
    assert metrics.tpot(done) == pytest.approx(np.mean(record.itl))
    assert metrics.e2e(done) == pytest.approx(float(metrics.ttft(done)) + sum(record.itl))
    assert done.truncated == 0


def test_a_reply_at_its_limit_is_truncated() -> None:
    (record,) = run(FakeServer(), [prompt("a", "w " * 60)])
    assert (record.output_len, record.completed().truncated) == (50, 1)


FAULTS = {
    "error500": "status 500: .*no such luck",
    "error400": "status 400",
    "cut": "Client.*Error|broke off",
    "silent": "broke off",
    "garbage": "is no reply",
    "midfault": "engine died",
    "nousage": "include_usage",
}


def test_every_fault_is_recorded_and_the_rest_goes_on() -> None:
    workload = [prompt(fault, f"{fault} w w") for fault in FAULTS] + [prompt("good", "w w")]
    records = run(FakeServer(), workload)
    assert [record.id for record in records] == [*FAULTS, "good"]
    for record in records[:-1]:
        assert not record.finished
        assert re.search(FAULTS[str(record.id)], record.error or ""), record
    assert records[-1].finished
    assert all(record.sent_time is not None for record in records)
    assert completed(records).id.tolist() == [len(FAULTS)]  # type: ignore[union-attr]
    assert summary(records)["failed"] == len(FAULTS)


def test_a_reply_that_never_ends_times_out_and_keeps_what_was_seen() -> None:
    (record,) = run(FakeServer(), [prompt(0, "hang w w")], timeout=0.5)
    assert record.error == "TimeoutError"
    assert record.first_token_time is not None
    assert record.finish_reason is None


def test_arrivals_wait_for_no_reply() -> None:
    times = np.arange(40) * 0.01
    server = FakeServer(hold=40)
    records = run(server, [prompt(i, "w") for i in range(40)], times)
    assert all(record.finished and record.schedule_delay >= 0 for record in records)
    assert [record.arrival_time for record in records] == times.tolist()


def test_a_burst_of_many_is_wholly_under_way_at_once() -> None:
    records = run(FakeServer(hold=300), [prompt(i, "w") for i in range(300)])
    assert all(record.finished for record in records)


def test_request_ids_and_seeds_reach_the_server() -> None:
    server = FakeServer()
    records = run(server, [prompt("a", "w"), prompt("b", "w")])
    assert sorted(str(id) for id in server.request_ids) == sorted(record.request_id for record in records)
    assert {body["seed"] for body in server.seen} == {seed_of("a", 0), seed_of("b", 0)}
    assert len({record.request_id for record in records}) == 2


def test_attaches_fields_of_the_workload() -> None:
    server = FakeServer()
    workload = [prompt(0, "w", score=2.5, rank=3)]
    (record,) = run(server, workload, attach=attach_fields("score", "rank"))
    assert server.seen[0]["vllm_xargs"] == {"sooner_score": 2.5}
    assert server.seen[0]["priority"] == 3
    assert record.attached == {"vllm_xargs": {"sooner_score": 2.5}, "priority": 3}
    run(server, [prompt(0, "w", output_len=9)], attach=attach_fields("output_len"))
    assert server.seen[1]["vllm_xargs"] == {"sooner_predicted_len": 9.0}
    with pytest.raises(DataError, match="'nothing' is None, allowed: a number"):
        run(server, workload, attach=attach_fields("nothing"))
    with pytest.raises(DataError, match=r"priority 2\.5, allowed: an integer"):
        run(server, workload, attach=attach_fields(None, "score"))


def test_forces_lengths() -> None:
    server = FakeServer()
    (record,) = run(server, [prompt(0, "w w w", output_len=2)], force_len=True)
    assert {name: server.seen[0][name] for name in ("ignore_eos", "min_tokens", "max_tokens")} == {
        "ignore_eos": True,
        "min_tokens": 2,
        "max_tokens": 2,
    }
    assert (record.output_len, record.finish_reason, record.completed().truncated) == (2, "length", 0)
    with pytest.raises(DataError, match="no output_len"):
        run(server, [prompt(0, "w")], force_len=True)


def test_refuses_times_that_do_not_fit() -> None:
    for times in ([0.0], [0.0, -1.0], [0.0, float("nan")]):
        with pytest.raises(DataError, match="allowed: one >= 0 for each"):
            run(FakeServer(), [prompt(0, "w"), prompt(1, "w")], times)


def engine_trace(path: Path, server: FakeServer, **changes: object) -> None:
    """Write what the plugin would, ids dressed as vLLM dresses them."""
    line = {"arrival_step": 4, "first_scheduled_step": 5, "first_token_step": 6, "finish_step": 9}
    with path.open("w") as file:
        file.write(json.dumps({"request_id": "chatcmpl-somebody-else-0a0a0a0a", **line}) + "\n")
        for id in server.request_ids:
            full = {"request_id": f"chatcmpl-{id}-0a1b2c3d", **line, "preemptions": 2, **changes}
            file.write(json.dumps(full) + "\n")
        file.write('{"request_id": "torn')


def saved(
    server: FakeServer, workload: list[Prompt], out: Path, **options: Any
) -> tuple[Mapping[str, Any], list[Record]]:
    async def main() -> None:
        async with server.serving():
            await replay_to_file(
                out,
                workload,
                burst(len(workload)),
                Endpoint(url=server.url, model="m"),
                Sampling(),
                **options,
            )

    asyncio.run(main())
    return read_run(out)


def test_a_saved_run_reads_back(tmp_path: Path) -> None:
    meta, records = saved(
        FakeServer(),
        [prompt("a", "w w"), prompt(1, "error400")],
        tmp_path / "fcfs.jsonl",
        notes={"arrivals": "burst"},
    )
    assert (meta["label"], meta["server_version"], meta["arrivals"]) == ("fcfs", "fake-1", "burst")
    assert meta["complete"] is True
    assert [record.id for record in records] == ["a", 1]
    assert [record.finished for record in records] == [True, False]
    assert "mean_e2e_steps" not in summary(records)


def test_joins_the_engines_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, trace = FakeServer(), tmp_path / "trace.jsonl"

    def write_then_join(records: list[Record], path: Path, **options: Any) -> list[Record]:
        engine_trace(path, server)
        Path(f"{path}.steps").write_text(json.dumps({"step": 5, "time": time.time() + 7}) + "\n")
        return join_trace(records, path, **options)

    monkeypatch.setattr("sooner.replay.saved.join_trace", write_then_join)
    workload = [prompt("a", "w w"), prompt("b", "w")]
    _, records = saved(server, workload, tmp_path / "x.jsonl", server_trace=trace)
    done = completed(records)
    assert np.asarray(metrics.e2e_steps(done)).tolist() == [5, 5]
    assert np.asarray(done.preemptions).tolist() == [2, 2]
    assert np.asarray(done.first_token_step).tolist() == [6, 6]
    assert np.asarray(done.start_time) == pytest.approx(7, abs=1)
    assert summary(records)["mean_e2e_steps"] == 5


def test_a_trace_of_another_server_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"request_id": "chatcmpl-x"}\n')
    with pytest.raises(DataError, match="has no line for 1 of 1 finished"):
        join_trace(run(FakeServer(), [prompt(0, "w")]), trace)
    trace.write_text("nonsense\n")
    with pytest.raises(DataError, match="not JSON"):
        join_trace(run(FakeServer(), [prompt(0, "w")]), trace)


def test_a_server_that_is_not_there_or_refuses_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="none of 1 requests finished; the first: status 400"):
        saved(FakeServer(), [prompt(0, "error400")], tmp_path / "x.jsonl")
    nowhere = Endpoint(url="http://127.0.0.1:9", model="m")
    with pytest.raises(EngineError, match="cannot reach"):
        asyncio.run(replay_to_file(tmp_path / "y.jsonl", [prompt(0, "w")], [0.0], nowhere, Sampling()))
    with pytest.raises(DataError, match="no prompt to replay"):
        asyncio.run(replay_to_file(tmp_path / "y.jsonl", [], [], nowhere, Sampling()))


def command(server: FakeServer, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _SOONER, "replay", *arguments, "--url", server.url, "--model", "m"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_the_command_replays_and_sums_up(tmp_path: Path) -> None:
    workload, out = tmp_path / "w.jsonl", tmp_path / "run.jsonl"
    workload.write_text("".join(json.dumps({"prompt": "w " * (i + 1)}) + "\n" for i in range(9)))

    async def main() -> tuple[bytes, bytes]:
        server = FakeServer()
        async with server.serving():
            options = ["--arrivals", "gamma", "--rate", "50", "--limit", "8", "--label", "fcfs"]
            process = command(server, str(workload), "--out", str(out), *options)
            return await asyncio.to_thread(process.communicate, timeout=240)

    output, words = asyncio.run(main())
    assert json.loads(output)["n"] == 8, words
    assert read_run(out).meta["arrivals"] == {
        "kind": "gamma", "rate": 50.0, "cv": 2.0, "time_scale": 1.0, "seed": 0
    }  # fmt: skip


def test_ctrl_c_keeps_what_was_seen(tmp_path: Path) -> None:
    workload, out = tmp_path / "w.jsonl", tmp_path / "run.jsonl"
    workload.write_text('{"prompt": "w w"}\n{"prompt": "hang w w"}\n')

    async def main() -> tuple[int | None, bytes]:
        server = FakeServer()
        async with server.serving():
            process = command(server, str(workload), "--out", str(out))
            deadline = time.monotonic() + 240
            while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, words = await asyncio.to_thread(process.communicate, timeout=240)
            return process.returncode, words

    status, words = asyncio.run(main())
    assert status == 130
    assert b"Traceback" not in words
    meta, records = read_run(out)
    assert [record.error for record in records] == [None, "interrupted"]
    assert meta["complete"] is False
