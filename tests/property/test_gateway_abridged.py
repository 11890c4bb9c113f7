"""A large body made short: what is left parses to the same but for the middles of long strings."""

from __future__ import annotations

import json
import random
import re

import pytest

from sooner.gateway.admission import abridged, piecewise, reading
from sooner.gateway.admission.abridged import TooManyValues
from sooner.gateway.admission.paths import ENDPOINTS

ROUTE = ENDPOINTS["/v1/chat/completions"]
LETTERS = ("a", "é", "中", "😀", "\n", '"', "\\", "\x01", "\ud800", "x" * 500, "\\" * 65, "\\u0041")


def text(draw: random.Random, size: int) -> str:
    parts, length = [], 0
    while length < size:
        parts.append(draw.choice(LETTERS) * draw.randrange(1, 40))
        length += len(parts[-1])
    return "".join(parts)


@pytest.mark.parametrize("seed", range(15))
def test_what_is_left_parses_and_can_be_made_whole_again(seed: int) -> None:
    draw = random.Random(seed)
    kinds = (10, 10, 1000, 70_000, 200_000)
    messages = [
        {"role": "user", "content": text(draw, draw.choice(kinds)), "x": [text(draw, draw.choice(kinds)), 1]}
        for _ in range(5)
    ]
    body = {"model": "alias", "messages": messages, "stream": True, "data": text(draw, 300_000)}
    data = json.dumps(body, ensure_ascii=draw.random() < 0.5, indent=draw.choice((None, 2)))
    encoded = data.encode("utf-8", "replace" if "\ud800" in data else "strict")
    body = json.loads(encoded)
    short = abridged.abridged(encoded)
    assert short.cut
    assert short.restored(short.body, encoded) == encoded
    left = json.loads(short.body)
    for before, after in zip(body["messages"], left["messages"], strict=True):
        ends = re.split(f"{short.mark}:[0-9]+;", after["content"])
        assert before["role"] == after["role"]
        assert len(ends) <= 2
        assert len("".join(ends)) <= len(before["content"])
        assert before["content"].startswith(ends[0].rstrip("\ud83d"))
        assert before["content"].endswith(ends[-1].lstrip("\ude00"))
    sent, asked = reading.read_json(
        encoded, client_scores=False, deadline_ms=None, endpoint=ROUTE, kinds={"vllm"}, aliases={"alias": "b"}
    )
    assert json.loads(sent) == {**body, "model": "b"}
    assert short.mark not in sent.decode("utf-8")
    counted = sum(len(one["content"].encode("utf-8", "replace")) for one in body["messages"]) / 4
    assert asked.prompt_len >= 0.5 * counted


def test_many_strings_that_are_not_long_are_short_together() -> None:
    turns = [{"role": "user", "content": f"{n:06} " + "x" * 60_000} for n in range(400)]
    body = json.dumps({"model": "m", "messages": turns}).encode()
    short = abridged.abridged(body)
    assert len(short.body) < 4_000_000
    assert short.restored(short.body, body) == body
    left = [short.bare(turn["content"]) for turn in json.loads(short.body)["messages"]]
    assert left[0] == turns[0]["content"]
    assert left[-1] == turns[-1]["content"]
    assert all(text.startswith(f"{n:06} ") for n, text in enumerate(left))
    assert sum(map(short.missing, (turn["content"] for turn in json.loads(short.body)["messages"]))) > 5e6


def test_a_long_text_counts_whole_and_a_long_picture_as_one() -> None:
    def prompt_len(content: object) -> int:
        data = json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]}).encode()
        _, asked = reading.read_json(
            data, client_scores=False, deadline_ms=None, endpoint=ROUTE, kinds={"vllm"}, aliases={}
        )
        assert all(len(turn.text) < 70_000 for turn in asked.request.turns)
        return asked.prompt_len

    assert prompt_len("x" * 4_000_000) == pytest.approx(1_000_000, rel=0.01)
    url = "data:image/png;base64," + "A" * 4_000_000
    assert prompt_len([{"type": "image_url", "image_url": {"url": url}}]) < 5_000


@pytest.mark.parametrize("part", [b"[],", b'{"":0},', b"1000,", b'"",', b'"\\"",', b'{"a":{"b":[]}},'])
def test_a_body_of_small_values_is_refused_before_it_is_parsed(part: bytes) -> None:
    body = b'{"messages":[' + part * (30_000_000 // len(part)) + b"0]}"
    with pytest.raises(TooManyValues):
        abridged.abridged(body)


@pytest.mark.parametrize("number", [b"1" * 30_000_000, b"0." + b"7" * 200_000, b"1e" + b"1" * 200_000])
def test_a_number_without_end_is_refused_before_it_is_parsed(number: bytes) -> None:
    with pytest.raises(reading.BadRequest, match="digits"):
        abridged.abridged(b'{"x":' + number + b',"y":"' + b"z" * 300_000 + b'"}')
    digits = b'{"x":"' + b"1" * 1_000_000 + b'"}'  # a text of digits is none
    assert abridged.abridged(digits).cut


@pytest.mark.parametrize("tail", [b"\\", b'\\"', b""])
def test_a_string_that_never_ends_is_for_the_parser_to_refuse(tail: bytes) -> None:
    body = b'{"model":"' + b"\\" * 600_000 + tail
    with pytest.raises(reading.BadRequest):
        reading.read_json(body, client_scores=False, deadline_ms=None, endpoint=ROUTE, kinds=(), aliases={})


@pytest.mark.parametrize("seed", range(4))
def test_a_large_text_is_read_piece_by_piece_to_the_same(seed: int) -> None:
    draw = random.Random(seed)

    def value(depth: int) -> object:
        match draw.randrange(7 if depth else 5):
            case 0:
                return text(draw, 20)
            case 1:
                return draw.choice((0, -1, 10**20, 1.5, -2e300, True, False, None, float("inf")))
            case 2:
                return ""
            case 3:
                return []
            case 4:
                return {}
            case 5:
                return [value(depth - 1) for _ in range(draw.randrange(4))]
            case _:
                return {text(draw, 3): value(depth - 1) for _ in range(draw.randrange(4))}

    def read(one: json.JSONDecoder, data: str) -> object:
        try:
            return repr(one.decode(data))
        except (ValueError, RecursionError) as error:
            return type(error)

    whole, pieces = piecewise.decoder(1), piecewise.decoder(piecewise.LARGE + 1)
    assert type(whole) is not type(pieces)
    for _ in range(500):
        data = json.dumps(value(5), ensure_ascii=draw.random() < 0.5, indent=draw.choice((None, 1)))
        at = draw.randrange(len(data) + 1)
        odd = draw.choice(("", "", ",", "}", "[", '"', "\\u12", "01", "NaN", "\x00", "1.", " ", "\ufeff"))
        data = data[:at] + odd + data[at + draw.randrange(2) :]
        assert read(whole, data) == read(pieces, data), data
    assert read(pieces, "[" * 100_000) is RecursionError
