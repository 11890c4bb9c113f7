"""Who goes first: the policy fed by a real scorer process, classes, tenants; and OpenAI's own client."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest
from gateway_rig import chat, client, engine, rig, run, until

from sooner.emulator.engine import Lengths
from sooner.gateway.settings import ClassSettings, QueueSettings, TenantSettings

openai = pytest.importorskip("openai", reason="openai is not installed; it comes with vLLM")
RANKER = "ranker_by_length:Ranker"


def test_waiting_requests_are_served_shortest_expected_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)

    async def test() -> None:
        one = engine(lengths=Lengths("10000"))
        alone = {"max_in_flight": 1}
        async with rig([one], backend=alone, policy="ltr", ranker=RANKER) as gateway, client(gateway) as http:

            async def ask(prompt: str, **more: int) -> float:
                async with http.post("/v1/chat/completions", json=chat(prompt, **more)) as response:
                    await response.read()
                    return float(response.headers["x-sooner-predicted-tokens"])

            first = asyncio.create_task(ask("first"))
            await until(lambda: len(one.seen) == 1)
            lengths = [40, 10, 30, 20]
            tasks = [asyncio.create_task(ask("x" * n, max_tokens=50)) for n in lengths]
            await until(lambda: gateway.dispatcher.counters.counts["scored"] == 4, 20)
            first.cancel()
            assert await asyncio.gather(*tasks) == lengths
            assert [len(prompt) for _, prompt in one.seen[1:]] == sorted(lengths)

    run(test, 60)


def test_classes_go_by_level_and_only_those_a_tenant_may_use() -> None:
    async def test() -> None:
        one = engine(lengths=Lengths("10000"))
        options = {
            "classes": (ClassSettings(name="batch", level=5), ClassSettings(name="live", level=0)),
            "tenants": (TenantSettings(name="night", classes=("batch",)),),
            "backend": {"max_in_flight": 1},
            "policy": "fcfs",
        }
        async with rig([one], **options) as gateway, client(gateway) as http:

            async def ask(prompt: str, kind: str, tenant: str = "day", limit: int = 5) -> int:
                headers = {"x-sooner-class": kind, "x-sooner-tenant": tenant}
                body = chat(prompt, max_tokens=limit)
                async with http.post("/v1/chat/completions", json=body, headers=headers) as response:
                    await response.read()
                    return response.status

            first = asyncio.create_task(ask("first", "live", limit=10_000))
            tasks = []
            await until(lambda: len(one.seen) == 1)
            for n, kind in enumerate(["batch", "live", "batch", "live"]):
                tasks.append(asyncio.create_task(ask(f"{kind}{n}", kind)))
                await until(lambda n=n: gateway.dispatcher.queued == n + 1)
            assert await ask("x", "live", "night") == 400
            assert await ask("x", "lvie") == 400
            first.cancel()
            await asyncio.gather(*tasks)
            assert [prompt for _, prompt in one.seen] == ["first", "live1", "live3", "batch0", "batch2"]

    run(test)


def test_a_flood_of_one_tenant_hardly_moves_the_other() -> None:
    async def test() -> None:
        one = engine(lengths=Lengths("10"))
        async with (
            rig([one], backend={"max_in_flight": 2}, policy="fcfs") as gateway,
            client(gateway) as http,
        ):

            async def ask(tenant: str) -> None:
                headers = {"x-sooner-tenant": tenant}
                async with http.post("/v1/chat/completions", json=chat(tenant), headers=headers) as response:
                    await response.read()

            loud = [asyncio.create_task(ask("loud")) for _ in range(400)]
            await until(lambda: gateway.dispatcher.queued >= 100)
            begun = len(one.seen)
            await asyncio.gather(*(ask("quiet") for _ in range(4)))
            order = [prompt for _, prompt in one.seen[begun:]]
            for task in loud:
                task.cancel()
            await until(lambda: not gateway.dispatcher.waiting)
            last = max(place for place, prompt in enumerate(order) if prompt == "quiet")
            assert order[:last].count("loud") <= 40

    run(test, 60)


def test_who_waits_too_long_is_told() -> None:
    async def test() -> None:
        one = engine(lengths=Lengths("10000"))
        queue = QueueSettings(max_wait=0.5, overdue=0.4)
        async with rig([one], backend={"max_in_flight": 1}, queue=queue) as gateway, client(gateway) as http:
            first = asyncio.create_task(http.post("/v1/chat/completions", json=chat()))
            await until(lambda: len(one.seen) == 1)
            async with http.post("/v1/chat/completions", json=chat()) as response:
                assert response.status == 503
                assert (await response.json())["error"]["code"] == "wait_too_long"
            first.cancel()
            await until(lambda: not gateway.dispatcher.waiting)

    run(test)


def test_a_crowd_that_comes_while_the_bound_is_being_found_is_not_refused() -> None:
    """By the first bound of 16 a request would wait 12 s; the engine takes all of them at once."""

    async def test() -> None:
        one = engine(iteration_s=0.01, max_num_seqs=256, lengths=Lengths("100"))
        async with rig([one], queue=QueueSettings(max_wait=6.0)) as gateway, client(gateway) as http:

            async def ask(n: int) -> int:
                async with http.post("/v1/chat/completions", json=chat(f"{n}")) as response:
                    return response.status

            assert await ask(0) == 200
            assert set(await asyncio.gather(*(ask(n) for n in range(1, 200)))) == {200}

    run(test)


def test_requests_that_came_during_a_step_are_no_sign_of_queueing() -> None:
    """The engine counts them as waiting until its step of 0.3 s has ended; it has room for all."""

    async def test() -> None:
        one = engine(iteration_s=0.3, max_num_seqs=256, lengths=Lengths("4"))
        async with rig([one]) as gateway, client(gateway) as http:

            async def ask(n: int) -> None:
                await asyncio.sleep(n * 0.02)
                async with http.post("/v1/chat/completions", json=chat(f"{n}", stream=True)) as response:
                    await response.read()

            await ask(0)
            await asyncio.gather(*(ask(n) for n in range(150)))
            assert gateway.dispatcher.backends[0].window.potential > 256

    run(test)


def test_work_goes_to_both_engines_and_more_to_the_faster() -> None:
    async def test() -> None:
        fast, slow = (
            engine(iteration_s=0.005, lengths=Lengths("20")),
            engine(iteration_s=0.02, lengths=Lengths("20")),
        )
        async with rig([fast, slow], backend={"max_in_flight": 2}) as gateway, client(gateway) as http:

            async def ask(n: int) -> None:
                async with http.post("/v1/chat/completions", json=chat(f"{n}")) as response:
                    assert response.status == 200
                    await response.read()

            await asyncio.gather(*(ask(n) for n in range(60)))
            assert len(fast.seen) + len(slow.seen) == 60
            assert len(fast.seen) > 1.5 * len(slow.seen) > 0

    run(test)


def test_the_window_is_found_from_the_engines_own_count() -> None:
    async def test() -> None:
        one = engine(max_num_seqs=8, lengths=Lengths("60"), iteration_s=0.01)
        async with rig([one]) as gateway, client(gateway) as http:

            async def ask() -> None:
                async with http.post("/v1/chat/completions", json=chat()) as response:
                    await response.read()

            tasks = [asyncio.create_task(ask()) for _ in range(120)]
            seen: Counter[int] = Counter()
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0.1)
                seen[gateway.dispatcher.backends[0].limit] += 1
            assert min(seen) <= 12

    run(test, 60)


def test_openais_client_works_unmodified() -> None:
    async def test() -> None:
        async with rig([engine()]) as gateway:
            ai = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
            async with ai:
                said = [{"role": "user", "content": "hi"}]
                whole = await ai.chat.completions.create(model="m", messages=said)
                assert whole.usage is not None
                assert whole.usage.completion_tokens == 5
                stream = await ai.chat.completions.create(
                    model="m", messages=said, stream=True, stream_options={"include_usage": True}
                )
                chunks = [chunk async for chunk in stream]
                text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
                assert text == whole.choices[0].message.content
                assert chunks[-1].usage is not None
                reply = await ai.responses.create(model="m", input="hi")
                assert reply.output_text == text
                kinds = [
                    event.type
                    async for event in await ai.responses.create(model="m", input="hi", stream=True)
                ]
                assert kinds[0] == "response.created"
                assert kinds[-1] == "response.completed"
                assert [model.id async for model in ai.models.list()] == ["m"]
                with pytest.raises(openai.NotFoundError):
                    await ai.completions.create(model="no", prompt="x")

    run(test)
