"""OpenTelemetry: what a collector gets of a request, and that nothing of it is there while it is off."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from gateway_rig import chat, client, engine, rig, run

from sooner.emulator.engine import Lengths
from sooner.gateway import telemetry

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = PARENT.split("-")[1]


class Collector:
    """A collector of OTLP over HTTP: keeps every span that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []

    async def take(self, request: web.Request) -> web.Response:
        messages = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
        import gzip

        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        for resource in messages.ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({one.key: one.value.string_value for one in resource.resource.attributes})
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.Response(
            body=messages.ExportTraceServiceResponse().SerializeToString(),
            content_type="application/x-protobuf",
        )

    def named(self, name: str) -> Any:
        (found,) = [span for span in self.spans if span.name == name]
        return found


@asynccontextmanager
async def collecting(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """Serve a collector, and point the standard variables at it."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra 'otel' is not installed")
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{runner.addresses[0][1]}")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    try:
        yield collector
    finally:
        await runner.cleanup()


def told(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


@asynccontextmanager
async def recorder() -> AsyncIterator[tuple[str, list[dict[str, str]]]]:
    """Serve an engine that keeps the headers it was sent."""
    seen: list[dict[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append({name.lower(): value for name, value in request.headers.items()})
        return web.json_response({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})

    app = web.Application()
    app.router.add_get("/{rest:.*}", _models)
    app.router.add_post("/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", seen
    finally:
        await runner.cleanup()


async def _models(request: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "m"}]})


def test_a_collector_gets_the_request_its_wait_the_engine_and_the_first_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        async with collecting(monkeypatch) as collector:
            async with rig([engine(lengths=Lengths("5"))]) as gateway, client(gateway) as http:
                headers = {"traceparent": PARENT, "x-request-id": "r1", "x-sooner-tenant": "se\u00e4rch"}
                body = chat("hello", stream=True, max_tokens=7, temperature=0.5)
                async with http.post("/v1/chat/completions", json=body, headers=headers) as response:
                    assert (await response.read()).endswith(b"data: [DONE]\n\n")
                async with http.get(
                    "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"}
                ) as response:
                    assert response.headers["Content-Type"] == telemetry.OPEN_METRICS
                    page = await response.text()
            root, wait, call, first = map(
                collector.named, ("POST /v1/chat/completions", "wait", "chat m", "first byte")
            )
            assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
            assert root.parent_span_id.hex() == PARENT.split("-")[2]
            assert wait.parent_span_id == call.parent_span_id == root.span_id
            assert first.parent_span_id == call.span_id
            assert (root.kind, call.kind) == (2, 3)  # server, client
            assert told(root) == {
                "http.request.method": "POST", "http.route": "/v1/chat/completions", "url.scheme": "http",
                "url.path": "/v1/chat/completions", "http.response.status_code": 200,
                "sooner.request_id": "r1", "sooner.tenant": "se\u00e4rch", "gen_ai.request.model": "m",
            }  # fmt: skip
            said = told(call)
            assert said.pop("gen_ai.response.time_to_first_chunk") > 0
            assert said.pop("gen_ai.usage.input_tokens") > 0
            assert said.pop("server.port") == int(gateway.dispatcher.backends[0].address.port)
            assert said == {
                "gen_ai.operation.name": "chat", "gen_ai.provider.name": "vllm", "gen_ai.request.model": "m",
                "gen_ai.request.stream": True, "gen_ai.request.max_tokens": 7,
                "gen_ai.request.temperature": 0.5, "gen_ai.usage.output_tokens": 5,
                "server.address": "127.0.0.1", "http.response.status_code": 200,
            }  # fmt: skip
            times = [
                root.start_time_unix_nano, wait.start_time_unix_nano, wait.end_time_unix_nano,
                call.start_time_unix_nano, first.start_time_unix_nano, first.end_time_unix_nano,
                call.end_time_unix_nano, root.end_time_unix_nano,
            ]  # fmt: skip
            assert times == sorted(times)
            assert collector.resources[0]["service.name"] == "sooner"
            assert collector.resources[0]["deployment.environment.name"] == "test"
            assert page.count(f'# {{trace_id="{TRACE}"}}') == 3  # one in each histogram

    run(test)


def test_a_score_is_a_span(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)

    async def test() -> None:
        async with collecting(monkeypatch) as collector:
            held = rig(
                [engine(iteration_s=60.0)], backend={"max_in_flight": 1}, ranker="ranker_by_length:Ranker",
                policy="spjf", scorer_timeout=25.0,
            )  # fmt: skip
            async with held as gateway, client(gateway) as http:
                tasks = [asyncio.create_task(_ask(http)) for _ in range(2)]
                async with asyncio.timeout(25):
                    while not any(one.scored for one in gateway.dispatcher.waiting.values()):
                        await asyncio.sleep(0.005)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            scores = [span for span in collector.spans if span.name == "score"]
            roots = {span.span_id for span in collector.spans if span.name.startswith("POST ")}
            assert scores
            assert {span.parent_span_id for span in scores} <= roots

    run(test, 60)


def test_a_refusal_is_told_and_an_unsampled_trace_only_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        async with collecting(monkeypatch) as collector, recorder() as (url, seen):
            async with rig([url]) as gateway, client(gateway) as http:
                for parent in (PARENT, PARENT[:-2] + "00"):
                    headers = {"traceparent": parent, "tracestate": "a=1"}
                    async with http.post("/v1/chat/completions", json=chat(), headers=headers) as response:
                        assert response.status == 200
                async with http.post("/v1/chat/completions", json=chat(model="other")) as response:
                    assert response.status == 404
            ids = [one["traceparent"].split("-") for one in seen]
            assert [parts[1] for parts in ids] == [TRACE, TRACE]
            assert [parts[3] for parts in ids] == ["01", "00"]
            assert [one["tracestate"] for one in seen] == ["a=1", "a=1"]
            assert ids[0][2] == collector.named("chat m").span_id.hex()
            roots = [span for span in collector.spans if span.name == "POST /v1/chat/completions"]
            assert sorted(told(span)["http.response.status_code"] for span in roots) == [200, 404]

    run(test)


def test_an_engine_that_fails_and_a_client_that_leaves_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with collecting(monkeypatch) as collector:
            slow = engine(iteration_s=60.0)
            async with rig([slow]) as gateway, client(gateway) as http:
                task = asyncio.create_task(_ask(http))
                async with asyncio.timeout(10):
                    while not gateway.dispatcher.backends[0].in_flight:
                        await asyncio.sleep(0.005)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                async with asyncio.timeout(10):
                    while gateway.dispatcher.waiting:
                        await asyncio.sleep(0.005)
            gone = rig(["http://127.0.0.1:9"], backend={"models": ("m",)})
            async with gone as gateway, client(gateway) as http:
                assert await _ask(http) in (502, 503)
            first, second = (span for span in collector.spans if span.name == "POST /v1/chat/completions")
            assert told(first)["error.type"] == told(collector.named("chat m"))["error.type"] == "client_gone"
            assert told(second)["error.type"] in ("502", "503")
            assert first.status.code == second.status.code == 2

    run(test)


async def _ask(http: Any) -> int:
    async with http.post("/v1/chat/completions", json=chat()) as response:
        await response.read()
        return int(response.status)


def test_without_the_variables_nothing_is_imported_and_the_clients_trace_still_goes_on() -> None:
    async def test() -> None:
        async with recorder() as (url, seen), rig([url]) as gateway, client(gateway) as http:
            assert gateway.proxy.tracing is None
            headers = {"traceparent": PARENT, "tracestate": "a=1"}
            async with http.post("/v1/chat/completions", json=chat(), headers=headers) as response:
                assert response.status == 200
            assert seen[0]["traceparent"] == PARENT
            assert seen[0]["tracestate"] == "a=1"

    run(test)
    program = "import sys, sooner.gateway.app; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ([], telemetry.TEXT),
        (["*/*"], telemetry.TEXT),
        (["text/plain"], telemetry.TEXT),
        (["application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"],
         telemetry.OPEN_METRICS),
        (["application/openmetrics-text;q=0", "text/plain;q=0"], telemetry.TEXT),
        (["application/openmetrics-text;q=x"], telemetry.TEXT),
        (["text/plain, application/openmetrics-text;q=0.9"], telemetry.TEXT),
    ],
)  # fmt: skip
def test_metrics_come_in_the_form_that_is_asked_for(accept: list[str], form: str) -> None:
    assert telemetry.form(accept) == form


def test_open_metrics_are_what_its_own_parser_reads() -> None:
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")

    async def test() -> None:
        async with rig([engine()]) as gateway, client(gateway) as http:
            await _ask(http)
            gateway.proxy.delivery.telemetry.wait.add(0.3, TRACE)
            headers = {"Accept": "application/openmetrics-text"}
            async with http.get("/metrics", headers=headers) as response:
                page = await response.text()
            async with http.get("/metrics") as response:
                plain = await response.text()
        families = {one.name: one for one in parser.text_string_to_metric_families(page)}
        assert families["sooner_requests"].type == "counter"
        samples = families["sooner_wait_seconds"].samples
        (linked,) = [one for one in samples if one.exemplar is not None]
        assert linked.labels["le"] == "0.5"
        assert linked.exemplar.labels == {"trace_id": TRACE}
        assert TRACE not in plain

    run(test)
