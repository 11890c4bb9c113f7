"""Two orders on the same replies: what is told of both, and that changing places turns it round."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sooner import policies
from sooner.chat import ChatRequest, Context
from sooner.core import ConfigError, Prediction
from sooner.gateway.settings import GatewaySettings
from sooner.learning.shadow import Rivalry, ShadowWatch, is_better, rivalry
from sooner.learning.watch import NOTHING
from sooner.metrics import kendall_tau
from sooner.ordering import wire
from sooner.ordering.counters import Counters
from sooner.ordering.given import Given
from sooner.ordering.live import LiveLearner
from sooner.ordering.order import Order
from sooner.ordering.policy_shadow import PolicyShadow
from sooner.ordering.scoring import Scorer
from sooner.ordering.shadow import Answered, Promotion, Shadow
from sooner.ordering.tally import Tally


def three(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lengths, an order that knows something of them, and one that knows a little more."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(5.0, 1.0, n)).round()
    noise = rng.normal(0.0, 1.0, n)
    return lengths, np.log(lengths) + 1.5 * noise, np.log(lengths) + noise


def test_both_stand_as_each_would_alone_and_their_difference_is_surer_than_either() -> None:
    lengths, worse, better = three(300)
    now = rivalry(worse, better, lengths)
    capped = np.minimum(lengths, np.quantile(lengths, 0.95))
    assert now.acting.tau == pytest.approx(kendall_tau(worse, capped), abs=1e-6)
    assert now.shadow.tau == pytest.approx(kendall_tau(better, capped), abs=1e-6)
    assert now.better.tau == pytest.approx(now.shadow.tau - now.acting.tau)
    assert now.better.tau_error < 0.8 * min(now.acting.tau_error, now.shadow.tau_error)
    assert is_better(now)
    assert not is_better(rivalry(better, worse, lengths))
    assert not is_better(rivalry(better, better, lengths))
    assert not is_better(Rivalry())


def test_the_error_of_the_difference_is_what_it_varies_by() -> None:
    found = [rivalry(*(three(200, seed)[at] for at in (1, 2, 0))).better for seed in range(200)]
    assert np.std([now.tau for now in found]) == pytest.approx(found[0].tau_error, rel=0.35)


def test_only_whole_replies_of_requests_that_both_placed_are_compared() -> None:
    watch = ShadowWatch()
    for row, (length, acting, shadow) in enumerate(zip(*three(120), strict=True)):
        watch.placed(row, acting, shadow)
        if row < 100:
            watch.finished(row, length)
    watch.dropped(100)
    for row in (100, 500, 0):
        watch.finished(row, 1.0)
    assert watch.seen == watch.now.acting.n == 100
    before = watch.now
    watch.change_places()
    assert watch.now.acting == before.shadow
    assert watch.now.better.gain == -before.better.gain
    watch.placed(("a", 1), 0.0, 1.0)
    watch.placed(("b", 1), 0.0, 1.0)
    watch.left("a")
    watch.finished(("a", 1), 5.0)
    watch.finished(("b", 1), 5.0)
    assert watch.seen == 101


def test_a_promotion_is_kept_between_the_two_it_is_of(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "promoted"
    first = Promotion(path, {"ranker": "default", "shadow": "mine"})
    assert not first.on
    first.turn(True)
    assert Promotion(path, {"ranker": "default", "shadow": "mine"}).on
    assert not Promotion(path, {"ranker": "default", "shadow": "another"}).on
    first.turn(False)
    assert not Promotion(path, {"ranker": "default", "shadow": "mine"}).on
    path.write_text("[" * 100_000)
    assert not Promotion(path, {"ranker": "default", "shadow": "mine"}).on


def test_the_frames_of_a_shadow_come_whole_from_any_cut() -> None:
    told = wire.ShadowReport(True, 7, rivalry(*(three(50)[at] for at in (1, 2, 0))), 3)
    answers, data = wire.Answers(), wire.GREETING + 2 * wire.shadow_report(told)
    assert [heard for byte in data for heard in answers.feed(bytes([byte]))] == [told, told]
    questions = wire.Questions()
    wishes = [wire.Promote(True), wire.Promote(False)]
    sent = b"".join(map(wire.promote, wishes))
    assert [wish for byte in sent for wish in questions.feed(bytes([byte]))] == wishes


@pytest.mark.parametrize(
    "wrong", [{"ranker": "default", "shadow": "default"}, {"ranker": "", "shadow": "learner"},
              {"shadow": "mine", "learn": False}], ids=["itself", "itself alone", "without learning"],
)  # fmt: skip
def test_a_shadow_is_another_order_and_needs_what_is_learned(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"gateway.shadow=.*allowed"):
        GatewaySettings(**wrong)  # type: ignore[arg-type]


class Broken:
    """A ranker that fails on whatever it is asked."""

    def predictions(self, prompts: Sequence[str], *, context: Sequence[Context]) -> list[Prediction]:
        raise RuntimeError("on purpose")


def test_a_shadow_that_fails_is_counted_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOONER_CACHE", str(tmp_path))
    shadow = Shadow(Scorer(Broken(), None), LiveLearner(None), Promotion(None, {}))
    answered = [Answered(wire.Question(n, ChatRequest("hello")), "engine", 1.0) for n in range(5)]
    shadow.follow(answered)
    assert shadow.report.failures == 5
    monkeypatch.setattr(shadow.live, "answer", lambda *_: 1 / 0)
    monkeypatch.setattr(shadow.live, "ended", lambda *_, **__: 1 / 0)
    shadow.follow(answered[:1])
    shadow.ended("engine", wire.ReplyEnd(0, 5.0, wire.Ending.STOP, wire.UNPLACED))
    assert shadow.report.failures == 5 + 2 + 1


def test_what_a_shadow_fails_at_is_counted_over_restarts_and_that_it_is_not_there_once() -> None:
    counters = Counters(["shadow_failures"], logging.getLogger("sooner.test"))
    tally = Tally(counters, "mine")
    for failures in (2, 2, 5, 1):  # the last by a scorer that was started anew
        tally.heard(wire.ShadowReport(False, 0, Rivalry(), failures))
    assert counters.counts["shadow_failures"] == 6
    for _ in range(10):
        tally.heard(wire.LiveReport(wire.Scope.ALL, 0, NOTHING, 0, 0, True))
    assert counters.counts["shadow_failures"] == 7
    for _ in range(10):
        Tally(counters, "").heard(wire.LiveReport(wire.Scope.ALL, 0, NOTHING, 0, 0, True))
    assert counters.counts["shadow_failures"] == 7


def test_who_waits_is_drawn_held_against_who_starts_and_forgotten() -> None:
    counters = Counters(["shadow_failures", "policy_errors"], logging.getLogger("sooner.test"))
    fcfs, spjf = policies.get("fcfs"), policies.get("spjf")
    order = Order(fcfs, None, counters, weighs=True)
    watch = PolicyShadow(fcfs, spjf, Promotion(None, {}), counters)
    tickets = {}
    for n, length in enumerate((9.0, 1.0, 5.0)):
        tickets[str(n)] = order.arrive(str(n), float(n), 10, Given(length, length))
        watch.waits(str(n), tickets[str(n)], "here")
        watch.waits(str(n), tickets[str(n)], "here")  # twice is once
    watch.waits("elsewhere", tickets["0"], "there")
    for id in ("0", "1", "2", "elsewhere", "unknown"):
        watch.started(id, order, 3.0)
    for id, length in (("0", 9), ("1", 1), ("2", 5)):
        watch.finished(id, tickets[id], order, length)
        watch.left(id)
    assert watch.pairs.seen == 2  # of the first two who started
    assert watch.gauges()["shadow_policy_compared_pairs"] == 2.0
    assert watch.change_places() is spjf
