"""What clients of every kind find: browsers, probes that ask with HEAD, those who want a websocket."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_rig import chat, client, engine, events, rig, run

from sooner.core import ConfigError
from sooner.gateway.admission.keys import KeyBook
from sooner.gateway.database import Database
from sooner.gateway.settings import GatewaySettings

PAGE = "https://chat.example.org"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


def test_a_web_page_may_ask_where_it_is_named(tmp_path: Path) -> None:
    database = str(tmp_path / "keys.db")
    book = KeyBook(Database(database))
    key = book.add("web")
    book.close()

    async def test() -> None:
        async with rig([engine()], keys=database, cors_origins=(PAGE,)) as gateway, client(gateway) as http:
            path = "/v1/chat/completions"
            async with http.options(path, headers={"Origin": PAGE, **PREFLIGHT}) as response:
                assert response.status == 204
                assert response.headers["Access-Control-Allow-Origin"] == PAGE
                assert "authorization" in response.headers["Access-Control-Allow-Headers"]
            async with http.options(
                path, headers={"Origin": "https://evil.example", **PREFLIGHT}
            ) as response:
                assert response.status == 403
                assert "Access-Control-Allow-Origin" not in response.headers
            for stream in (False, True):
                headers = {"Origin": PAGE, "Authorization": f"Bearer {key}"}
                async with http.post(path, json=chat(stream=stream), headers=headers) as response:
                    assert response.status == 200
                    assert response.headers["Access-Control-Allow-Origin"] == PAGE
                    assert "x-sooner-wait-ms" in response.headers["Access-Control-Expose-Headers"]
                    await response.read()

    run(test)


def test_without_keys_only_named_pages_may_ask() -> None:
    async def test() -> None:
        async with rig([engine()], cors_origins=(PAGE,)) as gateway, client(gateway) as http:
            for origin, status in ((PAGE, 200), ("https://evil.example", 403)):
                async with http.get("/v1/models", headers={"Origin": origin}) as response:
                    assert response.status == status

    run(test)
    with pytest.raises(ConfigError, match="cors_origins"):
        GatewaySettings(ranker="", cors_origins=("*",))


def test_head_websockets_and_no_version() -> None:
    async def test() -> None:
        async with rig([engine()]) as gateway, client(gateway) as http:
            for path in ("/health", "/ready", "/metrics", "/v1/models"):
                async with http.head(path) as response:
                    assert response.status == 200
                    assert response.headers["Server"] == "sooner"
                    assert await response.read() == b""
            asks = {"Upgrade": "websocket", "Connection": "Upgrade"}
            async with http.get("/v1/realtime", headers=asks) as response:
                assert response.status == 426
                assert (await response.json())["error"]["code"] == "upgrade_required"
            async with http.post("/v1/chat/completions", json=chat()) as response:
                assert response.headers["Server"] == "sooner"

    run(test)


def test_the_emulated_responses_end_with_their_done_events() -> None:
    async def test() -> None:
        async with rig([engine()]) as gateway, client(gateway) as http:
            body = {"model": "m", "input": "hello", "stream": True}
            async with http.post("/v1/responses", json=body) as response:
                told = events(await response.read())
        kinds = [event["type"] for event in told[-4:]]
        assert kinds == [
            "response.output_text.done", "response.content_part.done", "response.output_item.done",
            "response.completed",
        ]  # fmt: skip
        text = "".join(one["delta"] for one in told if one["type"] == "response.output_text.delta")
        assert told[-4]["text"] == told[-3]["part"]["text"] == text
        assert told[-1]["response"]["output"] == [told[-2]["item"]]

    run(test)
