"""The small parts of the plugin: frames, counters, the plugin's entry point, the middleware."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sooner import chat
from sooner.chat import ChatRequest, Signals, Turn
from sooner.core import ConfigError, Prediction
from sooner.ordering import wire
from sooner.ordering.held import HeldFolder, LockFile, sweep
from sooner.vllm import middleware, plugin
from sooner.vllm.counters import COUNTERS, Collector, PluginCounters, Publisher

texts = st.text(st.characters(exclude_categories=["Cs"]))
turns = st.builds(Turn, st.sampled_from(["system", "user", "assistant", "tool"]), texts)
prompts = (
    texts
    | st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50)
    | st.lists(turns, min_size=1, max_size=5).map(tuple)
)
signals = st.builds(
    Signals,
    st.none() | st.integers(1, 2**32 - 1),
    st.none() | st.floats(0, 2),
    st.integers(0, 2**16 - 1),
    st.booleans(),
    texts,
    texts,
)


@given(st.lists(st.builds(ChatRequest, prompts, signals), max_size=8), st.integers(1, 40))
def test_questions_come_out_as_they_went_in(sent: list[ChatRequest], piece: int) -> None:
    stream = b"".join(wire.ask(n, request) for n, request in enumerate(sent))
    questions = wire.Questions()
    found = [q for i in range(0, len(stream), piece) for q in questions.feed(stream[i : i + piece])]
    for question, request in zip(found, sent, strict=True):
        assert question.request.signals == request.signals._replace(model="", sender="")  # not for the scorer
        if request.tokenized:
            assert list(question.request.prompt) == list(request.prompt)
        else:
            assert question.request.prompt == request.prompt
    assert [q.number for q in found] == list(range(len(sent)))


def test_a_long_prompt_is_sent_as_its_ends() -> None:
    ids = list(range(20_000))
    (question,) = wire.Questions().feed(wire.ask(1, ChatRequest(ids)))
    half = wire.MAX_TOKENS_SENT // 2
    assert list(question.request.prompt) == ids[:half] + ids[-half:]


def test_why_is_asked_and_told_a_byte_at_a_time() -> None:
    request = ChatRequest("why", Signals(max_tokens=7))
    questions, asked = wire.Questions(), wire.ask(9, request, 1, 2, why=True) + wire.ask(10, request)
    found = [one for at in range(len(asked)) for one in questions.feed(asked[at : at + 1])]
    assert found == [wire.Why(wire.Question(9, request, 1, 2)), wire.Question(10, request)]
    told = wire.ReasonsTold(9, {"ranker": {"terms": [{"text": "\N{SNOWMAN}"}]}, "learned": None})
    answers, said = wire.Answers(), wire.GREETING + wire.reasons(told) + wire.answer(10, Prediction(1.0))
    heard = [one for at in range(len(said)) for one in answers.feed(said[at : at + 1])]
    assert heard == [told, wire.Told(10, Prediction(1.0), wire.UNPLACED)]
    for kind in (11, 12, 16, 255):
        with pytest.raises(ValueError, match=f"a frame of kind {kind}"):
            list(wire.Questions().feed(bytes((wire.VERSION, kind)) + b"\x30" + bytes(60)))
    with pytest.raises(ValueError, match="reasons of"):
        list(wire.Answers().feed(wire.GREETING + b"\x03" + bytes(8) + b"\xff\xff\xff\x7f"))


def test_what_is_not_our_protocol_is_refused() -> None:
    with pytest.raises(ValueError, match=f"allowed: version {wire.VERSION}"):
        list(wire.Questions().feed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        (Prediction(1.5, 20.0), Prediction(1.5, 20.0)),
        (Prediction(1.5), Prediction(1.5)),
        (None, None),
        (Prediction(math.nan, 2.0), None),
        (Prediction(math.inf, 2.0), None),
        (Prediction(1.0, math.inf), None),
        (Prediction(1.0, -1.0), None),
    ],
)
def test_only_finite_answers_are_taken(sent: Prediction | None, got: Prediction | None) -> None:
    frame = wire.answer(9, sent)
    answers = wire.Answers()
    assert list(answers.feed(wire.GREETING + frame[:5])) == []
    assert list(answers.feed(frame[5:])) == [wire.Told(9, got, wire.UNPLACED)]


def test_a_warning_is_counted_each_time_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    counters = PluginCounters()
    for _ in range(1000):
        counters.warn("hook_errors", "it broke: %s", "so")
    assert counters.counts["hook_errors"] == 1000
    assert len(caplog.records) == 1


def collected(folder: Path) -> dict[str, Any]:
    """Families by name, once an engine's numbers are among them."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        families = {family.name: family for family in Collector(folder).collect()}
        if families["sooner_requests"].samples:
            return families
        time.sleep(0.01)
    raise AssertionError("no engine's numbers came")


