"""`sooner collect` against a real HTTP server."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakeserver import FakeServer

from sooner.core import ConfigError, DataError, EngineError
from sooner.replay import collect as module
from sooner.replay.client import Endpoint, Sampling, seed_of
from sooner.replay.collect import Collected, collect
from sooner.replay.record import meta_path
from sooner.workloads.prompts import Prompt

_SOONER = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started without it
from sooner.cli import main
main()
"""


def prompt(id: str | int, text: str) -> Prompt:
    return Prompt(id=id, messages=({"role": "user", "content": text},))


def run(
    server: FakeServer,
    prompts: list[Prompt],
    out: Path,
    *,
    concurrency: int = 4,
    api: str = "chat",
    max_tokens: int = 5,
    keep_text: bool = False,
) -> Collected:
    async def main() -> Collected:
        async with server.serving():
            return await collect(
                prompts,
                out,
                Endpoint(url=server.url + "/v1/", model="m", api=api),
                Sampling(max_tokens=max_tokens, temperature=0.6),
                concurrency=concurrency,
                keep_text=keep_text,
            )

    return asyncio.run(main())


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_records_lengths_without_text(tmp_path: Path) -> None:
    server, out = FakeServer(), tmp_path / "x.jsonl"
    result = run(server, [prompt("a", "one two"), prompt(7, "w " * 9)], out)
    assert {line["id"]: line for line in lines(out)} == {
        "a": {"id": "a", "prompt_len": 2, "output_len": 2, "finish_reason": "stop", "seed": seed_of("a", 0)},
        7: {"id": 7, "prompt_len": 9, "output_len": 5, "finish_reason": "length", "seed": seed_of(7, 0)},
    }
    assert (result.n, result.capped_share, result.output_tokens, result.failed) == (2, 0.5, 7, {})
    assert {body["seed"] for body in server.seen} == {seed_of("a", 0), seed_of(7, 0)}
    assert all(body["temperature"] == 0.6 and "top_p" not in body for body in server.seen)
    meta = json.loads(meta_path(out).read_text())
    assert meta["server_version"] == "fake-1"
    assert meta["complete"]
    assert meta["settings"]["max_tokens"] == 5


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_keeps_text_when_asked(tmp_path: Path, api: str) -> None:
    out = tmp_path / "x.jsonl"
    run(FakeServer(), [prompt("a", "one two")], out, keep_text=True, api=api)
    assert lines(out)[0]["text"] == "one two"


def test_keeps_the_number_under_way(tmp_path: Path) -> None:
    server = FakeServer(first_token_s=0.01)
    run(server, [prompt(i, "w") for i in range(20)], tmp_path / "x.jsonl", concurrency=3)
    assert server.most_under_way == 3


def test_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    out, server = tmp_path / "x.jsonl", FakeServer()
    run(server, [prompt(0, "w"), prompt(1, "w w")], out)
    whole = out.read_text()
    out.write_text(whole + '{"id": 2, "outp')
    result = run(server, [prompt(i, "w") for i in range(4)], out)
    assert [line["id"] for line in lines(out)] == [0, 1, 2, 3]
    assert out.read_text().startswith(whole)
    assert (len(server.seen), result.n) == (4, 4)


def test_refuses_other_settings_and_other_files(tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    run(FakeServer(), [prompt(0, "w")], out)
    with pytest.raises(ConfigError, match=r"max_tokens=9, but x\.meta\.json says 5"):
        run(FakeServer(), [prompt(1, "w")], out, max_tokens=9)
    out.write_text("[]\n")
    with pytest.raises(DataError, match=r"x.jsonl:1: not a line"):
        run(FakeServer(), [prompt(1, "w")], out)
    with pytest.raises(ConfigError, match="concurrency=0"):
        run(FakeServer(), [prompt(1, "w")], out, concurrency=0)


def test_sends_again_after_a_dropped_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", (0.0, 0.0, 0.0))
    server = FakeServer(flaky=3)
    assert run(server, [prompt(i, "w") for i in range(3)], tmp_path / "x.jsonl").n == 3


def test_a_refused_prompt_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", (0.0,))
    result = run(
        FakeServer(),
        [prompt("bad", "error400"), prompt("worse", "error500"), prompt(1, "w")],
        tmp_path / "x.jsonl",
    )
    assert result.n == 1
    assert set(result.failed) == {"bad", "worse"}
    assert "no such luck" in result.failed["bad"]


def test_a_dead_server_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", (0.0,))
    with pytest.raises(EngineError, match="does not answer any more"):
        run(FakeServer(flaky=99), [prompt(1, "w")], tmp_path / "x.jsonl")
    with pytest.raises(EngineError, match="cannot reach"):
        asyncio.run(
            collect([], tmp_path / "y.jsonl", Endpoint(url="http://127.0.0.1:9", model="m"), Sampling())
        )


def test_ctrl_c_leaves_a_whole_file(tmp_path: Path) -> None:
    out, prompts = tmp_path / "x.jsonl", tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": "w " * (i % 7 + 1)}) + "\n" for i in range(500)))

    async def main() -> int:
        server = FakeServer(token_s=0.02)
        async with server.serving():
            command = ["collect", str(prompts), "--url", server.url, "--model", "m", "--out", str(out)]
            process = subprocess.Popen(
                [sys.executable, "-c", _SOONER, *command, "--concurrency", "8"], stderr=subprocess.PIPE
            )
            deadline = time.monotonic() + 240
            while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            process.send_signal(signal.SIGINT)
            status = await asyncio.to_thread(process.wait, 240)
            assert b"Traceback" not in (process.stderr.read() if process.stderr else b"")
            if process.stderr:
                process.stderr.close()
            return status

    assert asyncio.run(main()) == 130
    assert 0 < len(lines(out)) < 500
    assert out.read_text().endswith("\n")
    assert json.loads(meta_path(out).read_text())["complete"] is False
