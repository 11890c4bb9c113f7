"""What each policy promises in its docstring, and that one formula serves scalars and columns alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sooner import policies
from sooner.core import ConfigError, Number, UnknownName, View
from sooner.policies import conformance
from sooner.policies.plain import scalar_key

times = st.floats(0, 1e6)
lengths = st.floats(0, 1e5)
views = st.builds(
    View,
    arrival_time=times,
    prompt_len=lengths,
    predicted_len=lengths,
    score=st.floats(-1e6, 1e6),
    attained=lengths,
    cached_len=lengths,
    deadline=times | st.just(math.inf),
    pressure=st.floats(0, 10),
    level=st.integers(0, 9).map(float),
    counter=lengths,
    work=st.floats(0, 1e3),
    usual_wait=st.floats(1e-3, 1e4),
    usual_work=st.floats(1e-9, 1e3),
)
NAMES = policies.names()
SLACK = 1e-6  # seconds: doubles near 1e6 s carry about 1e-10


def overtakes(name: str, late: View, early: View, now: float, **parameters: float) -> bool:
    chosen = policies.get(name, **parameters)
    return bool(chosen.key(late, now) < chosen.key(early, now))


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, check: conformance.Check) -> None:
    check(policies.get(name))


@pytest.mark.parametrize("name", NAMES)
@given(waiting=st.lists(views, min_size=1, max_size=8), wait=st.floats(0, 1e5))
def test_a_column_gives_what_each_scalar_gives(name: str, waiting: list[View], wait: float) -> None:
    now = max(float(view.arrival_time) for view in waiting) + wait
    chosen = policies.get(name)
    column = View(*(np.array(field, dtype=np.float64) for field in zip(*waiting, strict=True)))
    keys = np.broadcast_to(chosen.key(column, now), (len(waiting),))
    np.testing.assert_allclose(keys, [float(chosen.key(view, now)) for view in waiting], rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@given(view=views, wait=st.floats(0, 1e5))
def test_a_key_is_never_nan(name: str, view: View, wait: float) -> None:
    assert not np.isnan(policies.get(name).key(view, float(view.arrival_time) + wait))


@pytest.mark.parametrize("name", [name for name in NAMES if policies.get(name).timeless])
@given(view=views, now=times, later=times, counter=lengths)
def test_a_timeless_key_ignores_the_time_and_what_others_get(
    name: str, view: View, now: float, later: float, counter: float
) -> None:
    other = view._replace(counter=counter)
    assert policies.get(name).key(view, now) == policies.get(name).key(other, later)


@pytest.mark.parametrize("name", [name for name in NAMES if policies.get(name).static])
@given(view=views, attained=lengths, cached=lengths, counter=lengths)
def test_a_static_key_ignores_progress(
    name: str, view: View, attained: float, cached: float, counter: float
) -> None:
    moved = view._replace(attained=attained, cached_len=cached, counter=counter)
    assert policies.get(name).key(view, 0.0) == policies.get(name).key(moved, 0.0)


@pytest.mark.parametrize("name", [name for name in NAMES if policies.get(name).linear])
@given(view=views, wait=st.floats(0, 1e5), share=st.floats(0, 1))
def test_a_linear_key_is_a_straight_line_in_time(name: str, view: View, wait: float, share: float) -> None:
    start = float(view.arrival_time)
    first, last, between = (
        float(policies.get(name).key(view, start + wait * at)) for at in (0.0, 1.0, share)
    )
    assert between == pytest.approx(first + share * (last - first), rel=1e-6, abs=1e-6)


@given(views, views)
def test_fcfs_overtakes_nobody(late: View, early: View) -> None:
    assume(late.arrival_time >= early.arrival_time)
    assert not overtakes("fcfs", late, early, 1e7)


@given(views, views, st.floats(0, 2), st.floats(0, 2))
def test_aged_is_overtaken_only_within_its_patience(
    late: View, early: View, beta: float, follow: float
) -> None:
    patience = max(beta, follow * float(early.pressure))
    assume(late.arrival_time >= early.arrival_time + patience * early.predicted_len + SLACK)
    assert not overtakes("aged", late, early, 1e7, beta=beta, follow=follow)


@given(views, views, st.floats(0, 2))
def test_aged_with_one_patience_is_bounded_by_the_difference(late: View, early: View, beta: float) -> None:
    bound = beta * max(float(early.predicted_len) - float(late.predicted_len), 0.0)
    assume(late.arrival_time >= early.arrival_time + bound + SLACK)
    assert not overtakes("aged", late, early, 1e7, beta=beta, follow=0.0)


@given(views, views)
def test_aged_without_patience_is_fcfs(a: View, b: View) -> None:
    for view in (a, b):
        assert policies.get("aged", beta=0.0, follow=0.0).key(view, 0.0) == policies.get("fcfs").key(
            view, 0.0
        )


@given(views, views)
def test_aged_with_great_patience_is_shortest_first(a: View, b: View) -> None:
    assume(float(b.predicted_len) - float(a.predicted_len) > 1e-3)
    assert overtakes("aged", a, b, 1e7, beta=1e12, follow=0.0)


@given(views, views, st.sampled_from([0.0, 1e-3, 0.1, 10.0]))
def test_boost_is_overtaken_only_within_the_others_boost(late: View, early: View, gamma: float) -> None:
    late = late._replace(usual_wait=early.usual_wait, usual_work=early.usual_work)  # one host's
    rate = gamma or 1 / (2.5 * float(early.usual_wait))
    share = max(2.5 * float(late.work) / float(early.usual_work), 1e-6)
    boost = -math.log(-math.expm1(-share)) / rate
    assume(late.arrival_time >= early.arrival_time + boost + SLACK)
    assert not overtakes("boost", late, early, 1e7, gamma=gamma)
    assert boost <= 14 / rate


@given(views, views)
def test_boost_of_much_work_is_arrival_order(a: View, b: View) -> None:
    for view in (a, b):
        large = view._replace(work=20 * float(view.usual_work))
        assert float(policies.get("boost").key(large, 0.0)) == pytest.approx(
            float(view.arrival_time), abs=1e-6
        )


@given(views, views, st.floats(1e-4, 0.5), st.floats(1.01, 2.0))
def test_boost_after_long_waits_is_least_work_first(a: View, b: View, work: float, times: float) -> None:
    a = a._replace(usual_wait=1e10, usual_work=1.0, work=work)
    b = b._replace(usual_wait=1e10, usual_work=1.0, work=work * times)
    assert overtakes("boost", a, b, 0.0)


@given(views, views, st.floats(0, 1e5))
def test_hrrn_never_lets_a_newcomer_pass_whoever_has_waited(early: View, new: View, wait: float) -> None:
    assume(wait > 1e-3)
    now = float(early.arrival_time) + wait
    newcomer = new._replace(arrival_time=now)
    assert not overtakes("hrrn", newcomer, early, now)


@given(views, st.floats(0, 1e5), st.floats(1.0, 1e5))
def test_hrrn_only_rises_with_waiting(view: View, wait: float, more: float) -> None:
    chosen, now = policies.get("hrrn"), float(view.arrival_time) + wait
    assert chosen.key(view, now + more) < chosen.key(view, now)


@given(views, views)
def test_orders_by_one_field(a: View, b: View) -> None:
    for name, value in (
        ("ltr", lambda q: q.score),
        ("spjf", lambda q: q.predicted_len),
        ("sprpt", lambda q: q.predicted_len - q.attained),
        ("las", lambda q: q.attained),
        ("spw", lambda q: q.work),
        ("wspt", lambda q: q.prompt_len),
        ("edf", lambda q: q.deadline),
        ("vtc", lambda q: q.counter),
        ("spw", lambda q: q.work),
    ):
        assert overtakes(name, a, b, 0.0) == bool(value(a) < value(b))


@given(views, views)
def test_a_class_decides_before_the_deadline(a: View, b: View) -> None:
    if a.level != b.level:
        assert overtakes("edf_classes", a, b, 0.0) == bool(a.level < b.level)
    elif a.deadline == b.deadline or abs(float(a.deadline) - float(b.deadline)) > 1e-3:
        assert overtakes("edf_classes", a, b, 0.0) == bool(a.deadline < b.deadline)


@pytest.mark.parametrize(("fed", "base"), policies.ORACLE_FED.items())
@given(view=views)
def test_oracle_fed_policies_are_their_base(fed: str, base: str, view: View) -> None:
    assert policies.get(fed).oracle
    assert policies.get(fed).key(view, 0.0) == policies.get(base).key(view, 0.0)


def test_what_is_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'sprpt'"):
        policies.get("sprtp")
    with pytest.raises(UnknownName, match="did you mean 'beta'"):
        policies.get("aged", betta=1.0)
    for wrong in (-1.0, math.nan, math.inf, True, "1"):
        with pytest.raises(ConfigError, match="a finite number >= 0"):
            policies.get("aged", beta=wrong)  # type: ignore[arg-type]  # what a user may send


@pytest.mark.parametrize("name", NAMES)
@given(view=views, wait=st.floats(0, 1e5))
def test_without_numpy_the_key_is_the_same(name: str, view: View, wait: float) -> None:
    chosen = policies.get(name)
    now = float(view.arrival_time) + wait
    assert scalar_key(chosen)(view, now) == pytest.approx(float(chosen.key(view, now)), rel=1e-12)


def test_a_policy_that_needs_numpy_keeps_it() -> None:
    def clipped(q: View, now: float) -> Number:
        return np.clip(q.score, 0, 1)

    chosen = policies.Policy("clipped", clipped, {}, True, True, False)
    assert scalar_key(chosen) == chosen.key


@given(views, st.floats(0, 1e5), st.floats(1.0, 1e5))
def test_hrrn_on_prompts_never_lets_a_newcomer_pass(view: View, wait: float, length: float) -> None:
    now = float(view.arrival_time) + wait
    newcomer = view._replace(arrival_time=now, prompt_len=length)
    assert not overtakes("hrrn_prompt", newcomer, view, now)


@pytest.mark.parametrize("name", ["mlfq", "fastserve"])
@given(a=views, b=views)
def test_a_level_decides_before_arrival(name: str, a: View, b: View) -> None:
    base, growth, token, prompt = 0.01, 2.0, 0.02, 5e-5 if name == "fastserve" else 0.0

    def level(view: View) -> int:
        served, p = float(view.prompt_len) * prompt + float(view.attained) * token, 0
        while base * growth**p < served * (1 - 1e-9):
            p += 1
        return p

    if level(a) != level(b):
        assert overtakes(name, a, b, 0.0) == (level(a) < level(b))
    elif abs(float(a.arrival_time) - float(b.arrival_time)) > 1e-3:
        assert overtakes(name, a, b, 0.0) == (a.arrival_time < b.arrival_time)


@given(views, views)
def test_po_serves_the_announcers_first_then_the_shortest(a: View, b: View) -> None:
    said_a, said_b = a.attained >= 15, b.attained >= 15
    if said_a != said_b:
        assert overtakes("po", a, b, 0.0) == bool(said_b)
    elif not said_a:
        assert overtakes("po", a, b, 0.0) == bool(a.arrival_time < b.arrival_time)
    elif abs(float(a.predicted_len) - float(b.predicted_len)) > 1e-3:
        assert overtakes("po", a, b, 0.0) == bool(a.predicted_len < b.predicted_len)


@given(views, views, st.floats(1e-3, 10), st.floats(1e-4, 1))
def test_blind_boost_is_overtaken_only_within_one_tokens_boost(
    late: View, early: View, gamma: float, seconds: float
) -> None:
    one_token = -math.log(-math.expm1(-gamma * seconds)) / gamma
    assume(late.arrival_time >= early.arrival_time + one_token + SLACK)
    assert not overtakes("boost_blind", late, early, 1e7, gamma=gamma, seconds_per_token=seconds)


@given(st.floats(1, 1e4), st.floats(0, 5))
def test_gittins_is_the_least_work_per_chance_over_all_stops(predicted: float, progress: float) -> None:
    stop = np.concatenate([np.geomspace(1e-4, 1, 2000), np.linspace(1, 100, 2000)])
    tail = 1 / (1 + progress**2)
    work = (np.arctan(progress + stop) - np.arctan(progress)) / tail
    chance = (tail - 1 / (1 + (progress + stop) ** 2)) / tail
    found = policies.get("gittins").key(
        View(0.0, predicted_len=predicted, attained=progress * predicted), 0.0
    )
    assert found == pytest.approx(predicted * float((work / chance).min()), rel=0.01)
