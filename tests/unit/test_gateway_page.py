"""The page's words, numbers and places: strangers' names are harmless, and what is shown is what is."""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Any

import numpy as np
import pytest

from page_states import HOSTILE, state, why
from sooner.gateway.admission import standing
from sooner.gateway.admission.room import Room, Waiting
from sooner.gateway.admission.shares import Shares
from sooner.gateway.counts import COUNTERS
from sooner.gateway.delivery.context import Finished
from sooner.gateway.page import request_html, words
from sooner.gateway.page.html import page, sections
from sooner.gateway.page.live import SELDOM, SHARE, LiveView, pause
from sooner.gateway.page.recent import KEPT, MOST_TENANTS, OTHERS, Recent
from sooner.gateway.page.settings import SloSettings
from sooner.gateway.settings import QueueSettings
from sooner.metrics import kendall_tau
from sooner.ordering.order import Order
from sooner.ordering.ticket import Ticket
from sooner.policies import get


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_strangers_name_is_one_short_line_of_text(text: str) -> None:
    shown = words.plain(text)
    assert len(shown) <= words.LONGEST
    assert all(unicodedata.category(one) not in {"Cc", "Cf", "Zl", "Zp", "Cs"} for one in shown)
    made = words.name(text)
    inside = made.removeprefix("<bdi>").removesuffix("</bdi>")
    assert not set("<>\"'") & set(inside)
    assert html.unescape(inside) == shown
    assert words.plain(shown) == shown


def test_durations_and_counts_are_short() -> None:
    told = [words.seconds(value) for value in (None, float("nan"), 0.0, 0.12, 1.0, 99.0, 600, 7200)]
    dash = words.UNKNOWN
    assert told == [dash, dash, "0 ms", "120 ms", "1.0 s", "99.0 s", "10 min", "2.0 h"]
    assert words.count(1234567) == "1\N{THIN SPACE}234\N{THIN SPACE}567"
    assert words.share(0.256) == "26 %"


class Asked:
    """What `Recent` reads of a request."""

    stream = True


def finished(tenant: str = "t", wait: float = 1.0, reply: int = 10, told: float | None = None) -> Finished:
    asked: Any = Asked()
    return Finished("i", tenant, asked, "b", 0.0, wait, 0.5, wait + 2.0, 5, reply, True, 200, None, told)


def test_the_last_hours_numbers_are_those_of_its_requests() -> None:
    now, counts = [0.0], dict.fromkeys(COUNTERS, 0)
    recent = Recent(counts, SloSettings(), lambda: now[0])
    rng = np.random.default_rng(0)
    waits, replies = rng.exponential(1.0, 500), rng.integers(1, 900, 500)
    told = replies * rng.lognormal(0, 0.5, 500)
    for wait, reply, predicted in zip(waits, replies, told, strict=True):
        now[0] += 1.0
        recent.add(finished("ab"[reply % 2], wait, int(reply), predicted))
    all_seen = recent.window()
    seen, truth, tenants = all_seen.hour, all_seen.truth, all_seen.tenants
    assert seen.requests == 500
    assert seen.wait == pytest.approx(np.percentile(waits, (50, 90, 99)))
    assert seen.e2e.p99 == pytest.approx(np.percentile(waits, 99) + 2.0)
    assert seen.ttft.p50 == pytest.approx(np.percentile(waits, 50) + 0.5)
    assert seen.tokens_per_second == pytest.approx(replies.sum() / 500)
    assert truth.tau == pytest.approx(float(kendall_tau(told, replies)))
    assert truth.ratio == pytest.approx(told.sum() / replies.sum())
    assert sum(group.requests for group in truth.groups) == 500
    assert tenants["a"].share + tenants["b"].share == pytest.approx(1.0)
    now[0] += 3601.0
    assert recent.window().hour.requests == 0
    assert recent.window().day.requests == 500


def test_what_was_refused_in_the_hour_is_told_and_no_more() -> None:
    now, counts = [0.0], dict.fromkeys(COUNTERS, 0)
    recent = Recent(counts, SloSettings(), lambda: now[0])
    counts["refused_full"] = 7
    for minute in range(90):
        now[0] = 60.0 * minute
        recent.tick()
    counts["refused_full"] = 9
    assert recent.window().hour.refused["refused_full"] == 2


@pytest.mark.parametrize("rate", [1.0, 0.003])
def test_the_days_numbers_are_those_of_a_days_requests(rate: float) -> None:
    now, counts = [50.0], dict.fromkeys(COUNTERS, 0)
    recent = Recent(counts, SloSettings(ttft=2.0, tpot=0.1), lambda: now[0])
    rng = np.random.default_rng(1)
    ended = []
    for _ in range(round(100_000 * rate)):
        now[0] += 1.0 / rate
        recent.tick()
        wait = float(rng.exponential(1.5))
        in_time = recent.add(finished(wait=wait, reply=40))
        assert in_time == (wait + 0.5 <= 2.0 and wait + 2.0 <= 6.0)
        counts["refused_full"] += 1
        ended.append((now[0], wait, in_time))
    seen = recent.window().day
    assert 86_000 <= seen.length <= 86_400
    of_day = [row for row in ended if row[0] >= now[0] - seen.length]
    waits = np.array([wait for _, wait, _ in of_day])
    assert seen.requests == len(of_day)
    assert seen.in_time == sum(in_time for *_, in_time in of_day)
    assert seen.goodput == seen.in_time / seen.length
    assert seen.reply_tokens == 40 * len(of_day)
    assert abs(seen.refused["refused_full"] - len(of_day)) <= 60 * rate + 1  # kept once a minute
    for q, shown in zip((50, 90, 99), seen.wait, strict=True):
        assert shown == pytest.approx(np.percentile(waits, q, method="inverted_cdf"), rel=0.0101)
    now[0] += 90_000.0
    recent.tick()
    assert recent.window().day.requests == 0


