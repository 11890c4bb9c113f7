"""The hinter as an Envoy's `ext_proc` service, asked over gRPC with messages written by hand."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner
from gateway_rig import chat, run, until
from hint_rig import Target, hinter, process

grpc = pytest.importorskip("grpc", reason="grpcio is not installed (pip install 'sooner[envoy]')")

from envoy_rig import (  # noqa: E402  # they need grpcio
    BUFFERED,
    DUPLEX,
    NONE,
    PARTIAL,
    PROCESS,
    STREAMED,
    ask,
    body,
    field,
    headers,
    service,
)

from sooner.cli import root  # noqa: E402
from sooner.gateway.hints.targets import TARGETS  # noqa: E402

SHORT, LONG = chat("What is 2 + 2?"), chat("Write a long and detailed novel about the sea. " * 20)
HEADERS, BODY, TRAILERS, REPLY_HEADERS, REPLY_BODY, REPLY_TRAILERS = 1, 3, 5, 2, 4, 6  # kinds of answers


@pytest.mark.parametrize("name", TARGETS)
def test_a_request_gets_the_hint_that_the_proxy_writes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_795_000_000.25)
    rule = TARGETS[name]

    async def test() -> None:
        async with (
            Target().serving() as target,
            hinter(name, target.url) as proxy,
            service(name) as (server, envoy),
            aiohttp.ClientSession(proxy.url) as http,
        ):
            for asked in (LONG, SHORT, {**SHORT, "priority": 3}):
                sent = json.dumps(asked).encode()
                async with http.post("/v1/chat/completions", data=sent) as response:
                    assert response.status == 200
                first, second = await ask(envoy, headers(), body(sent))
                assert (first.kind, first.unchanged, second.kind) == (HEADERS, True, BODY)
                seen, passed = target.seen[-1]
                if rule.header:
                    assert second.headers == {rule.header: seen[rule.header].encode()}
                    assert second.actions == {rule.header: 2}  # overwrites what the client sent
                    assert second.body is None
                else:
                    assert second.body == passed != sent
                    assert second.headers == {"content-length": b"%d" % len(passed)}
                    assert second.actions == {"content-length": 3}
            assert server.hinter.counters.counts == proxy.hinter.counters.counts

    run(test)


def test_the_bytes_are_envoys() -> None:
    """A request with nothing but what a hand wrote, and the whole of its answers."""
    asked = (
        b"\x12\x44\x0a\x42"  # request_headers = 2, its headers = 1
        b"\x0a\x0f\x0a\x07:method\x1a\x04POST"  # a header: key = 1, raw_value = 3
        b"\x0a\x1d\x0a\x05:path\x1a\x14/v1/chat/completions"
        b"\x0a\x10\x0a\x0ax-whatever\x1a\x02\xff\xfe"
        b"\x42\x02\x0a\x00\x5a\x02\x08\x02"  # metadata = 8; protocol_config = 11: BUFFERED
    )
    text = b'{"model":"m","messages":[{"role":"user","content":"2 + 2?"}]}'
    then = b"\x22%c\x0a%c%b\x10\x01" % (len(text) + 4, len(text), text)  # request_body = 4, end_of_stream = 2

    async def test() -> None:
        async with service("llm-d", ranker="", policy="fcfs") as (_, envoy):
            call = envoy.stream_stream(PROCESS)()
            await call.write(asked)
            await call.write(then)
            # request_headers = 1 {}; request_body = 3: response = 1, header_mutation = 2, set_headers = 1:
            # header = 1 (key = 1, raw_value = 3), append_action = 3: OVERWRITE_IF_EXISTS_OR_ADD = 2
            assert [answer async for answer in call] == [
                b"\x0a\x00",
                b"\x1a\x22\x0a\x20\x12\x1e\x0a\x1c\x0a\x18\x0a\x13x-llm-d-slo-ttft-ms\x1a\x010\x18\x02",
            ]

    run(test)


def test_what_cannot_be_read_goes_on_as_it_came() -> None:
    big = json.dumps(chat("x" * 3000)).encode()
    short = json.dumps(SHORT).encode()
    unreadable = [b"no json", b"[1, 2]", b"{}", b"\xff\xfe", b"", big]

    async def test() -> None:
        async with service("sglang", max_body=2000) as (server, envoy):
            counts = server.hinter.counters.counts

            async def unchanged(*messages: bytes, leave: bool = False, **more: int) -> None:
                before = dict(counts)
                answers = await ask(envoy, *messages, leave=leave)
                assert len(answers) == len(messages)
                assert all(answer.unchanged for answer in answers)
                found = {name: counts[name] - before[name] for name in counts if counts[name] != before[name]}
                assert found == more

            for text in unreadable:
                await unchanged(headers(), body(text), requests=1, unchanged=1)
            await unchanged(headers(end=True), requests=1, unchanged=1)
            await unchanged(headers(mode=NONE), leave=True, requests=1, unchanged=1)
            await unchanged(
                headers(mode=STREAMED), body(short[:9], False), body(short[9:]), requests=1, unchanged=1
            )
            for mode in (None, PARTIAL):  # the first piece is not all of it
                pieces = body(short[:9], False), body(short[9:])
                await unchanged(headers(mode=mode), *pieces, requests=1, unchanged=1)
            await unchanged(headers("/v1/embeddings"), body(short))
            await unchanged(headers(method="GET", end=True))
            assert counts["hook_errors"] == 0

    run(test)


def test_a_message_that_is_unknown_ends_the_stream_in_peace() -> None:
    async def test() -> None:
        async with service("sglang") as (server, envoy):
            for odd in (b"\xff", b"", field(12, b"of the future")):
                call = envoy.stream_stream(PROCESS)()
                await call.write(headers())
                assert await call.read() == b"\x0a\x00"
                await call.write(odd)
                assert await call.read() is grpc.aio.EOF
                assert await call.code() == grpc.StatusCode.OK  # which lets an Envoy go on
            assert server.hinter.counters.counts["unread"] == 3
            assert await ask(envoy, headers(more=field(10, 1))) == []  # it only looks on

    run(test)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("mode", [BUFFERED, PARTIAL, None])
def test_a_whole_body_is_hinted_however_envoy_sends_it(mode: int | None, raw: bool) -> None:
    async def test() -> None:
        async with service("trtllm") as (_, envoy):
            sent = headers("/v1/completions?x=1", mode=mode, raw=raw, more=field(99, b"unknown"))
            answers = await ask(envoy, sent, body(json.dumps(SHORT).encode()))
            assert json.loads(answers[1].body or b"")["priority"] > 0

    run(test)


def test_trailers_and_replies_are_answered_too() -> None:
    text = json.dumps(SHORT).encode()
    trailers = field(6, b"")
    replies = (field(3, b""), body(b"reply", False, 5), field(7, b""))
    kinds = [REPLY_HEADERS, REPLY_BODY, REPLY_TRAILERS]

    async def test() -> None:
        async with service("sglang") as (_, envoy):
            answers = await ask(envoy, headers(), body(text, False), trailers)
            assert [answer.kind for answer in answers] == [HEADERS, BODY, TRAILERS]
            assert answers[1].body is not None
            answers = await ask(envoy, headers(mode=NONE), *replies, leave=True)
            assert [answer.kind for answer in answers] == [HEADERS, *kinds]
            assert all(answer.unchanged for answer in answers)
            answers = await ask(envoy, headers(mode=NONE, reply_mode=DUPLEX), *replies, leave=True)
            assert [answer.kind for answer in answers] == [HEADERS, *kinds]
            assert (answers[2].piece, answers[2].last) == (b"reply", False)

    run(test)


@pytest.mark.parametrize("name", ["vllm", "sglang"])
@pytest.mark.parametrize("ended_by", ["the body", "trailers"])
def test_a_body_in_pieces_is_held_until_it_is_whole(name: str, ended_by: str) -> None:
    """Both ways streamed: the headers are answered only when the hint is known."""
    text = json.dumps(SHORT).encode()
    last = ended_by == "the body"
    end = [body(text[20:])] if last else [body(text[20:], False), field(6, b"")]

    async def test() -> None:
        async with service(name) as (_, envoy):
            answers = await ask(envoy, headers(mode=DUPLEX), body(text[:20], False), *end)
            kinds = [HEADERS, BODY] if last else [HEADERS, BODY, TRAILERS]
            assert [answer.kind for answer in answers] == kinds
            assert answers[1].last == last
            if name == "vllm":
                assert list(answers[0].headers) == ["x-vllm-priority"]
                assert answers[1].piece == text
            else:
                assert answers[0].headers == {"content-length": b"%d" % len(answers[1].piece or b"")}
                assert "priority" in json.loads(answers[1].piece or b"")

    run(test)


def test_a_body_in_pieces_that_is_none_of_ours_or_too_large_goes_by() -> None:
    text = json.dumps(chat("x" * 3000)).encode()
    pieces = [body(text[:1000], False), body(b"", False), body(text[1000:2500], False), body(text[2500:])]

    async def test() -> None:
        async with service("sglang", max_body=2000) as (server, envoy):
            for path in ("/v1/embeddings", "/v1/completions"):
                answers = await ask(envoy, headers(path, mode=DUPLEX), *pieces)
                assert answers[0].kind == HEADERS
                assert answers[0].unchanged
                assert b"".join(answer.piece or b"" for answer in answers[1:]) == text
                assert [answer.last for answer in answers] == [False] * (len(answers) - 1) + [True]
            counts = server.hinter.counters.counts
            assert (counts["requests"], counts["unchanged"], counts["hinted"]) == (1, 1, 0)

    run(test)


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX])
def test_a_body_of_a_mebibyte(mode: int) -> None:
    asked = chat("the sea " * (1 << 17))
    text = json.dumps(asked).encode()

    async def test() -> None:
        async with service("sglang") as (_, envoy):
            answers = await ask(envoy, headers(mode=mode), body(text))
            whole = b"".join(answer.body or answer.piece or b"" for answer in answers)
            assert {**json.loads(whole), "priority": None} == {**asked, "priority": None}
            assert all(len(answer.piece or b"") < 1 << 16 for answer in answers)

    run(test)


def test_two_at_once_and_one_that_breaks_off() -> None:
    async def test() -> None:
        async with service("vllm") as (server, envoy):
            broken, slow = envoy.stream_stream(PROCESS)(), envoy.stream_stream(PROCESS)()
            for call in (broken, slow):
                await call.write(headers())
                assert await call.read() == b"\x0a\x00"
            assert server.under_way == 2
            broken.cancel()
            await until(lambda: server.under_way == 1)
            first, second = await ask(envoy, headers(), body(json.dumps(LONG).encode()))
            assert (first.unchanged, list(second.headers)) == (True, ["x-vllm-priority"])
            await slow.write(body(json.dumps(SHORT).encode()))
            assert b"x-vllm-priority" in await slow.read()
            assert await slow.read() is grpc.aio.EOF
            assert server.under_way == 0
            assert server.hinter.counters.counts["hook_errors"] == 0

    run(test)


def test_a_score_that_comes_late_is_not_waited_for_and_a_failure_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = json.dumps(SHORT).encode()

    async def test() -> None:
        async with service("vllm", ranker="ranker_slow:Ranker") as (server, envoy):
            _, answer = await ask(envoy, headers(), body(text))
            assert "x-vllm-priority" in answer.headers
            counts = server.hinter.counters.counts
            assert (counts["neutral"], counts["scorer_timeouts"]) == (1, 1)
            monkeypatch.setattr(server.hinter, "later", None)
            assert len(await ask(envoy, headers(), body(text))) == 1
            assert counts["hook_errors"] == 1

    run(test, 60)


def test_its_health_and_its_pages() -> None:
    async def test() -> None:
        async with service("dynamo", metrics_port=0) as (server, envoy):
            check = envoy.unary_unary("/grpc.health.v1.Health/Check")
            named = field(1, b"envoy.service.ext_proc.v3.ExternalProcessor")
            assert [await check(b""), await check(named)] == [b"\x08\x01"] * 2
            with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
                await check(field(1, b"another"))
            async with aiohttp.ClientSession(server.pages_url) as http:
                async with http.get("/sooner/health") as response:
                    assert (await response.json())["target"] == "dynamo"
                async with http.get("/sooner/metrics") as response:
                    assert "sooner_hint_unread_total 0" in await response.text()
                async with http.get("/v1/models") as response:
                    assert response.status == 404
            port = int(server.url.rpartition(":")[2])
            with pytest.raises(OSError, match="cannot listen"):
                async with service("dynamo", port=port):
                    pass

    run(test)


def test_it_is_started_by_its_command_and_stops_when_it_is_told_to() -> None:
    async def test(started: Any, url: str) -> None:
        async with grpc.aio.insecure_channel(url.removeprefix("grpc://")) as channel:
            call = channel.stream_stream(PROCESS)()
            await call.write(headers())
            assert await call.read() == b"\x0a\x00"
            started.send_signal(signal.SIGTERM)
            await call.write(body(json.dumps(SHORT).encode()))  # what is under way is finished
            assert b"x-vllm-priority" in await call.read()
            assert await call.read() is grpc.aio.EOF
            assert await asyncio.get_running_loop().run_in_executor(None, started.wait, 60) == 0

    with process("--target", "vllm", "--ext-proc") as (started, url):
        run(lambda: test(started, url), 90)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ext-proc", "--backend", "http://a:1"], "Envoy sends requests on itself"),
        (["--metrics-port", "9003"], "only with --ext-proc"),
        (["--ext-proc", "--metrics-port", "70000"], "0..65535"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: list[str], said: str) -> None:
    done = CliRunner().invoke(root, ["hint", "--target", "vllm", *options])
    assert done.exit_code != 0
    assert said in done.output + str(done.exception)
