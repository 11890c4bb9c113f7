"""The papers' systems as configurations of the gateway, end to end: SSJF, SCLS, Magnus."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway_rig import chat, client, engine, events, raw, rig, run, until

from sooner.emulator.api import EmulatedEngine
from sooner.emulator.engine import Lengths
from sooner.gateway.app import Gateway
from sooner.gateway.settings import SliceSettings, read_with

DEPLOY = Path(__file__).parents[2] / "deploy"
RANKER = "ranker_by_length:Ranker"


@asynccontextmanager
async def live(name: str, engines: Sequence[EmulatedEngine | str], **changes: Any) -> AsyncIterator[Gateway]:
    """Serve `deploy/NAME.toml` in front of engines, with a ranker that tells each prompt's length."""
    chosen = read_with(DEPLOY / f"{name}.toml", {})
    names = ("policy", "parameters", "queue", "slices")
    kept = {name: getattr(chosen, name) for name in names}
    backend = {"max_in_flight": chosen.backends[0].max_in_flight} | changes.pop("backend", {})
    ranker = RANKER if chosen.ranker else ""
    patient = {"scorer_timeout": 60.0, **kept, **changes}
    async with rig(engines, backend=backend, ranker=ranker, **patient) as gateway:
        yield gateway


async def ask(http: aiohttp.ClientSession, body: dict[str, Any], path: str = "chat/completions") -> Any:
    async with http.post(f"/v1/{path}", json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def behind_one(gateway: Gateway, one: EmulatedEngine, http: aiohttp.ClientSession, sizes: list[int],
                     pause: float = 0.0) -> list[int]:  # fmt: skip
    """Let requests wait behind a long one until all are scored; return the order they are served in."""
    first = asyncio.create_task(ask(http, chat("first", max_tokens=100_000)))
    running = gateway.dispatcher.waiting.values()
    await until(lambda: len(one.seen) == 1 and all(request.scored for request in running), 60)
    tasks = []
    for n, size in enumerate(sizes):
        tasks.append(asyncio.create_task(ask(http, chat("x" * size, max_tokens=40))))
        await until(lambda n=n: gateway.dispatcher.queued == n + 1)
        await asyncio.sleep(pause)
    await until(lambda: gateway.dispatcher.counters.counts["scored"] >= len(sizes), 60)
    first.cancel()
    await asyncio.gather(*tasks)
    return [len(prompt) for _, prompt in one.seen[1:]]


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def test_ssjf_serves_the_shortest_predicted_first() -> None:
    async def test() -> None:
        one = engine(lengths=Lengths("100000"))
        async with live("ssjf", [one], backend={"max_in_flight": 1}) as gateway, client(gateway) as http:
            assert await behind_one(gateway, one, http, [30, 10, 20, 38]) == [10, 20, 30, 38]

    run(test, 120)


def test_ssjfs_guard_puts_everyone_in_order_of_waiting() -> None:
    async def test() -> None:
        one = engine(lengths=Lengths("100000"))
        queue = replace(read_with(DEPLOY / "ssjf.toml", {}).queue, overdue=0.05)
        options = {"backend": {"max_in_flight": 1}, "queue": queue}
        async with live("ssjf", [one], **options) as gateway, client(gateway) as http:
            assert await behind_one(gateway, one, http, [30, 10, 20, 38], 0.06) == [30, 10, 20, 38]

    run(test, 120)


def test_magnus_serves_the_highest_response_ratio_first() -> None:
    async def test() -> None:
        one = engine(lengths=Lengths("100000"))
        async with live("magnus", [one], backend={"max_in_flight": 1}) as gateway, client(gateway) as http:
            # t / 20 > (t - 0.6) / 18 > (t - 0.3) / 40 for every t from 0.85 to 6 s
            assert await behind_one(gateway, one, http, [20, 40, 18], 0.3) == [20, 18, 40]

    run(test, 120)


def lengthy(n: int, **changes: Any) -> EmulatedEngine:
    return engine(lengths=Lengths(str(n)), **changes)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 20])
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_scls_replies_in_slices_are_those_in_one_piece(path: str, length: int) -> None:
    """Eight tokens at a time: the client sees the same text, usage and end, streamed or not."""

    async def test() -> None:
        body = chat("say", max_tokens=19)
        if path == "completions":
            body = {"model": "m", "prompt": "say", "max_tokens": 19}
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        found = []
        for tokens in (0, 8):
            one = lengthy(length)
            cut = SliceSettings(tokens=tokens)
            async with live("scls", [one], slices=cut) as gateway, client(gateway) as http:
                whole = await ask(http, body, path)
                async with http.post(f"/v1/{path}", json=streamed) as response:
                    stream = events(await response.read())
                slices = len(one.seen) // 2
                assert gateway.dispatcher.counters.counts["finished"] == 2
            assert slices == (1 if not tokens else -(-min(length, 19) // tokens))
            assert stream[-1] == "[DONE]"
            assert len({chunk["id"] for chunk in stream[:-1]}) == 1
            assert stream[-2]["usage"] == whole["usage"]
            choices = [chunk["choices"][0] for chunk in stream[:-2]]
            assert [one["finish_reason"] for one in choices[:-1]] == [None] * (len(choices) - 1)
            assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
            said = [one["delta"].get("content", "") if "delta" in one else one["text"] for one in choices]
            choice = whole["choices"][0]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            assert "".join(said) == text
            found.append((text, whole["usage"], choice["finish_reason"], set(whole), set(stream[0])))
        assert found[0] == found[1]

    run(test)


def test_scls_lets_a_short_reply_pass_a_long_one_that_runs() -> None:
    async def test() -> None:
        async def behind(tokens: int) -> tuple[bool, int]:
            one = lengthy(300)
            options = {"backend": {"max_in_flight": 1}, "slices": SliceSettings(tokens=tokens)}
            async with live("scls", [one], **options) as gateway, client(gateway) as http:
                long = asyncio.create_task(ask(http, chat("long", max_tokens=300)))
                await until(lambda: len(one.seen) == 1)
                await ask(http, chat("short", max_tokens=5))
                first = not long.done()
                assert (await long)["usage"]["completion_tokens"] == 300
                return first, len(one.seen)

        assert await behind(20) == (True, 16)
        assert await behind(0) == (False, 2)

    run(test)


def test_scls_shares_slices_among_engines_by_what_they_have_to_do() -> None:
    async def test() -> None:
        fast, slow = lengthy(60, iteration_s=0.002), lengthy(60, iteration_s=0.012)
        options = {"backend": {"max_in_flight": 3}, "slices": SliceSettings(tokens=10)}
        async with live("scls", [fast, slow], **options) as gateway, client(gateway) as http:
            replies = await asyncio.gather(*(ask(http, chat(f"{n}")) for n in range(30)))
            assert {reply["usage"]["completion_tokens"] for reply in replies} == {60}
            assert len(fast.seen) + len(slow.seen) == 30 * 6
            assert len(fast.seen) > 2 * len(slow.seen) > 0
            offload = gateway.dispatcher.choice
            assert [offload.load(one) for one in gateway.dispatcher.backends] == [0.0, 0.0]

    run(test)


@pytest.mark.parametrize(
    "field",
    [{"seed": 1}, {"n": 2}, {"stop": ["x"]}, {"tools": []}, {"logprobs": True}, {"presence_penalty": 0.5},
     {"response_format": {"type": "json_object"}}, {"something_new": 1}],
    ids=lambda field: next(iter(field)),
)  # fmt: skip
def test_scls_serves_whole_what_cannot_be_continued(field: dict[str, Any]) -> None:
    async def test() -> None:
        one = lengthy(20)
        options = {"slices": SliceSettings(tokens=8)}
        async with live("scls", [one], **options) as gateway, client(gateway) as http:
            reply = await ask(http, chat("a", **field))
            assert reply["usage"]["completion_tokens"] == 20
            assert len(one.seen) == 1
            await ask(http, {"model": "m", "input": "b"}, "responses")
            assert len(one.seen) == 2
            await ask(http, chat("c", n=1, logprobs=False, seed=None))
            assert len(one.seen) == 5

    run(test)


def test_scls_goes_on_elsewhere_when_an_engine_breaks_off() -> None:
    """The engine that dies has given eleven tokens; the other one goes on from there."""

    async def test() -> None:
        words = [" of", " and", " to", " in", " a", " is", " that", " for", " it", " as", " was"]

        async def cut(body: bytes, writer: asyncio.StreamWriter) -> None:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(head)
            for n, word in enumerate(words):
                delta = {"content": word} | ({"role": "assistant"} if not n else {})
                chunk = {"id": "one", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
                event = b"data: " + json.dumps(chunk).encode() + b"\n\n"
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))

        async with raw(cut) as dying:
            good = lengthy(20)
            options = {"slices": SliceSettings(tokens=30), "backend": {"max_in_flight": 1}}
            async with live("scls", [dying, good], **options) as gateway, client(gateway) as http:
                other = asyncio.create_task(ask(http, chat("other")))  # one of the two goes to the dying one
                async with http.post("/v1/chat/completions", json=chat("go", stream=True)) as response:
                    stream = events(await response.read())
                await other
                text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in stream[:-1])
                assert len(text.split()) == 20
                assert stream[-1] == "[DONE]"
                assert gateway.dispatcher.counters.counts["retries"] >= 1

    run(test)


