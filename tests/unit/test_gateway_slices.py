"""What slices are made with: the stitching of replies, the estimator of serving times, the offloading."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sooner.emulator.reply import ReplyFrames, Wanted, said
from sooner.gateway.delivery.stitch import Odd, Reasons, Stitch, Whole, plan
from sooner.gateway.engines.serving_time import ServingTime

CHAT = "/v1/chat/completions"


def stitch(**changes: Any) -> Stitch:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, **changes}
    chosen = plan(CHAT, json.dumps(body).encode())
    assert chosen is not None
    return Stitch(chosen)


def event(text: str | None = None, reason: str | None = None, **more: Any) -> bytes:
    delta = ({} if text is None else {"content": text}) | more
    chunk = {"id": "x", "created": 1, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def usage(prompt: int, output: int) -> bytes:
    told = {"prompt_tokens": prompt, "completion_tokens": output}
    return b"data: " + json.dumps({"choices": [], "usage": told}).encode() + b"\n\ndata: [DONE]\n\n"


def content(stream: bytes) -> str:
    chunks = [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])


def test_a_slice_is_asked_for_within_the_limit_and_the_context() -> None:
    one = stitch(max_tokens=20)
    one.context = 30
    first = json.loads(one.next_slice(8))
    assert first["max_tokens"] == 8
    assert first["stream_options"] == {"include_usage": True}
    assert "continue_final_message" not in first
    one.feed(event("a b", "length") + usage(15, 8))
    assert one.end() == 8
    second = json.loads(one.next_slice(8))
    assert second["max_tokens"] == 7  # 30 - 15 - 8
    assert second["messages"][1:] == [{"role": "assistant", "content": "a b"}]
    assert second["continue_final_message"] is True
    assert second["add_generation_prompt"] is False
    one.feed(event(" c", "length") + usage(23, 7))
    one.end()
    assert (one.reason, one.tokens, one.text) == ("length", 15, "a b c")
    assert one.usage() == {"prompt_tokens": 15, "completion_tokens": 15, "total_tokens": 30}


def test_bytes_may_come_in_any_pieces() -> None:
    whole = event("", role="assistant") + event("one") + event(" two", "stop") + usage(3, 2)
    for size in (1, 7, len(whole)):
        one = stitch()
        one.next_slice(8)
        out = b"".join(one.feed(whole[at : at + size]) for at in range(0, len(whole), size))
        one.end()
        assert content(out) == one.text == "one two"
        assert one.reason == "stop"


def test_half_a_letter_at_the_end_of_a_slice_is_made_again() -> None:
    one = stitch()
    one.next_slice(2)
    out = one.feed(event("gr\ufffd", "length") + usage(3, 2))
    one.end()
    assert json.loads(one.next_slice(2))["messages"][1]["content"] == "gr"
    out += one.feed(event("ün", "stop") + usage(5, 2))
    one.end()
    assert content(out + one.closing()) == "grün"


def test_a_reply_that_ends_in_half_a_letter_keeps_it() -> None:
    one = stitch()
    one.next_slice(8)
    out = one.feed(event("gr\ufffd", "stop") + usage(3, 2))
    one.end()
    assert content(out + one.closing()) == "gr\ufffd"


def test_what_cannot_be_continued_is_served_whole_or_told() -> None:
    one = stitch()
    one.next_slice(8)
    one.feed(event("", role="assistant"))
    with pytest.raises(Reasons, match="reasoning_content"):
        one.feed(event(None, reasoning_content="let me see"))
    with pytest.raises(Whole, match="refusal"):
        one.feed(event(None, refusal="no"))
    other = stitch()
    other.next_slice(8)
    other.feed(event("text"))
    with pytest.raises(Odd, match="tool_calls"):
        other.feed(event(None, tool_calls=[{"index": 0}]))


@pytest.mark.parametrize("bad", [b"data: {\n\n", b"data: 3\n\n", b'data: {"error": {}}\n\n'])
def test_a_slice_that_is_no_reply_is_told(bad: bytes) -> None:
    one = stitch()
    one.next_slice(8)
    with pytest.raises(Odd):
        one.feed(bad)


def test_a_slice_without_an_end_is_no_slice() -> None:
    one = stitch()
    one.next_slice(8)
    one.feed(event("half"))
    with pytest.raises(Odd, match="without an end"):
        one.end()
    one.lose()
    assert (one.text, one.tokens, one.reason) == ("half", 1, "")


def test_a_slice_that_broke_off_at_the_limit_was_the_last() -> None:
    one = stitch(max_tokens=2)
    one.next_slice(8)
    one.feed(event("a") + event(" b"))
    one.lose()
    closing = [json.loads(line[6:]) for line in one.closing().split(b"\n") if line.startswith(b"data: {")]
    assert closing[0]["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]


def test_a_slice_that_brings_nothing_ends_the_reply() -> None:
    one = stitch()
    one.next_slice(1)
    one.feed(event("\ufffd", "length") + usage(3, 1))
    one.end()
    assert one.reason == "length"


def test_the_emulated_engine_knows_its_own_words() -> None:
    for length in (0, 1, 12, 13, 14, 40):
        asked = Wanted("completions", "p", 1, length, False, 0.0, False, False)
        text = ReplyFrames("completions", "1", "m", asked)._text()
        assert said("Say something." + text) == length
    assert said("what is that for") == 0


def test_the_estimator_finds_the_form_it_assumes() -> None:
    rng = np.random.default_rng(0)

    def true(n: float, length: float, m: float) -> float:
        cache = m * length + m * (m + 1) / 2
        return 0.02 + 1e-4 * length + m * (0.01 + 3e-4 * n) + 2e-8 * n * cache

    times = ServingTime()
    assert not times.known
    for _ in range(400):
        n, length, m = int(rng.integers(1, 65)), int(rng.integers(10, 2000)), int(rng.integers(1, 129))
        times.add(n, length, m, true(n, length, m) * float(np.exp(0.05 * rng.standard_normal())))
    for n, length, m in ((1, 100, 128), (32, 1000, 128), (60, 50, 64)):
        assert times.seconds(n, length, m) == pytest.approx(true(n, length, m), rel=0.1)


@pytest.mark.parametrize(
    ("path", "limits"),
    [
        ("/v1/completions", {"max_completion_tokens": 1}),
        ("/v1/completions", {"max_completion_tokens": 1, "max_tokens": 4000}),
        (CHAT, {"max_completion_tokens": 1, "max_tokens": 4000}),
        (CHAT, {"max_tokens": "4000"}),
    ],
)
def test_a_limit_that_is_not_the_only_one_is_for_the_engine_to_read(
    path: str, limits: dict[str, Any]
) -> None:
    body = {"model": "m", "prompt": "x", "messages": [{"role": "user", "content": "x"}], **limits}
    del body["messages" if path != CHAT else "prompt"]
    assert plan(path, json.dumps(body).encode()) is None


def test_a_slice_is_utf_8_whatever_was_asked() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "a \ud800 é"}]}
    chosen = plan(CHAT, json.dumps(body).encode())
    assert chosen is not None
    sent = Stitch(chosen).next_slice(8)
    assert json.loads(sent.decode("utf-8"))["messages"] == body["messages"]
