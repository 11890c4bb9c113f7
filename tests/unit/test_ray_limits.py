"""What a configuration of Ray becomes, without Ray: limits under which requests wait in the engine."""

from __future__ import annotations

from typing import Any

import pytest

from sooner.core import ConfigError, UnknownName
from sooner.ray.limits import OPEN, limits, waiting
from sooner.ray.serving import SCHEDULER, with_scheduler


@pytest.mark.parametrize(
    ("given", "expected", "said"),
    [
        ({}, {"max_ongoing_requests": OPEN}, ()),
        ({"max_ongoing_requests": 64}, {"max_ongoing_requests": 64}, ()),
        ({"max_ongoing_requests": 5}, {"max_ongoing_requests": 64}, ("wait in Ray's router",)),
        (
            {"autoscaling_config": {"max_replicas": 4}},
            {
                "max_ongoing_requests": OPEN,
                "autoscaling_config": {"max_replicas": 4, "target_ongoing_requests": 16},
            },
            (),
        ),
        (
            {"num_replicas": "auto"},
            {
                "num_replicas": "auto",
                "max_ongoing_requests": OPEN,
                "autoscaling_config": {"target_ongoing_requests": 16},
            },
            (),
        ),
        (
            {"autoscaling_config": {"target_ongoing_requests": 100}},
            {"max_ongoing_requests": OPEN, "autoscaling_config": {"target_ongoing_requests": 100}},
            ("lets 84 requests wait",),
        ),
        (
            {"max_ongoing_requests": 80, "autoscaling_config": {"target_ongoing_requests": 100}},
            {"max_ongoing_requests": 80, "autoscaling_config": {"target_ongoing_requests": 100}},
            ("no backlog would ever",),
        ),
    ],
)
def test_limits_let_requests_wait_where_there_is_an_order(
    given: dict[str, Any], expected: dict[str, Any], said: tuple[str, ...]
) -> None:
    before = repr(given)
    found = limits(given, 16)
    assert found.options == expected
    assert len(found.notes) == len(said)
    assert all(words in note for words, note in zip(said, found.notes, strict=True))
    assert repr(given) == before


def test_a_limit_that_is_none_is_refused() -> None:
    for wrong in (0, -1, 2.5, "many", True):
        with pytest.raises(ConfigError, match=r"max_ongoing_requests=.*allowed: a whole number >= 64"):
            limits({"max_ongoing_requests": wrong}, 16)


def test_the_engine_gets_our_scheduler_and_its_settings() -> None:
    given = {"max_num_seqs": 8, "additional_config": {"other": 1, "sooner": {"policy": "aged", "trace": "t"}}}
    made = with_scheduler(given, {"policy": "ltr"})
    own = made["additional_config"].pop("sooner")
    assert made == {"max_num_seqs": 8, "scheduler_cls": SCHEDULER, "additional_config": {"other": 1}}
    assert (own["policy"], own["trace"]) == ("ltr", "t")
    assert own["scorer_socket"].endswith(".sock")
    assert given["additional_config"]["sooner"] == {"policy": "aged", "trace": "t"}
    with pytest.raises(ConfigError, match="scheduler_cls='mine'"):
        with_scheduler({"scheduler_cls": "mine"}, {})
    with pytest.raises(UnknownName, match="polcy"):
        with_scheduler({}, {"polcy": "ltr"})


@pytest.mark.parametrize(
    ("given", "expected", "said"),
    [
        ({}, {"max_pending_requests": OPEN}, ()),
        ({"max_pending_requests": 64}, {}, ()),
        ({"max_pending_requests": 18}, {"max_pending_requests": 64}, ("holds back what an engine",)),
        (
            {"max_pending_requests": 99, "batch_size": 5},
            {"max_concurrent_batches": 13},
            ("nothing to order; it is 13 now",),
        ),
    ],
)
def test_rows_of_ray_data_wait_in_the_engine(
    given: dict[str, Any], expected: dict[str, Any], said: tuple[str, ...]
) -> None:
    found = waiting({"batch_size": 32, "max_concurrent_batches": 8, **given}, 16)
    assert found.options == expected
    assert len(found.notes) == len(said)
    assert all(words in note for words, note in zip(said, found.notes, strict=True))


def test_a_number_of_pending_rows_that_is_none_is_refused() -> None:
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ConfigError, match=r"max_pending_requests=.*allowed: a whole number >= 64"):
            waiting({"batch_size": 32, "max_concurrent_batches": 8, "max_pending_requests": wrong}, 16)