def test_scls_tells_of_a_reply_that_cannot_go_on() -> None:
    async def test() -> None:
        async def once(body: bytes, writer: asyncio.StreamWriter) -> None:
            asked = json.loads(body)
            if len(asked["messages"]) > 1:
                writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                return
            choice = {"index": 0, "delta": {"content": " the"}, "finish_reason": "length"}
            usage = {"prompt_tokens": 1, "completion_tokens": asked["max_tokens"]}
            text = "".join(
                f"data: {json.dumps(part)}\n\n"
                for part in ({"id": "a", "choices": [choice]}, {"id": "a", "choices": [], "usage": usage})
            )
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
            writer.write(head + text.encode() + b"data: [DONE]\n\n")

        async with (
            raw(once) as url,
            live("scls", [url], slices=SliceSettings(tokens=8)) as gateway,
            client(gateway) as http,
        ):
            async with http.post("/v1/chat/completions", json=chat(stream=True)) as response:
                said = b""
                while piece := await response.content.readany():
                    said += piece
                    if b"engine_failed" in said:
                        break
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.content.readany()
            found = events(said)
            assert found[0]["choices"][0]["delta"]["content"] == " the"
            assert found[-1]["error"]["code"] == "engine_failed"
            assert gateway.dispatcher.counters.counts["cut_streams"] == 1

    run(test)


