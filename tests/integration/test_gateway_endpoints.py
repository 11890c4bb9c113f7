"""Every endpoint goes one way: its key, its limits, its ticket, its model, its row; others are closed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from gateway_rig import chat, client, rig, run, until
from yarl import URL

from sooner.gateway.admission.paths import ENDPOINTS
from sooner.gateway.engines.kinds import KINDS
from sooner.gateway.settings import JournalSettings, TenantSettings

JSON = sorted(path for path in KINDS["vllm"].paths if not ENDPOINTS[path].form)


class Recorder:
    """An engine that keeps what it was sent, decodes paths as FastAPI does, and redirects as it does."""

    def __init__(self, *models: str) -> None:
        self.models = models
        self.url = ""
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []

    async def _any(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": name} for name in self.models]})
        if request.method == "GET":
            return web.Response(status=404)
        headers = dict(request.headers)
        body = await request.read()
        self.seen.append((request.method, request.raw_path, headers, body))
        if b"redirect me" in body:
            return web.Response(status=307, headers={"Location": f"{self.url}/elsewhere"})
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
        return web.json_response(
            {"object": "list", "data": [], "usage": usage}, headers={"X-Backend": self.url}
        )

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Recorder]:
        app = web.Application()
        app.router.add_get("/health", _ok)
        app.router.add_route("*", "/{rest:.*}", self._any)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()


async def _ok(request: web.Request) -> web.Response:
    return web.Response()


def form(model: str | None = "m") -> aiohttp.FormData:
    """Return a transcription's form."""
    data = aiohttp.FormData()
    data.add_field("file", b"RIFF\r\n--x\r\n" + bytes(2000), filename="a.wav", content_type="audio/wav")
    if model is not None:
        data.add_field("model", model)
    return data


@pytest.mark.parametrize("path", JSON)
def test_every_path_is_counted_limited_and_written_down(path: str, tmp_path: Path) -> None:
    async def test() -> None:
        tenants = (TenantSettings(name="t", requests_per_minute=2),)
        journal = JournalSettings(url=f"sqlite:///{tmp_path}/journal.db")
        one = Recorder("m")
        async with one.serving():
            async with (
                rig([one.url], tenants=tenants, journal=journal) as gateway,
                client(gateway) as http,
            ):
                told = []
                for _ in range(4):
                    body = {"model": "m", "input": "text", "messages": [], "max_tokens": 3}
                    async with http.post(path, json=body, headers={"x-sooner-tenant": "t"}) as response:
                        told.append(response.status)
                        assert "X-Backend" not in response.headers
                assert told == [200, 200, 429, 429]
                counts = gateway.dispatcher.counters.counts
                assert (counts["requests"], counts["finished"], counts["refused_limit"]) == (4, 2, 2)
            assert [raw for _, raw, _, _ in one.seen] == [path, path]
            with sqlite3.connect(tmp_path / "journal.db") as database:
                rows = database.execute("select tenant, prompt_len, status from sooner_requests").fetchall()
            database.close()
            assert rows == [("t", 9, 200)] * 2

    run(test)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/messages", "/v1/rerank", "/v1/audio/transcriptions"])
def test_every_path_goes_to_the_engine_of_its_model(path: str) -> None:
    async def test() -> None:
        engines = [Recorder("m"), Recorder("whisper", "org/e")]
        async with engines[0].serving(), engines[1].serving():
            urls = [one.url for one in engines]
            async with rig(urls, aliases={"short": "org/e"}) as gateway, client(gateway) as http:
                spoken = path.startswith("/v1/audio")
                for model in ("org/e", "short"):
                    data = (
                        {"data": form(model)} if spoken else {"json": {"model": model, "input": "é \ud800"}}
                    )
                    async with http.post(path, **data) as response:
                        assert response.status == 200
                data = {"data": form("nobody")} if spoken else {"json": {"model": "nobody", "input": "x"}}
                async with http.post(path, **data) as response:
                    assert response.status == 404
                    assert (await response.json())["error"]["code"] == "model_not_found"
        assert engines[0].seen == []
        assert len(engines[1].seen) == 2
        for _, raw, headers, body in engines[1].seen:
            assert raw == path
            if spoken:
                assert headers["Content-Type"].startswith("multipart/form-data; boundary=")
                assert b"\r\n\r\norg/e\r\n" in body
                assert b"RIFF\r\n--x\r\n" + bytes(2000) in body
            else:
                assert json.loads(body.decode("utf-8")) == {"model": "org/e", "input": "é \ud800"}

    run(test)


@pytest.mark.parametrize("path", ["/embeddings", "/chat/completions", "/audio/transcriptions"])
def test_a_model_in_the_path_is_the_one_that_is_routed_by_and_sent(path: str) -> None:
    async def test() -> None:
        engines = [Recorder("m"), Recorder("org/e")]
        async with engines[0].serving(), engines[1].serving():
            urls = [one.url for one in engines]
            async with rig(urls, aliases={"short": "org/e"}) as gateway, client(gateway) as http:
                for deployment in ("org/e", "short"):
                    for said in ("m", None, 7):
                        bodies = {"json": {"input": "x"} if said is None else {"model": said, "input": "x"}}
                        data = {"data": form(said and str(said))} if "audio" in path else bodies
                        at = f"/openai/deployments/{deployment}{path}?api-version=2024-10-21&x=y"
                        async with http.post(at, headers={"api-key": "k"}, **data) as response:
                            assert response.status == 200
        assert engines[0].seen == []
        assert len(engines[1].seen) == 6
        for _, raw, headers, body in engines[1].seen:
            assert raw.partition("?")[0] == f"/v1{path}"
            assert "api-key" not in {name.lower() for name in headers}
            if "audio" in path:
                assert body.count(b'name="model"') == body.count(b"\r\n\r\norg/e\r\n") == 1
            else:
                assert json.loads(body).items() >= {"input": "x", "model": "org/e"}.items()
                assert body.count(b"model") == 1

    run(test)