def test_how_a_request_ended_is_counted_once() -> None:
    recent = Recent(dict.fromkeys(COUNTERS, 0), SloSettings(), lambda: 0.0)
    for status in (200, 201, 0, 500, 400):
        recent.add(finished()._replace(status=status))
    for seen in recent.window()[:2]:
        assert (seen.requests, seen.in_time, seen.cut, seen.failed) == (2, 2, 1, 2)


def test_strangers_cannot_make_it_grow() -> None:
    now = [0.0]
    recent = Recent(dict.fromkeys(COUNTERS, 0), SloSettings(), lambda: now[0])
    for n in range(MOST_TENANTS + 50):
        recent.add(finished(f"t{n}"))
    assert len(recent.window().tenants) == MOST_TENANTS + 1
    assert recent.window().tenants[OTHERS].requests == 50
    for _ in range(KEPT):
        recent.add(finished())
    now[0] += 11.0
    assert recent.window().hour.requests == KEPT


def test_first_gives_each_tenant_its_turn_and_stays_bounded() -> None:
    order = Order(get("fcfs"), None, None)  # type: ignore[arg-type]
    room: Room[Waiting] = Room(order, Shares({}), QueueSettings())
    sizes = {("a", 1): 7, ("b", 1): 2, ("c", 1): 30, ("d", 0): 3}
    for (tenant, level), n in sizes.items():
        for at in range(n):
            ticket = Ticket(at, float(at), 1, 0.0, 0.0, 0.0, 0)
            ticket.stand(float(at), False)
            room.push(Waiting(f"{tenant}{at}", tenant, level, ticket), 0.0)
    first = standing.first(room.levels, room.shares, 12)
    assert [place for place, _ in first] == list(range(1, 13))
    ids = [request.id for _, request in first]
    assert ids[:3] == ["d0", "d1", "d2"]
    assert {*ids[3:6]} == {"a0", "b0", "c0"}
    assert {*ids[6:9]} == {"a1", "b1", "c1"}
    assert len(standing.first(room.levels, room.shares, 1000)) == 42
    for place, request in standing.first(room.levels, room.shares, 1000):
        assert place <= room.position(request)
    own = standing.before(room.levels, next(request for _, request in first if request.id == "c1"))
    assert (own.own, own.later, own.others, own.better) == (1, 0, 4, 3)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_page_of_hostile_names_has_the_same_tags_as_one_of_harmless_names(text: str) -> None:
    def tags(made: str) -> list[str]:
        found = [part.partition(">")[0] for part in made.split("<")[1:]]
        links = [tag for tag in found if tag.startswith("a ")]
        assert all(re.fullmatch(r'a href="/sooner/requests/[\w.~%-]*"', tag, re.ASCII) for tag in links)
        return [tag for tag in found if tag not in links]

    assert tags(page(state(text), signed_in=True)) == tags(page(state("a"), signed_in=True))
    assert all(len(part) < 20_000 + 4 * len(text) for part in sections(state(text)).values())


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_reason_for_no_claim_is_text_too(text: str) -> None:
    made = sections(state("a") | {"worth": {"off": "", "answer": {"at": 0.0, "none": text}}})["worth"]
    assert [part.partition(">")[0] for part in made.split("<")[1:]] == [
        "h2", "/h2", "p", "bdi", "/bdi", "/p", 'p class="hint"', "/p",
    ]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_requests_page_of_hostile_words_has_the_tags_of_a_harmless_one(text: str) -> None:
    def made(text: str) -> list[str]:
        both = request_html.request(why(text)) + request_html.no_request(text)
        return [part.partition(">")[0] for part in both.split("<")[1:]]

    assert made(text) == made("a")


def test_looking_takes_a_bounded_share_of_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = [0.0]
    monkeypatch.setattr("sooner.gateway.page.live.time.thread_time", lambda: spent[0])
    wall = [100.0]
    monkeypatch.setattr("sooner.gateway.page.live.time.monotonic", lambda: wall[0])

    def look() -> dict[str, Any]:
        spent[0] += 0.0079  # a long queue
        return {}

    live = LiveView(look)
    for _ in range(600):
        live.state()
        wall[0] += 1.0
    assert spent[0] <= 1.1 * SHARE * 600
    assert live.looks == 150
    live.forget()
    live.state()
    assert live.looks == 151
    assert pause(1.0) == SELDOM  # one slow look freezes no page
