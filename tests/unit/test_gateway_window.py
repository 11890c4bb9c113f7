"""The bound of requests in flight, the breaker, priorities, buckets and settings."""

from __future__ import annotations

import json

import pytest

from sooner.core import ConfigError, UnknownName
from sooner.gateway import settings
from sooner.gateway.admission.limits import Bucket
from sooner.gateway.admission.reading import BadRequest, read, renamed
from sooner.gateway.engines.breaker import Breaker
from sooner.gateway.engines.connections import Address
from sooner.gateway.engines.kinds import KINDS, Quantiles, gauge, with_priority
from sooner.gateway.engines.window import Window


def test_the_window_finds_an_engine_that_runs_40() -> None:
    window = Window(0, 1, 1024)
    for _ in range(200):
        in_flight = window.limit
        window.engine(max(0, in_flight - 40), in_flight, hungry=True)
    assert 40 <= window.limit <= 46


def test_the_window_finds_it_from_latency_too() -> None:
    window = Window(0, 1, 1024)
    seen = []
    for _ in range(4000):
        in_flight = window.limit
        first_byte = 0.05 * max(1.0, in_flight / 40)  # requests beyond 40 wait for their first byte
        window.latency(first_byte, 100, in_flight, hungry=True)
        seen.append(window.limit)
    assert 40 <= sum(seen[-500:]) / 500 <= 120


def test_a_long_prompt_that_takes_its_time_is_no_queue() -> None:
    window = Window(0, 1, 1024)
    for n in range(100):
        window.latency(0.05 if n % 2 else 1.0, 100 if n % 2 else 8000, 8, hungry=False)
    assert window.limit == 16
    window.latency(0.5, 100, 16, hungry=False)
    assert window.limit == 16  # one may be late by a prompt that was not in the cache
    for _ in range(20):
        window.latency(0.5, 100, 16, hungry=False)
    assert window.limit < 16


def test_the_window_does_not_grow_while_nobody_waits() -> None:
    window = Window(0, 1, 1024)
    for _ in range(100):
        window.engine(0, window.limit, hungry=False)
        window.latency(0.05, 100, 1, hungry=False)
    assert window.limit == 16
    assert Window(3, 1, 1024).limit == 3


def test_what_a_window_may_become_is_known_once_it_sees_queueing() -> None:
    by_count, by_latency = Window(0, 1, 1024), Window(0, 1, 1024)
    assert by_latency.potential == 16  # nothing is measured yet, and may never be
    by_count.counted = True
    by_count.engine(0, 16, hungry=True)
    by_latency.latency(0.05, 100, 1, hungry=False)
    assert by_count.potential == by_latency.potential == 1024
    for _ in range(15):
        by_latency.latency(0.05, 100, 1, hungry=False)
    for _ in range(3):
        by_count.engine(16, 32, hungry=True)
    for _ in range(10):
        by_latency.latency(0.15, 100, 16, hungry=True)
    assert by_count.potential == by_count.limit == 17
    assert by_latency.potential == by_latency.limit
    assert Window(8, 1, 1024).potential == 8


def test_a_window_that_fell_comes_back_to_what_was_good() -> None:
    window = Window(0, 1, 1024, start=512)
    window.counted = True
    window.engine(0, 512, hungry=False)
    for _ in range(30):
        window.engine(28, 30, hungry=False)  # a long prefill, with room left in the bound
    assert window.limit < 16
    for _ in range(8):
        window.engine(0, window.limit, hungry=True)
    assert window.limit >= 64


def test_steps_that_last_long_need_longer_to_be_a_queue() -> None:
    fast, slow = Window(0, 1, 1024, start=64), Window(0, 1, 1024, start=64)
    slow.step(2.0)
    for window in (fast, slow):
        for running in (8, 8, 8, 8, 16, 16, 16):  # a step of 2 s is four counts
            window.engine(64 - running, 64, hungry=True)
    assert slow.limit == 64
    assert fast.limit < 64


def test_who_is_in_the_engine_already_is_not_counted_again_at_the_next_count() -> None:
    window = Window(0, 1, 1024, start=32)
    for in_flight in range(32, 20, -1):  # 8 places, and those inside end one by one
        window.engine(in_flight - 8, in_flight, hungry=True)
    assert 8 <= window.limit <= 12


def test_a_burst_that_an_engine_is_still_prefilling_is_no_queue() -> None:
    window = Window(0, 1, 1024, start=96)
    for running in (20, 20, 40, 40, 60, 60, 80, 80, 96):  # a step lasts longer than two counts are apart
        window.engine(96 - running, 96, hungry=True)
    assert window.limit >= 96


def test_a_window_that_is_told_how_many_wait_goes_by_that_alone_while_it_is() -> None:
    window = Window(0, 1, 1024)
    window.counted = True
    for _ in range(20):
        window.latency(0.05, 100, 16, hungry=False)
        window.latency(5.0, 100, 16, hungry=True)
    assert window.limit == 16
    window.counted = False  # started again, without its metrics
    for _ in range(20):
        window.latency(5.0, 100, 16, hungry=True)
    assert window.limit < 16


