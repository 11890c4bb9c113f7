"""The gateway in front of two real vLLMs: OpenAI's own client, an engine killed in a burst, vLLM's benchmark.

One of them goes by priority and one by arrival. Nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from gateway_rig import rig, run, until
from serving import serve

from sooner.gateway.app import Gateway
from sooner.gateway.settings import JournalSettings, QueueSettings

openai = pytest.importorskip("openai", reason="openai is not installed; it comes with vLLM")

pytestmark = pytest.mark.engine
PATIENCE = 400.0  # seconds, for a machine that does much else


QUEUE = QueueSettings(max_wait=PATIENCE, overdue=PATIENCE)


@pytest.fixture(scope="module")
def other_server(tiny_model: Path) -> Iterator[str]:
    """Address of a `vllm serve` in order of arrival, on one core; the last test here kills it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", str(max(os.sched_getaffinity(0))))
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        with serve(tiny_model) as url:
            yield url


class Reply(NamedTuple):
    """What a client saw: whether it was told of a cut, how many pieces came, the engine's count of tokens."""

    cut: bool
    pieces: int
    tokens: int


def client(gateway: Gateway) -> Any:
    """Return OpenAI's client of the gateway, which does not try again by itself."""
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


def asked(n: int, tokens: int, **more: Any) -> dict[str, Any]:
    """Return the arguments of a chat request whose reply has exactly `tokens` tokens."""
    said = [{"role": "user", "content": f"word{n} word{n + 1}"}]
    extra = {"ignore_eos": True, **more}
    return {"model": "tiny", "messages": said, "max_tokens": tokens, "extra_body": extra}


async def whole(ai: Any, n: int, tokens: int, **more: Any) -> Reply:
    """Ask for a reply in one piece."""
    reply = await ai.chat.completions.create(
        **asked(n, tokens, **more), extra_headers={"x-request-id": f"r{n}"}
    )
    assert reply.choices[0].finish_reason == "length"
    return Reply(False, 1, reply.usage.completion_tokens)


async def streamed(ai: Any, n: int, tokens: int, begun: set[int]) -> Reply:
    """Ask for a stream; `begun` is told when its first piece is here."""
    pieces = count = 0
    reason = None
    try:
        stream = await ai.chat.completions.create(
            **asked(n, tokens), stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            pieces += 1
            begun.add(n)
            reason = chunk.choices[0].finish_reason if chunk.choices else reason
            count = chunk.usage.completion_tokens if chunk.usage else count
    except openai.APIError as error:
        return Reply("broke off" in str(error), pieces, count)
    assert reason == "length"
    return Reply(False, pieces, count)


def test_two_engines_serve_a_burst_in_the_policys_order(
    plain_server: str, other_server: str, tmp_path: Path
) -> None:
    lengths = [5 * (n * 7 % 24 + 1) for n in range(24)]  # each once, in no order
    journal = JournalSettings(url=f"sqlite:///{tmp_path / 'journal.db'}")

    async def test() -> None:
        async with (
            rig(
                [plain_server, other_server], backend={"max_in_flight": 1},
                policy="ltr", client_scores=True, journal=journal, queue=QUEUE,
            ) as gateway,
            client(gateway) as ai,
        ):  # fmt: skip
            backends = gateway.dispatcher.backends
            for one in backends:
                one.draining = True  # so that all of them wait before the first one starts
            tasks = [
                asyncio.create_task(whole(ai, n, length, vllm_xargs={"sooner_predicted_len": length}))
                for n, length in enumerate(lengths)
            ]
            await until(lambda: gateway.dispatcher.queued == len(lengths), PATIENCE)
            for one in backends:
                one.draining = False
            replies = await asyncio.gather(*tasks)
            assert [reply.tokens for reply in replies] == lengths
            assert all(one.hand_on for one in backends)  # vLLM takes a priority that it does not go by

    run(test, PATIENCE)
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as database:
        served = database.execute(
            "SELECT id, backend, arrival_time + wait AS started, arrival_time + total FROM sooner_requests"
            " WHERE status = 200 ORDER BY started"
        ).fetchall()
    order = [lengths[int(id[1:])] for id, *_ in served]
    # Two may start in one moment, one at each engine; each engine's own are one after the other.
    assert all(abs(place - sorted(lengths).index(length)) <= 1 for place, length in enumerate(order))
    engines = {backend for _, backend, *_ in served}
    assert len(engines) == 2
    for engine in engines:
        own = [length for length, (_, at, *_) in zip(order, served, strict=True) if at == engine]
        assert own == sorted(own)
        assert _most_passed(served, engine) <= 1  # a free engine is given the next one


def _most_passed(served: list[Any], engine: str) -> int:
    """Return how many requests started elsewhere, at most, while an engine had none and others waited."""
    own = [(started, ended) for _, at, started, ended in served if at == engine]
    ends = [ended for _, ended in own]
    next_starts = [started for started, _ in own[1:]] + [math.inf]
    elsewhere = [started for _, at, started, _ in served if at != engine]
    return max(
        sum(ended < started < then for started in elsewhere)
        for ended, then in zip(ends, next_starts, strict=True)
    )


def test_anthropics_client_works_unmodified(plain_server: str) -> None:
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed; it comes with vLLM")
    said: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": 7,
        "messages": [{"role": "user", "content": "word1"}],
    }

    async def test() -> None:
        async with (
            rig([plain_server], queue=QUEUE) as gateway,
            anthropic.AsyncAnthropic(
                base_url=gateway.url, api_key="none", max_retries=0, timeout=PATIENCE
            ) as ai,
        ):
            whole = await ai.messages.create(**said)
            assert (whole.usage.output_tokens, whole.stop_reason) == (7, "max_tokens")
            async with ai.messages.stream(**said) as stream:
                text = "".join([piece async for piece in stream.text_stream])
                last = await stream.get_final_message()
            assert last.usage.output_tokens == 7
            assert text == last.content[0].text
            with pytest.raises(anthropic.NotFoundError):
                await ai.messages.create(**{**said, "model": "nobody"})
            assert gateway.dispatcher.counters.counts["finished"] == 2

    run(test, PATIENCE)


