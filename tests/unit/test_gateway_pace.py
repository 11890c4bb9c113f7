"""What the gateway knows of each engine: its pace, what its cache should hold, what requests cost there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sooner.chat import ChatRequest, Turn
from sooner.core import ConfigError
from sooner.gateway.admission.reading import Asked
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.engines.backend import Backend
from sooner.gateway.engines.kept_engines import KeptEngines
from sooner.gateway.engines.kinds import cache_tokens
from sooner.gateway.engines.paces import in_file, mixed, sensible
from sooner.gateway.engines.prefixes import SentBeginnings, beginnings
from sooner.gateway.engines.reply_pace import FEWEST, ReplyPace
from sooner.gateway.settings import BackendSettings, GatewaySettings, LimitSettings
from sooner.gateway.visit import Visit
from sooner.ordering.given import Given
from sooner.work import Pace, work

SLOW = Pace(iteration_s=0.1, prefill_token_s=1e-3, batch=4.0)
FAST = Pace(iteration_s=0.01, prefill_token_s=1e-5, batch=32.0)
ROUNDING = 1e-12
"""Seconds that no engine shows: the smallest floats keep few digits."""

paces = st.builds(
    Pace,
    iteration_s=st.floats(1e-4, 1.0),
    prefill_token_s=st.floats(0.0, 1e-2),
    decode_seq_s=st.floats(0.0, 1e-2),
    context_token_s=st.floats(0.0, 1e-5),
    batch=st.floats(1.0, 256.0),
)


def asked(prompt_len: int, text: str = "", model: str = "", reply: float = 100.0) -> Asked:
    request = ChatRequest(text)
    return Asked(model, True, request, prompt_len, beginnings(request, model), False, Given(reply, reply))


def dispatcher(*engines: dict[str, object], kept: str = "", **more: object) -> Dispatcher:
    """Return a dispatcher of engines at engine-0, engine-1 and so on; inside a running loop."""
    chosen = tuple(BackendSettings(url=f"http://engine-{n}", **one) for n, one in enumerate(engines))  # type: ignore[arg-type]  # by name
    whole = GatewaySettings(ranker="", learn=False, backends=chosen, **more)  # type: ignore[arg-type]  # by name
    return Dispatcher(whole, [Backend(one, whole.limits) for one in chosen], lambda: 0.0, KeptEngines(kept))


def learn(one: Dispatcher, backend: Backend, pace: Pace) -> None:
    """Let a backend stream replies at a pace."""
    for n in range(4 * FEWEST):
        prompt = 100 + 100 * (n % 8)
        one.replied(backend, prompt, pace.prefill_token_s * prompt + 0.001, pace.iteration_s, pace.batch)


def test_each_engine_has_a_pace_of_its_own_and_each_pool_is_priced_with_its_engines() -> None:
    async def test() -> None:
        one = dispatcher({"models": ("big",)}, {"models": ("small",)})
        for backend, pace in zip(one.backends, (SLOW, FAST), strict=True):
            learn(one, backend, pace)
        big = one.arrive("b", "t", 0, asked(1000, model="big"), 0.0)
        small = one.arrive("s", "t", 0, asked(1000, model="small"), 0.0)
        assert big.ticket.work == pytest.approx(float(work(SLOW, 1000.0, 0.0, 100.0)), rel=0.3)
        assert small.ticket.work == pytest.approx(float(work(FAST, 1000.0, 0.0, 100.0)), rel=0.3)
        assert big.pool.order is not small.pool.order
        for request in (big, small):
            one.leave(request)

    asyncio.run(test())


def test_routing_compares_seconds_not_tokens() -> None:
    async def test() -> None:
        one = dispatcher({}, {})
        slow, fast = one.backends
        learn(one, slow, SLOW)
        learn(one, fast, FAST)
        went = {"engine-0": 0, "engine-1": 0}
        requests: list[Visit] = []
        for n in range(12):
            request = one.arrive(str(n), "t", 0, asked(1000), 0.0)
            backend = await one.slot(request)
            went[backend.name] += 1
            requests.append(request)
        assert went["engine-1"] == 12  # a dozen there are done before one on the slow engine
        for request in requests:
            one.over(request, fast, 1.0)
            one.leave(request)
        assert fast.outstanding == 0.0

    asyncio.run(test())


def test_a_prompt_goes_where_its_beginning_went_and_its_work_is_the_rest() -> None:
    async def test() -> None:
        one = dispatcher({}, {})
        for backend in one.backends:
            learn(one, backend, FAST)
        text = "Once upon a time, in a land far away. " * 200
        first = one.arrive("1", "t", 0, asked(2000, text, reply=1.0), 0.0)
        there = await one.slot(first)
        other = one.arrive("2", "t", 0, asked(2000, "Quite another prompt. " * 300, reply=1.0), 0.0)
        assert (await one.slot(other)) is not there
        again = one.arrive("3", "t", 0, asked(2100, text + "And then?", reply=1.0), 0.0)
        assert again.ticket.cached_len > 0.7 * 2100
        assert again.ticket.work < 0.6 * first.ticket.work
        assert (await one.slot(again)) is there
        assert there.sent.part(again.asked.beginnings) == 1.0
        there._restarted()
        assert there.sent.part(again.asked.beginnings) == 0.0

    asyncio.run(test())


def test_who_waits_with_a_beginning_that_an_engine_gets_is_priced_anew() -> None:
    async def test() -> None:
        one = dispatcher({"max_in_flight": 1})
        learn(one, one.backends[0], SLOW)
        document = "All work and no play makes a long document. " * 300
        holder = one.arrive("0", "t", 0, asked(10, "short"), 0.0)
        backend = await one.slot(holder)
        tasks = {}
        for id, text in (("doc", document), ("again", document + "And who?"), ("other", "Another. " * 300)):
            request = one.arrive(id, "t", 0, asked(2000, text, reply=1.0), 0.0)
            tasks[id] = request, asyncio.create_task(one.slot(request))
            await asyncio.sleep(0)
        whole = tasks["again"][0].ticket.work
        assert whole == pytest.approx(tasks["other"][0].ticket.work)
        one.over(holder, backend, 1.0)
        one.leave(holder)
        await asyncio.sleep(0)
        assert tasks["doc"][1].done()  # it came first
        assert tasks["again"][0].ticket.work < 0.5 * whole
        assert tasks["other"][0].ticket.work == whole
        [pool] = one.pools
        assert pool.room.work == pytest.approx(sum(tasks[id][0].ticket.work for id in ("again", "other")))
        for request, task in tasks.values():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            one.leave(request)
        assert not one._alike

    asyncio.run(test())


def test_coefficients_of_a_file_are_the_engines(tmp_path: Path) -> None:
    file = tmp_path / "engine.toml"
    file.write_text('name = "mine"\niteration_s = 0.1\nprefill_token_s = 0.001\nmax_num_seqs = 8\n')

    async def test() -> None:
        one = dispatcher({"engine": str(file)})
        request = one.arrive("1", "t", 0, asked(1000), 0.0)
        expected = Pace(iteration_s=0.1, prefill_token_s=0.001, batch=8.0)
        assert request.ticket.work == pytest.approx(float(work(expected, 1000.0, 0.0, 100.0)))
        learn(one, one.backends[0], FAST)
        assert one.backends[0].pace.pace.prefill_token_s == 0.001  # given is given
        one.leave(request)

    asyncio.run(test())


NOTHING = "0.0\nprefill_token_s = 0.0\ndecode_seq_s = 0.0\ncontext_token_s = 0.0"


@pytest.mark.parametrize("wrong", ["nan", "-0.1", "inf", "'fast'", "1000.0", NOTHING])
def test_senseless_coefficients_mean_the_defaults_and_are_counted(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "engine.toml"
    file.write_text(f"iteration_s = {wrong}\n")

    async def test() -> None:
        one = dispatcher({"engine": str(file)})
        assert one.counters.counts["odd_paces"] == 1
        assert not one.backends[0].pace.known
        assert one.backends[0].pace.pace == Pace()

    asyncio.run(test())


@pytest.mark.parametrize("text", [None, "not = toml = at all", "name = 'x'"])
def test_a_file_that_is_no_engines_is_refused_by_name(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "engine.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"engine\.toml"):
        Backend(BackendSettings(url="http://a", engine=str(file)), LimitSettings())


def test_replies_that_make_no_sense_are_counted() -> None:
    async def test() -> None:
        one = dispatcher({})
        [backend] = one.backends
        one.replied(backend, 100, -1.0, 0.1, 1.0)
        one.replied(backend, 100, 1.0, float("nan"), 1.0)
        assert one.counters.counts["odd_paces"] == 2
        backend.pace.believe({"iteration_s": float("inf")})
        assert backend.pace.pace == Pace()

    asyncio.run(test())


@given(of=st.lists(paces, min_size=1, max_size=4))
def test_a_mixed_pace_lies_between_its_engines(of: list[Pace]) -> None:
    for prompt, reply in ((1000.0, 0.0), (0.0, 500.0), (300.0, 40.0)):
        each = [float(work(one, prompt, 0.0, reply)) for one in of]
        found = float(work(mixed(of), prompt, 0.0, reply))
        assert min(each) * 0.999 - ROUNDING <= found <= max(each) * 1.001 + ROUNDING


@given(name=st.sampled_from(["iteration_s", "prefill_token_s", "batch", "other"]), value=st.floats())
def test_what_is_sensible_has_a_positive_finite_work(name: str, value: float) -> None:
    pace = sensible({name: value})
    assert pace is None or 0.0 < float(work(pace, 500.0, 0.0, 150.0)) < 1e5


def test_a_files_batch_is_no_more_than_may_run(tmp_path: Path) -> None:
    file = tmp_path / "engine.toml"
    file.write_text("iteration_s = 0.1\nmax_num_seqs = 256\n")
    pace = in_file(str(file), most_at_once=4)
    assert pace is not None
    assert pace.batch == 4.0


@settings(max_examples=60, deadline=None)
@given(
    opening=st.text(max_size=3000), rest=st.text(min_size=1, max_size=300), other=st.text(max_size=300),
    tokens=st.booleans(),
)  # fmt: skip
def test_beginnings_are_equal_as_far_as_prompts_begin_alike(
    opening: str, rest: str, other: str, tokens: bool
) -> None:
    def request(text: str) -> ChatRequest:
        return ChatRequest([ord(letter) for letter in text]) if tokens and text else ChatRequest(text)

    sent = SentBeginnings()
    whole = opening * 3 + rest
    sent.sent(beginnings(request(whole), "m"), 100.0)
    assert sent.part(beginnings(request(whole), "m")) == 1.0
    assert sent.part(beginnings(request(whole), "another model")) == 0.0
    longer = beginnings(request(whole + other), "m")
    alike = len(whole) / len(whole + other)
    assert sent.part(longer) <= alike + 1e-9  # never more than is alike
    if len(whole) >= 256:
        assert sent.part(longer) >= alike / 1.26


def test_a_conversation_that_goes_on_begins_as_before() -> None:
    sent = SentBeginnings()
    turns = (Turn("system", "You answer shortly. " * 60), Turn("user", "Why is the sky blue? " * 30))
    sent.sent(beginnings(ChatRequest(turns), "m"), 500.0)
    more = (*turns, Turn("assistant", "It scatters. " * 10), Turn("user", "And red?"))
    assert sent.part(beginnings(ChatRequest(more), "m")) > 0.6


def test_what_was_sent_is_remembered_in_bounds_and_the_oldest_goes() -> None:
    sent = SentBeginnings(most=100)
    for n in range(1000):
        sent.sent(beginnings(ChatRequest(f"{n} " * 500), "m"), 500.0)
    assert len(sent._tokens) <= 100
    assert sent.part(beginnings(ChatRequest("999 " * 500), "m")) == 1.0
    assert sent.part(beginnings(ChatRequest("1 " * 500), "m")) == 0.0
    sent.capacity = 300.0
    sent.sent(beginnings(ChatRequest("new " * 500), "m"), 500.0)
    assert sent._held <= 300.0
    assert 0.0 < sent.part(beginnings(ChatRequest("new " * 500), "m")) < 1.0  # its end does not fit
    sent.forget()
    assert (len(sent._tokens), sent._held) == (0, 0.0)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ('vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0', 1600.0),
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="9",enable_prefix_caching="False"} 1', 0.0),
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0', None),
        ('vllm:cache_config_info{engine="0",block_size="16",num_gpu_blocks="5"} 1\n'
         'vllm:cache_config_info{engine="1",block_size="16",num_gpu_blocks="5"} 1', 160.0),
        ("sglang:max_total_num_tokens 4096.0", 4096.0),
        ("", None),
    ],
)  # fmt: skip
def test_an_engine_says_how_much_its_cache_holds(text: str, tokens: float | None) -> None:
    assert cache_tokens(text) == tokens


def test_reply_pace_given_learns_its_batch_only() -> None:
    pace = ReplyPace(SLOW)
    for _ in range(200):
        pace.add(1000, 0.02, 0.001, 16)
    assert pace.pace.batch == pytest.approx(16.0, rel=0.3)
    assert pace.pace.iteration_s == SLOW.iteration_s


def test_what_is_not_predicted_is_as_long_as_replies_were_so_that_no_work_is_nothing() -> None:
    async def test() -> None:
        one = dispatcher({"max_in_flight": 1})
        text = "The same prompt each time. " * 40

        def ask(id: str) -> Visit:
            nothing = asked(300, text)._replace(given=Given())
            return one.arrive(id, "t", 0, nothing, 0.0)

        first = ask("0")
        backend = await one.slot(first)
        one.finished(first, 2.0, 50)
        one.over(first, backend, 1.0)
        one.leave(first)
        holder = ask("1")
        await one.slot(holder)
        assert holder.ticket.cached_len == 300
        tasks = []
        for n in range(2, 6):
            tasks.append(asyncio.create_task(one.slot(ask(str(n)))))
            await asyncio.sleep(0)
        [pool] = one.pools
        assert pool.room.work == pytest.approx(4 * float(work(pool.order.pace, 300.0, 300.0, 50.0)))
        assert pool.seconds(pool.room.ahead("t", 0)) or 0.0 > 0.0
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(test())


def test_paces_and_waits_are_kept_over_a_restart(tmp_path: Path) -> None:
    kept = str(tmp_path / "deep" / "state.json")

    async def test() -> None:
        one = dispatcher({"models": ("big",)}, {"models": ("small",)}, kept=kept)
        learn(one, one.backends[0], SLOW)
        for n in range(30):
            request = one.arrive(str(n), "t", 0, asked(1000, model="big"), 0.0)
            one.leave(request)
        [pool] = one.pools
        one.keep()
        one.close()
        again = dispatcher({"models": ("small",)}, {}, kept=kept)  # other engines at the same names
        assert again.backends[0].pace.pace == one.backends[0].pace.pace
        assert not again.backends[1].pace.known
        again.close()
        third = dispatcher({"models": ("big",)}, {"models": ("small",)}, kept=kept)
        after = third.pool_for("big", "/v1/chat/completions").order
        assert after.usual.state() == pool.order.usual.state()
        assert after.pace == pool.order.pace
        assert third.pool_for("small", "/v1/chat/completions").order.usual.arrivals == 0

    asyncio.run(test())


ODD = '{"version": 1, "paces": {"engine-0": {"batch": -1}}, "pools": {"engine-0": {"usual": {"wait": 1}}}}'


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 2}', '{"version": 1, "paces": 3, "pools": []}', ODD,
     '{"version": 1, "paces": {"engine-0": 5}, "pools": {"engine-0": 7}}', "[" * 100_000],
)  # fmt: skip
def test_a_kept_file_that_makes_no_sense_hurts_nobody(tmp_path: Path, text: str) -> None:
    file = tmp_path / "state.json"
    file.write_text(text)

    async def test() -> None:
        one = dispatcher({}, kept=str(file))
        assert one.backends[0].pace.pace == Pace()
        assert one.counters.counts["odd_paces"] == ("engine-0" in text)
        request = one.arrive("1", "t", 0, asked(1000), 0.0)
        assert request.ticket.work == float(work(Pace(), 1000.0, 0.0, 100.0))
        one.leave(request)
        one.close()

    asyncio.run(test())