def test_the_breaker_opens_after_three_and_for_longer_each_time() -> None:
    breaker = Breaker()
    breaker.failed(0.0, "a")
    breaker.failed(0.0, "b")
    assert not breaker.tripped(0.0)
    breaker.failed(0.0, "a")
    assert breaker.tripped(0.9)
    assert not breaker.tripped(1.0)
    breaker.failed(1.0, "b")
    breaker.failed(1.0, "a")
    assert breaker.tripped(2.9)
    breaker.ok()
    assert not breaker.tripped(2.9)
    breaker.failed(5.0, at_once=True)
    assert breaker.tripped(5.5)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.priority])
def test_an_earlier_key_is_served_earlier_by_each_kind(kind: str) -> None:
    priority = KINDS[kind].priority
    assert priority is not None
    lower_first = kind in ("vllm", "litellm")
    early, late = priority(10.0, 0.1), priority(20.0, 0.9)
    assert (early < late) == lower_first
    if kind == "sglang":
        assert all(0 <= priority(0.0, q / 100) <= 9 for q in range(101))
    if kind == "tensorrt-llm":
        assert all(0 <= priority(0.0, q / 100) <= 1 for q in range(101))


def test_quantiles_are_of_the_recent_keys() -> None:
    quantiles = Quantiles(4)
    assert [quantiles.of(key) for key in (5.0, 6.0, 4.0)] == [0.5, 1.0, 0.0]
    for _ in range(4):
        quantiles.of(100.0)
    assert quantiles.of(6.0) == 0.0


def test_a_priority_is_put_in_and_nothing_else_changed() -> None:
    body = b' {"model": "m", "messages": [{"a": "{"}]}'
    changed = b"".join(with_priority(body, -3))
    assert json.loads(changed) == {"priority": -3, **json.loads(body)}
    assert changed.endswith(body[2:])
    assert json.loads(renamed('{"model":"a","x":"é"}'.encode(), "a", "b")) == {"model": "b", "x": "é"}


def test_gauges_are_summed_over_labels() -> None:
    text = '# HELP q x\nq{model="a"} 2.0\nq{model="b"} 3\nqq 9\nother 1\n'
    assert gauge(text, "q") == 5.0
    assert gauge(text, "nothing") is None


def test_a_bucket_pays_back_before_it_gives() -> None:
    bucket = Bucket(60.0, 0.0)
    assert bucket.wait(60.0, 0.0) == 0.0
    bucket.take(120.0)
    assert bucket.wait(1.0, 0.0) == pytest.approx(61.0)
    assert bucket.wait(1.0, 61.0) == pytest.approx(0.0)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": 5}', "{}".encode("utf-16"), b"[" * 100_000])
def test_bodies_that_are_no_request_are_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read(body, client_scores=True, deadline_ms=None)


def test_what_is_read_of_a_request() -> None:
    body = {"model": "m", "stream": True, "max_tokens": 7, "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image"}]}],
            "vllm_xargs": {"sooner_predicted_len": 3}}  # fmt: skip
    asked = read(json.dumps(body).encode(), client_scores=True, deadline_ms="250")
    assert (asked.model, asked.stream, asked.request.signals.max_tokens) == ("m", True, 7)
    assert asked.request.turns[0].text.startswith("hi")
    assert asked.given.predicted_len == 3
    assert asked.given.deadline_ms == 250
    assert read(json.dumps(body).encode(), client_scores=False, deadline_ms=None).given.predicted_len is None
    with pytest.raises(BadRequest, match="deadline"):
        read(b"{}", client_scores=False, deadline_ms="soon")


def test_settings_are_read_and_wrong_ones_refused_with_the_nearest_name() -> None:
    chosen = settings.read(
        {
            "policy": "ltr",
            "queue": {"max_waiting": 5},
            "backend": [{"url": "http://a:1/v1", "kind": "sglang", "models": ["x"]}],
            "class": [{"name": "batch", "level": 2}],
            "tenant": [{"name": "t", "classes": ["batch"]}],
        },
        "test",
    )
    assert chosen.backends[0].title == "a:1"
    assert chosen.backends[0].models == ("x",)
    assert chosen.queue.max_waiting == 5
    for wrong, nearest in (
        ({"polcy": "ltr"}, "policy"),
        ({"policy": "ltrr"}, "ltr"),
        ({"queue": {"max_wating": 5}}, "max_waiting"),
        ({"backend": [{"url": "http://a", "kid": "vllm"}]}, "kind"),
        ({"backend": [{"url": "http://a", "kind": "vlm"}]}, "vllm"),
        ({"tenant": [{"name": "t", "classes": ["bath"]}], "class": [{"name": "batch"}]}, "batch"),
    ):
        with pytest.raises(UnknownName, match=f"did you mean '{nearest}'"):
            settings.read(wrong, "test")
    for bad in ({"backend": [{"url": "ftp://a"}]}, {"host": "0.0.0.0"}, {"queue": {"overdue": 0}},
                {"backend": [{"url": "http://a"}, {"url": "http://a/v1"}]}, {"backend": 3}):  # fmt: skip
        with pytest.raises(ConfigError):
            settings.read(bad, "test")


def test_backends_in_flags() -> None:
    assert settings.backend("vllm=http://a:1").kind == "vllm"
    assert settings.backend("http://a:1").kind == "openai"
    named = Address("api.example.com", 443, secure=True, authority="api.example.com")
    assert Address.of("https://api.example.com/v1") == named
    assert Address.of("http://h/proxy/v1/").base == "/proxy"
    for wrong in ("http://user:key@h", "h:1", "http://h:x", "http://h/?a=b"):
        with pytest.raises(ConfigError):
            Address.of(wrong)