def test_what_an_engine_publishes_is_collected(tmp_path: Path) -> None:
    counters = PluginCounters()
    counters.add("requests", 3)
    publisher = Publisher(counters, lambda: {"waiting": 2.0}, tmp_path, 1)
    half = LockFile(tmp_path / "0.lock")
    (tmp_path / "0.json").write_text("half a fil")
    families = collected(tmp_path)
    assert families["sooner_requests"].samples[0].value == 3
    assert families["sooner_requests"].samples[0].labels == {"engine": "1"}
    assert families["sooner_waiting"].samples[0].value == 2.0
    assert {f"sooner_{name}" for name in COUNTERS} <= set(families)
    assert Collector(tmp_path).describe() == []
    half.release()
    publisher.close()
    assert [path.name for path in tmp_path.iterdir()] == ["0.json"]


DYING = """
import sys, time
from pathlib import Path
from sooner.ordering.held import HeldFolder
from sooner.vllm.counters import PluginCounters, Publisher
publisher = Publisher(PluginCounters(), dict, Path(sys.argv[1]), 0)
folder = HeldFolder("metrics-")
while not list(Path(sys.argv[1]).glob("[0-9]*.json")):
    time.sleep(0.01)
print(folder.path, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
def test_what_dead_engines_leave_is_not_counted_and_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended_by: signal.Signals
) -> None:
    metrics, temporary = tmp_path / "metrics", tmp_path / "temporary"
    metrics.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    engine = subprocess.Popen(
        [sys.executable, "-c", DYING, str(metrics)],
        env={**os.environ, "TMPDIR": str(temporary)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with engine:
        assert engine.stdout is not None
        left = Path(engine.stdout.readline().strip())
        assert len(collected(metrics)["sooner_requests"].samples) == 1
        sweep(temporary)
        assert left.is_dir()  # it lives
        engine.send_signal(ended_by)
    assert left.is_dir()
    assert list(metrics.glob("[0-9]*.json"))
    second = Publisher(PluginCounters(), dict, metrics, 0)
    assert len(collected(metrics)["sooner_requests"].samples) == 1  # of the second alone
    second.close()
    assert list(metrics.iterdir()) == []
    folder = HeldFolder()
    assert list(temporary.iterdir()) == [folder.path]
    folder.close()
    assert list(temporary.iterdir()) == []


def test_a_folder_without_a_lock_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sooner-of-somebody").mkdir()
    sweep(tmp_path)
    assert (tmp_path / "sooner-of-somebody").is_dir()


def test_a_directory_that_is_gone_hurts_nobody(tmp_path: Path) -> None:
    publisher = Publisher(PluginCounters(), dict, tmp_path / "gone", 0)
    publisher.close()
    assert list(Collector(tmp_path / "gone").collect())


def test_gauges_that_cannot_be_read_are_counted_and_the_next_ones_written(tmp_path: Path) -> None:
    counters = PluginCounters()
    broken = True

    def gauges() -> dict[str, float]:
        if broken:
            raise AttributeError("order")
        return {"waiting": 2.0}

    publisher = Publisher(counters, gauges, tmp_path, 1)
    deadline = time.monotonic() + 60
    while not counters.counts["hook_errors"] and time.monotonic() < deadline:
        time.sleep(0.05)
    broken = False
    families = collected(tmp_path)
    publisher.close()
    assert families["sooner_waiting"].samples[0].value == 2.0
    assert families["sooner_hook_errors"].samples[0].value >= 1


def test_the_plugin_registers_once(tmp_path: Path) -> None:
    code = (
        "import os; from prometheus_client import REGISTRY; from sooner.vllm import plugin\n"
        "plugin.register(); plugin.register()\n"
        "found = REGISTRY.get_sample_value('sooner_requests_total', {'engine': '0'})\n"
        "print(os.environ[plugin.VARIABLE], found)"
    )  # in a process of its own: a test that runs vLLM here may have registered one for good
    environment = {**os.environ, plugin.VARIABLE: str(tmp_path / "metrics")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.split() == [str(tmp_path / "metrics"), "None"]


class Inner:
    """The app behind the middleware: keeps what it was given."""

    def __init__(self) -> None:
        self.priority: str | None = None
        self.body = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        found = [value.decode() for name, value in scope.get("headers", []) if name == middleware.HEADER]
        assert len(found) <= 1
        self.priority = found[0] if found else None
        while True:
            message = await receive()
            self.body += message.get("body", b"")
            if not message.get("more_body", False):
                break


def call(body: bytes, *, header: bytes | None = None, path: str = "/v1/completions") -> Inner:
    """Send a body through the middleware in two pieces."""
    inner = Inner()
    pieces = [
        {"type": "http.request", "body": body[:7], "more_body": True},
        {"type": "http.request", "body": body[7:], "more_body": False},
    ]

    async def receive() -> Any:
        return pieces.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    async def run() -> None:
        ranked = middleware.Priority(inner)
        headers = [] if header is None else [(middleware.HEADER, header)]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        await ranked(scope, receive, send)
        await ranked({"type": "lifespan"}, receive, send)

    asyncio.run(run())
    return inner


@pytest.fixture
def no_ranker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOONER_VLLM_RANKER", "")


@pytest.mark.usefixtures("no_ranker")
def test_a_longer_request_gets_a_larger_priority_and_the_body_is_untouched() -> None:
    def sent(length: float) -> bytes:
        return json.dumps({"prompt": "a", "vllm_xargs": {"sooner_predicted_len": length}}).encode()

    short, long = call(sent(10)), call(sent(100_000))
    assert short.body == sent(10)
    gap = int(long.priority or 0) - int(short.priority or 0)
    assert gap == pytest.approx(0.02 * 99_990 * 1000, abs=5_000)  # beta [s/token] in ms, and the clock


@pytest.mark.usefixtures("no_ranker")
@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[1, 2]", b'{"prompt": 7}', b'{"messages": [3]}', b"\xff\xfe" * 9]
)
def test_whatever_comes_passes_with_its_arrivals_place(body: bytes) -> None:
    inner = call(body)
    assert inner.body == body
    assert int(inner.priority or 0) == pytest.approx(middleware.milliseconds(time.time()), abs=60_000)


@pytest.mark.usefixtures("no_ranker")
def test_a_clients_priority_is_obeyed_only_where_it_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(b"{}", header=b"-5").priority == "-5"
    assert call(b'{"priority": 4}').priority is None  # vLLM reads it from the body
    assert call(b"{}", header=b"abc").priority not in (None, "abc")
    assert call(b"{}", header=str(2**63).encode()).priority != str(2**63)
    monkeypatch.setenv("SOONER_VLLM_CLIENT_SCORES", "false")
    assert call(b"{}", header=b"-5").priority != "-5"
    assert call(b'{"priority": 4}').priority is not None


@pytest.mark.usefixtures("no_ranker")
def test_the_middleware_takes_aged_and_refuses_what_it_cannot_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOONER_VLLM_POLICY", "aged")
    monkeypatch.setenv("SOONER_VLLM_PARAMETERS", '{"beta": 2.0}')
    sent = json.dumps({"prompt": "a", "vllm_xargs": {"sooner_predicted_len": 100_000}}).encode()
    ahead = int(call(sent).priority or 0) - middleware.milliseconds(time.time())
    assert ahead == pytest.approx(2.0 * 100_000 * 1000, abs=60_000)
    monkeypatch.delenv("SOONER_VLLM_PARAMETERS")
    for name in ("edf", "hrrn"):
        monkeypatch.setenv("SOONER_VLLM_POLICY", name)
        with pytest.raises(ConfigError, match=f"{name!r}.*allowed: 'aged'"):
            middleware.Priority(Inner())


@pytest.mark.usefixtures("no_ranker")
def test_other_paths_are_left_alone() -> None:
    assert call(b"{}", path="/v1/models").priority is None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"prompt": "a"}, "a"),
        ({"prompt": ["a", "b"]}, "a"),
        ({"input": "a"}, "a"),
        ({"prompt": [1, 2]}, ""),
        ({}, ""),
    ],
)
def test_the_text_of_a_completion(body: dict[str, Any], text: str) -> None:
    assert (request.prompt if not (request := chat.of_body(body)).tokenized else "") == text


def test_the_text_of_a_chat_is_what_the_trainer_sees() -> None:
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "a tree?"}],
        },
    ]
    assert chat.of_body({"messages": messages}).conversation() == chat.read_messages(messages)
    assert chat.of_body({"input": messages}).conversation() == chat.read_messages(messages)


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_the_priority_is_monotone_and_bounded(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 0 <= middleware.milliseconds(low) <= middleware.milliseconds(high) <= 2**53