def test_scls_frees_the_engine_when_its_client_leaves() -> None:
    async def test() -> None:
        one = lengthy(100_000)
        options = {"slices": SliceSettings(tokens=50)}
        async with live("scls", [one], **options) as gateway, client(gateway) as http:
            async with http.post("/v1/chat/completions", json=chat(stream=True)) as response:
                await response.content.readany()
                await until(lambda: len(one.seen) > 2)
            await until(lambda: not one.emulator.running and not gateway.dispatcher.waiting)
            assert gateway.dispatcher.counters.counts["client_gone"] == 1

    run(test)


def test_scls_serves_a_model_that_reasons_whole_and_remembers_it() -> None:
    async def test() -> None:
        limits: list[int | None] = []

        async def reason(body: bytes, writer: asyncio.StreamWriter) -> None:
            limits.append(json.loads(body).get("max_tokens"))
            choice = {"index": 0, "delta": {"reasoning_content": "well"}, "finish_reason": None}
            said = b"data: " + json.dumps({"id": "a", "choices": [choice]}).encode() + b"\n\n"
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(said) + said)

        cut = SliceSettings(tokens=8)
        async with raw(reason) as url, live("scls", [url], slices=cut) as gateway, client(gateway) as http:
            for _ in range(2):
                async with http.post("/v1/chat/completions", json=chat(stream=True)) as response:
                    assert events(await response.read())[0]["choices"][0]["delta"]["reasoning_content"]
        assert limits == [8, None, None]

    run(test)


@pytest.mark.engine
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_scls_continues_replies_of_the_real_vllm(path: str, plain_server: str) -> None:
    """Thirty tokens, eight at a time: vLLM counts four requests, and the text is the one it gives at once."""

    async def served(http: aiohttp.ClientSession) -> float:
        async with http.get(f"{plain_server}/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total"))

    async def test() -> None:
        said = "word1 word2 word3"
        body: dict[str, Any] = {"model": "tiny", "max_tokens": 30, "temperature": 0, "ignore_eos": True}
        body |= {"prompt": said} if path == "completions" else {"messages": chat(said)["messages"]}
        found = []
        for tokens in (0, 8):
            cut = SliceSettings(tokens=tokens)
            async with live("scls", [plain_server], slices=cut) as gateway, client(gateway) as http:
                before = await served(http)
                reply = await ask(http, body, path)
                assert await served(http) - before == (4 if tokens else 1)
                async with http.post(f"/v1/{path}", json={**body, "stream": True}) as response:
                    chunks = events(await response.read())[:-1]
            choice = reply["choices"][0]
            parts = [one["choices"][0] for one in chunks]
            streamed = [one["delta"].get("content") or "" if "delta" in one else one["text"] for one in parts]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            assert "".join(streamed) == text
            assert [one["finish_reason"] for one in parts[-2:]] == [None, "length"]
            found.append((text, choice["finish_reason"], reply["usage"]["completion_tokens"]))
        assert found[0] == found[1]

    run(test, 120)
