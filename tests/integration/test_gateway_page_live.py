"""The page and the switch: who may, what they say, and that neither costs those who are served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway_rig import chat, client, engine, rig, run, until

from sooner.emulator.engine import Lengths
from sooner.gateway.admission.keys import KeyBook
from sooner.gateway.app import Gateway
from sooner.gateway.database import Database
from sooner.gateway.page.live import MOST

ADMIN = "open-sesame"


@asynccontextmanager
async def crowd(gateway: Gateway, http: aiohttp.ClientSession, n: int, **more: Any) -> AsyncIterator[None]:
    """Keep n requests at the gateway whose engine is slow."""

    async def one(at: int) -> None:
        headers = {"x-sooner-tenant": f"tenant {at % 3}", "x-request-id": f"r{at}"}
        await _post(http, chat("hi " * (at + 1), **more), headers)

    tasks = [asyncio.create_task(one(at)) for at in range(n)]
    try:
        await until(lambda: gateway.dispatcher.queued == n - 1)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def held(**settings: Any) -> AbstractAsyncContextManager[Gateway]:
    """Serve a gateway whose engine takes one request, and a minute for a token."""
    return rig([engine(iteration_s=60.0, max_num_seqs=1)], backend={"max_in_flight": 1}, **settings)


def tile(page: str, name: str) -> float:
    found = re.search(f'id="n-{name}">([^<]*)<', page)
    assert found is not None
    return float(found[1].replace("\N{THIN SPACE}", ""))


async def text(http: aiohttp.ClientSession, path: str, **more: Any) -> str:
    async with http.get(path, **more) as response:
        assert response.status == 200, await response.text()
        return await response.text()


async def metric(http: aiohttp.ClientSession, name: str) -> float:
    lines = (await text(http, "/metrics")).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_each_number_is_that_of_metrics_and_of_the_requests() -> None:
    async def test() -> None:
        async with rig([engine(lengths=Lengths("5"))]) as gateway, client(gateway) as http:
            for n in range(30):
                async with http.post(
                    "/v1/chat/completions", json=chat(f"hello {n}", stream=True)
                ) as response:
                    assert (await response.read()).endswith(b"data: [DONE]\n\n")
            await until(lambda: gateway.page.recent.window().hour.requests == 30)
            page = await text(http, "/sooner/")
            for shown, counted in (
                ("requests", "sooner_requests_total"), ("finished", "sooner_finished_total"),
                ("waiting", "sooner_waiting"), ("running", "sooner_running"),
                ("errors", "sooner_upstream_errors_total"), ("hour-requests", "sooner_wait_seconds_count"),
                ("hour-requests", "sooner_finished_total"),
            ):  # fmt: skip
                assert tile(page, shown) == await metric(http, counted), shown
            told = json.loads(await text(http, "/sooner/v1/state"))
            mean = await metric(http, "sooner_request_seconds_sum") / 30
            assert told["hour"]["e2e"]["p50"] == pytest.approx(mean, rel=2.0)
            assert told["tenants"]["rows"][0]["requests"] == 30
            assert told["tenants"]["rows"][0]["share"] == pytest.approx(1.0)

    run(test)


def test_who_waits_is_shown_in_order_with_the_reason() -> None:
    async def test() -> None:
        async with held() as gateway, client(gateway) as http, crowd(gateway, http, 9):
            told = json.loads(await text(http, "/sooner/v1/state"))
            assert told["waiting"] == gateway.dispatcher.queued == len(told["queue"]["rows"])
            assert [row["position"] for row in told["queue"]["rows"]] == list(range(1, told["waiting"] + 1))
            assert all(row["reason"].startswith("work of ") for row in told["queue"]["rows"])
            id = told["queue"]["rows"][-1]["id"]
            headers = {"x-sooner-tenant": told["queue"]["rows"][-1]["tenant"]}
            why = json.loads(await text(http, f"/sooner/v1/requests/{id}", headers=headers))
            assert why["policy"] == "boost"
            work = why["work"]
            assert work["total_s"] == pytest.approx(work["prompt_s"] + work["reply_s"], abs=1e-3)
            assert why["boost_s"] is not None
            assert why["position"] == 1 + sum(
                why["before"][name] for name in ("own", "other_tenants", "better_classes")
            )
            for words in (
                "It has waited ",
                f"number {why['position']} of",
                "Its place: work of ",
                "Before it go: ",
            ):
                assert words in why["words"]

    run(test)


def test_why_is_told_with_the_rankers_terms_and_the_groups_history() -> None:
    async def test() -> None:
        settings = {"ranker": "default", "learn": True, "learned": "", "scorer_timeout": 60.0}
        async with held(**settings) as gateway, client(gateway) as http, crowd(gateway, http, 7):
            waiting = gateway.dispatcher.waiting
            await until(lambda: all(visit.scored for visit in waiting.values()), 60.0)
            (pool,) = gateway.dispatcher.pools
            scores = {visit.id: visit.ticket.score for visit in pool.room}
            last = max(pool.room, key=lambda visit: visit.place)
            why = json.loads(
                await text(http, f"/sooner/v1/requests/{last.id}", headers={"x-sooner-tenant": last.tenant})
            )
            ranker, learned = why["ranker"], why["learned"]
            assert sum(term["amount"] for term in ranker["terms"]) == pytest.approx(ranker["score"], abs=1e-2)
            assert [group["of"] for group in learned["groups"]][:2] == ["all", "model"]
            assert learned["on"]
            assert "The ranker takes its reply to be " in why["words"]
            assert why["before"]["next"]
            assert all(one["id"] in waiting for one in why["before"]["next"])
            page = await text(http, f"/sooner/requests/{last.id}")
            assert "Terms of the ranker" in page
            assert f"<bdi>{last.id}</bdi>" in page
            assert f'href="/sooner/requests/{last.id}"' in await text(http, "/sooner/")
            async with http.get("/sooner/requests/nobody") as response:
                assert response.status == 404
            assert scores == {visit.id: visit.ticket.score for visit in pool.room}  # asking moves nobody

    run(test, 90.0)


def test_the_switch_makes_it_arrival_order_at_once_and_says_who(caplog: pytest.LogCaptureFixture) -> None:
    def order(gateway: Gateway) -> list[str]:
        (pool,) = gateway.dispatcher.pools
        (queue,) = (queue for tenants in pool.room._levels.values() for queue in tenants.values())
        return [visit.id for visit in queue]

    async def test() -> None:
        async with held(policy="spjf", client_scores=True) as gateway, client(gateway) as http:
            async with http.post("/sooner/v1/switch", json={"on": "maybe"}) as response:
                assert response.status == 400
            tasks = []
            for at, length in enumerate((9, 500, 400, 300, 200, 100)):
                body = chat(f"{at}", vllm_xargs={"sooner_predicted_len": length, "sooner_score": length})
                tasks.append(asyncio.create_task(_post(http, body, {"x-request-id": f"r{at}"})))
                await until(lambda n=at + 1: len(gateway.dispatcher.waiting) == n)  # type: ignore[misc]
            await until(lambda: gateway.dispatcher.queued == 5)
            shortest_first = ["r5", "r4", "r3", "r2", "r1"]
            assert order(gateway) == shortest_first
            async with http.post("/sooner/v1/switch", json={"on": False, "by": "anna\n<b>"}) as response:
                assert await response.json() == {"on": False, "policy": "spjf"}
            assert order(gateway) == shortest_first[::-1]
            page = await text(http, "/sooner/")
            assert "Ordering is <strong>off</strong>: arrival order." in page
            assert (
                "turned off by <bdi>anna\N{REPLACEMENT CHARACTER}&lt;b&gt; (this machine, 127.0.0.1)</bdi>"
                in page
            )
            async with http.post("/sooner/v1/switch", json={"on": True, "by": "ben"}) as response:
                assert (await response.json())["on"] is True
            assert order(gateway) == shortest_first
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with caplog.at_level(logging.WARNING, "sooner.gateway"):
        run(test)
    turned = [record.getMessage() for record in caplog.records if "was turned" in record.getMessage()]
    assert [line.partition(", by ")[0] for line in turned] == [
        "ordering was turned off: order of arrival", "ordering was turned on: spjf",
    ]  # fmt: skip
    assert all("\n" not in line for line in turned)


async def _post(http: aiohttp.ClientSession, body: dict[str, Any], headers: dict[str, str]) -> None:
    with contextlib.suppress(aiohttp.ClientError):  # the gateway ends before the engine does
        async with http.post("/v1/chat/completions", json=body, headers=headers) as response:
            await response.read()


def test_no_other_sites_page_may_look_or_turn() -> None:
    async def test() -> None:
        async with rig([engine()]) as gateway, client(gateway) as http:
            host = gateway.url.removeprefix("http://")
            strangers: tuple[dict[str, str], ...] = (
                {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"},
                {"Sec-Fetch-Site": "cross-site", "Origin": f"http://{host}"},
            )  # fmt: skip
            for headers in strangers:
                for path in ("/sooner/events", "/sooner/v1/state"):
                    async with http.get(path, headers=headers) as response:
                        assert response.status == 403, (headers, path)
                async with http.post("/sooner/v1/switch", json={"on": False}, headers=headers) as response:
                    assert response.status == 403, headers
            async with http.post("/sooner/v1/switch", data={"on": "false"}) as response:
                assert response.status == 403  # a form that does not say whose
            async with http.post("/sooner/v1/switch", data=b"on=false") as response:
                assert response.status == 415
            assert gateway.page.switch.on
            own = {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
            form = {"on": "false", "by": ""}
            async with http.post(
                "/sooner/v1/switch", data=form, headers=own, allow_redirects=False
            ) as response:
                assert (response.status, response.headers["Location"]) == (303, "/sooner/")
            assert not gateway.page.switch.on

    run(test)


def test_the_switch_is_where_it_was_left_over_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = str(tmp_path / "state.json")

    async def test() -> None:
        async with rig([engine()], state=state) as gateway, client(gateway) as http:
            assert gateway.page.switch.on
            async with http.post("/sooner/v1/switch", json={"on": False, "by": "anna"}) as response:
                assert response.status == 200
        async with rig([engine()], state=state) as gateway, client(gateway) as http:
            assert not gateway.page.switch.on
            assert gateway.dispatcher.policy.name == "fcfs"
            page = await text(http, "/sooner/")
            assert "Ordering is <strong>off</strong>: arrival order." in page
            assert "turned off by <bdi>anna (this machine, 127.0.0.1)</bdi>" in page
            assert "ordering is off, as it was left by 'anna (this machine, 127.0.0.1)'" in caplog.text
            async with http.post("/sooner/v1/switch", json={"on": True, "by": "ben"}) as response:
                assert response.status == 200
        async with rig([engine()], state=state) as gateway:
            assert gateway.page.switch.on
            assert gateway.dispatcher.policy.name == "boost"
            assert [turn.by.split()[0] for turn in gateway.page.switch.turns] == ["anna", "ben"]

    run(test)


@pytest.mark.parametrize(
    "kept",
    ["", "{", "[]", "{}", '{"version": 9, "switch": {"on": false}}', '{"version": 1, "switch": 3}',
     '{"version": 1, "switch": {"on": "no", "turns": 7}}',
     '{"version": 1, "switch": {"turns": [1, {}, {"when": 1e999, "on": true, "by": "x"}, {"when": "now"}]}}',
     "[" * 100_000],
)  # fmt: skip
def test_a_file_that_makes_no_sense_leaves_the_switch_on(kept: str, tmp_path: Path) -> None:
    (tmp_path / "state.json.page").write_text(kept)

    async def test() -> None:
        async with rig([engine()], state=str(tmp_path / "state.json")) as gateway:
            assert gateway.page.switch.on
            assert not gateway.page.switch.turns

    run(test)


def test_with_an_admin_key_the_page_wants_it(tmp_path: Path) -> None:
    (tmp_path / "admin").write_text(ADMIN)

    async def test() -> None:
        async with (
            rig([engine()], admin_key_file=str(tmp_path / "admin")) as gateway,
            client(gateway) as http,
        ):
            async with http.get("/sooner/") as response:
                assert response.status == 401
                assert 'type="password"' in await response.text()
            for path in ("/sooner/events", "/sooner/v1/state"):
                async with http.get(path) as response:
                    assert response.status == 401
            async with http.post("/sooner/v1/switch", json={"on": False}) as response:
                assert response.status == 401
            await text(http, "/sooner/v1/state", headers={"Authorization": f"Bearer {ADMIN}"})
            for wrong in ("", "open", "\N{SNOWMAN}", "x" * 9999):
                async with http.post("/sooner/login", data={"key": wrong}) as response:
                    assert response.status == 401
                    assert "That is not the admin key" in await response.text()
            async with http.post("/sooner/login", data={"key": ADMIN}, allow_redirects=False) as response:
                assert response.status == 303
                cookie = response.cookies["sooner_session"]
                assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/sooner")
                assert ADMIN not in cookie.value
            signed = {"Cookie": f"sooner_session={cookie.value}"}
            assert "Sign out" in await text(http, "/sooner/", headers=signed)
            async with http.post("/sooner/logout", headers=signed, allow_redirects=False) as response:
                assert response.status == 303
            async with http.get("/sooner/", headers=signed) as response:
                assert response.status == 401

    run(test)


def test_where_others_are_served_there_is_no_page_without_an_admin_key(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/keys.db"
    book = KeyBook(Database(url))
    key = book.add("search")
    book.close()

    async def test() -> None:
        async with rig([engine()], keys=url) as gateway, client(gateway) as http:
            for headers in ({}, {"Authorization": f"Bearer {key}"}):
                async with http.get("/sooner/", headers=headers) as response:
                    assert response.status == 403
                    assert "admin_key_file" in await response.text()

    run(test)


def test_however_many_look_it_is_reckoned_once_and_stays_small() -> None:
    async def test() -> None:
        async with held() as gateway, client(gateway) as http, crowd(gateway, http, 120):
            live = gateway.page.live
            viewers = [await http.get("/sooner/events") for _ in range(MOST)]
            async with http.get("/sooner/events") as response:
                assert response.status == 503
            first = [await viewer.content.readline() for viewer in viewers]
            assert len({json.loads(line[6:])["at"] for line in first}) <= live.looks <= 3
            assert all(len(line) < 60_000 for line in first)
            assert set(json.loads(first[0][6:])["sections"]) == {
                "switch", "worth", "now", "queue", "hour", "tenants", "truth", "learned",
            }  # fmt: skip
            rows = json.loads(first[0][6:])["sections"]["queue"].count("<tr>")
            assert rows == 41
            for viewer in viewers[1:]:
                viewer.close()
            await until(lambda: live.viewers == 1)
            await live.close()  # as at the end: who looks is let go
            while not viewers[0].content.at_eof():
                await viewers[0].content.read(1 << 16)

    run(test)


def test_the_files_are_the_packages_own_and_nothing_else() -> None:
    async def test() -> None:
        async with rig([engine()]) as gateway, client(gateway) as http:
            for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
                async with http.get(f"/sooner/static/{name}") as response:
                    assert response.headers["Content-Type"].startswith(kind)
                    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
                    assert "http" not in (await response.text())
            for name in ("routes.py", "..%2froutes.py", "page.css.map"):
                async with http.get(f"/sooner/static/{name}") as response:
                    assert response.status == 404
            page = await text(http, "/sooner/")
            assert "<style" not in page
            assert "style=" not in page
            assert re.findall(r"<script[^>]*>", page) == ['<script src="/sooner/static/page.js" defer>']
            assert not re.search(r"\son\w+=", page)

    run(test)
