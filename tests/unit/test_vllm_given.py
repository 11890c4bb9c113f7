"""Client values: what is taken, what is ignored, and that nothing raises."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given as cases
from hypothesis import strategies as st

from sooner.ordering.given import LIMITS, NOTHING, Given, read


def test_what_is_taken() -> None:
    sent = {"sooner_score": 3, "sooner_predicted_len": 20, "sooner_deadline_ms": 5.5, "sooner_level": 2}
    assert read(sent) == (3.0, 20.0, 5.5, 2.0, 0)


def test_a_length_alone_is_also_the_score() -> None:
    assert read({"sooner_predicted_len": 20}) == Given(20.0, 20.0)


def test_a_priority_is_the_score_where_none_was_sent() -> None:
    assert read(None, -4) == Given(-4.0)
    assert read({"sooner_score": 1.5}, -4) == Given(1.5)


def test_nothing_said_is_nothing() -> None:
    assert read(None) is NOTHING
    assert read({"other": "x"}) == NOTHING


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize(
    "value", ["3", True, None, math.nan, math.inf, -math.inf, [1], {}, 10**400, 1e300, -1e300, b"1"]
)
def test_what_is_malformed_is_ignored_and_counted(name: str, value: Any) -> None:
    assert read({name: value}) == Given(malformed=1)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@cases(st.one_of(json, st.dictionaries(st.sampled_from([*LIMITS, "x"]), json)), json)
def test_anything_may_be_sent(extra: Any, priority: Any) -> None:
    said = read(extra, priority)
    for value in said[:4]:
        assert value is None or math.isfinite(value)