def test_vllms_own_benchmark_runs_without_an_error(
    plain_server: str, other_server: str, tiny_model: Path, tmp_path: Path
) -> None:
    lengths = [4 + n for n in range(24)]
    (tmp_path / "work.json").write_text(json.dumps([
        {"conversations": [{"value": "word1 word2 word3 word4"}, {"value": "word5 " * length}]}
        for length in lengths
    ]))  # fmt: skip

    async def test() -> None:
        async with rig([plain_server, other_server], policy="fcfs", queue=QUEUE) as gateway:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve"),
                *("--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
                *("--base-url", gateway.url, "--model", "tiny", "--tokenizer", str(tiny_model)),
                *("--dataset-name", "sharegpt", "--dataset-path", str(tmp_path / "work.json")),
                *("--num-prompts", str(len(lengths)), "--ignore-eos", "--disable-tqdm"),
                *("--save-result", "--result-dir", str(tmp_path), "--result-filename", "result.json"),
                env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await process.communicate()
            assert process.returncode == 0, said.decode(errors="replace")[-2000:]
            counts = gateway.dispatcher.counters.counts
            assert counts["finished"] >= len(lengths)
            assert counts["upstream_errors"] == counts["cut_streams"] == counts["client_gone"] == 0

    run(test, PATIENCE)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (len(lengths), 0)
    assert result["total_output_tokens"] == sum(lengths)


def test_an_engine_killed_in_a_burst_loses_only_what_had_begun(plain_server: str, other_server: str) -> None:
    """Of the burst every second pair is streamed, so that each engine has both kinds when one is killed."""
    tokens = 300

    async def test() -> None:
        async with (
            rig(
                [plain_server, other_server], backend={"max_in_flight": 4}, policy="fcfs", queue=QUEUE
            ) as gateway,
            client(gateway) as ai,
        ):
            doomed = gateway.dispatcher.backends[1]
            begun: set[int] = set()
            tasks = [
                asyncio.create_task(whole(ai, n, tokens) if n // 2 % 2 else streamed(ai, n, tokens, begun))
                for n in range(24)
            ]
            await until(lambda: len(begun) >= 4 and doomed.in_flight == 4, PATIENCE)
            at_kill = doomed.in_flight
            kill_server(other_server)
            replies = await asyncio.gather(*tasks)
            cut = [reply for reply in replies if reply.cut]
            assert len(cut) <= at_kill
            assert all(reply.pieces for reply in cut)  # who had seen nothing was served elsewhere
            assert all(reply.tokens == tokens for reply in replies if not reply.cut)
            counts = gateway.dispatcher.counters.counts
            assert counts["cut_streams"] == len(cut)
            assert counts["retries"] >= 1
            assert doomed.in_flight == 0
            after = await whole(ai, 0, 5)
            assert after.tokens == 5

    run(test, PATIENCE)


def kill_server(url: str) -> None:
    """Kill a server of ours and every process of it, as a machine that loses its power does."""
    port = str(urlsplit(url).port).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"serve" in words and words[words.index(b"--port") + 1 :][:1] == [port]:
                    os.killpg(int(entry.name), signal.SIGKILL)
                    return
    raise AssertionError(f"no process of {url} was found")