CLOSED = [
    ("GET", "/v1/files"), ("DELETE", "/v1/files/file-1"), ("POST", "/v1/files"),
    ("GET", "/v1/responses/resp_1"), ("DELETE", "/v1/responses/resp_1"),
    ("POST", "/v1/responses/resp_1/cancel"), ("GET", "/v1/organization/users"),
    ("POST", "/v1/%6Coad_lora_adapter"), ("POST", "/v1/chat%2Fcompletions"),
    ("POST", "/v1/chat/completions/"), ("POST", "/v1/x/../chat/completions"),
    ("POST", "/v1/x/%2e%2e/chat/completions"), ("POST", "//v1/chat/completions"),
    ("POST", "/v1//chat/completions"), ("POST", "/v1/chat/completions%2f"),
    ("POST", "/v1/%2563hat/completions"), ("GET", "/v1/chat/completions"), ("PUT", "/v1/embeddings"),
    ("POST", "/tokenize"), ("POST", "/invocations"), ("POST", "/v1/chat/completions%0a"),
    ("POST", "/sleep"), ("POST", "/v1/chat/completions/render"),
]  # fmt: skip


def test_what_is_not_listed_never_reaches_an_engine() -> None:
    async def test() -> None:
        one = Recorder("m")
        async with one.serving(), rig([one.url]) as gateway, client(gateway) as http:
            for method, path in CLOSED:
                async with http.request(
                    method, URL(gateway.url + path, encoded=True), json=chat()
                ) as response:
                    assert response.status in (403, 404, 405), path
                    assert (await response.json())["error"]["message"]
            assert one.seen == []

    run(test)


def test_one_spelling_is_sent_whatever_came() -> None:
    async def test() -> None:
        one = Recorder("m")
        async with one.serving(), rig([one.url]) as gateway, client(gateway) as http:
            target = "/v1/%63hat/completion%73?priority=1&beta=true"
            named = {
                "X-Data-Parallel-Rank": "3", "X-Session-ID": "s", "x-smg-target": "y",
                "Accept-Encoding": "gzip", "Content-Type": "text/plain",
            }  # fmt: skip
            data = json.dumps(chat())
            async with http.post(
                URL(gateway.url + target, encoded=True), data=data, headers=named
            ) as response:
                assert response.status == 200
            ((_, raw, headers, _),) = one.seen
            assert raw == "/v1/chat/completions?beta=true"
            assert headers["Content-Type"] == "application/json"
            assert set(headers) <= {"Host", "Content-Type", "Content-Length", "Accept", "User-Agent"}
            assert gateway.dispatcher.counters.counts["requests"] == 1

    run(test)


def test_a_redirection_tells_nobody_where_the_engine_is() -> None:
    async def test() -> None:
        one = Recorder("m")
        async with one.serving(), rig([one.url]) as gateway, client(gateway) as http:
            body = {"model": "m", "input": "redirect me"}
            async with http.post("/v1/embeddings", json=body, allow_redirects=False) as response:
                assert response.status == 502
                assert "Location" not in response.headers
                assert one.url.rpartition(":")[2] not in await response.text()
            await until(lambda: gateway.dispatcher.backends[0].in_flight == 0)

    run(test)


def test_a_path_that_the_kind_of_engine_does_not_have_is_said() -> None:
    async def test() -> None:
        one = Recorder("m")
        async with (
            one.serving(),
            rig([one.url], backend={"kind": "ollama"}) as gateway,
            client(gateway) as http,
        ):
            async with http.post("/v1/rerank", json={"model": "m"}) as response:
                assert response.status == 404
                assert "serves /v1/rerank" in (await response.json())["error"]["message"]
            assert one.seen == []

    run(test)


@pytest.mark.parametrize(
    "broken",
    [
        b"", b"--b\r\n", b"--b\r\n\r\nm\r\n--b--",
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm',
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b\r\n'
        b'Content-Disposition: form-data; name="model"\r\n\r\nn\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="model"; filename="x"\r\n\r\nm\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="model"\r\nX: y\r\n\r\nm\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\nmore',
        b'pre\r\n--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n',
    ],
)  # fmt: skip
def test_a_form_with_two_meanings_is_refused(broken: bytes) -> None:
    async def test() -> None:
        one = Recorder("m")
        async with one.serving(), rig([one.url]) as gateway, client(gateway) as http:
            named = {"Content-Type": "multipart/form-data; boundary=b"}
            async with http.post("/v1/audio/transcriptions", data=broken, headers=named) as response:
                assert response.status == 400
            assert one.seen == []

    run(test)
