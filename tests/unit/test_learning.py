"""The learner: groups, censored replies, drift, the switch; on streams whose truth is known."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sooner.chat import ChatRequest, of_messages
from sooner.core import ConfigError, Prediction
from sooner.learning import Drift, Identity, Learner, Salt, prequential
from sooner.learning.censoring import beyond
from sooner.learning.drift import threshold
from sooner.learning.hierarchy import MEMORY, MOST_GROUPS, Group, Groups
from sooner.learning.learner import STEP
from sooner.learning.watch import standing
from sooner.metrics import kendall_tau

SALT = Salt(bytes(range(32)))


def identity(request: ChatRequest) -> Identity:
    seen = request.conversation()
    return SALT.identity(request, seen.prompt, seen.context)


def test_groups_are_hashes_that_need_the_salt() -> None:
    body = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A tree?"}]}
    request = ChatRequest.of({**body, "model": "m", "user": "alice"})
    found = identity(request)
    assert all(found)
    assert found == identity(request)
    other = Salt.fresh()
    seen = request.conversation()
    assert set(found).isdisjoint(other.identity(request, seen.prompt, seen.context))
    assert identity(ChatRequest.of({**body, "model": "m", "user": "bob"})).template == found.template
    assert identity(ChatRequest("hello")).sender == 0


def test_asking_why_tells_the_groups_and_changes_nothing() -> None:
    def served(asks: bool) -> tuple[Learner, list[Prediction]]:
        learner, made = Learner(), []
        rng = np.random.default_rng(0)
        for n in range(300):
            who = Identity(model=1, sender=2 + n % 2, template=0, opening=0)
            if asks:
                learner.why(who)
                learner.why(Identity(9, 9, 9, 9))
            made.append(learner.predict(n, who))
            learner.finished(n, float(np.expm1(rng.normal(3.0 + 2.0 * (n % 2), 0.3))))
        return learner, made

    learner, made = served(asks=True)
    assert made == served(asks=False)[1]
    short, long = (learner.why(Identity(model=1, sender=sender)) for sender in (2, 3))
    assert [group.of for group in short] == [group.of for group in long] == ["all", "model", "sender"]
    assert [group.replies for group in short] == [300, 300, 150]
    assert short[-1].amount < 0.0 < long[-1].amount
    assert short[-1].usual_tokens < short[0].usual_tokens < long[-1].usual_tokens
    assert [group.of for group in learner.why(Identity(model=1, sender=77))] == ["all", "model"]


def test_a_conversation_keeps_its_opening() -> None:
    turns = [("user", "Tell me of whales"), ("assistant", "They sing."), ("user", "And of trees?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    assert identity(of_messages(messages)).opening == identity(of_messages(messages[:1])).opening


def test_the_salt_is_kept_and_a_wrong_one_refused(tmp_path: Path) -> None:
    first = Salt.kept(tmp_path / "salt")
    assert first.of("a") == Salt.kept(tmp_path / "salt").of("a")
    assert (tmp_path / "salt").stat().st_mode & 0o077 == 0
    (tmp_path / "salt").write_bytes(b"short")
    with pytest.raises(ConfigError, match="allowed: 32"):
        Salt.kept(tmp_path / "salt")


@given(st.floats(-3, 3), st.floats(-2, 2), st.floats(0.2, 2))
def test_beyond_a_bound_is_the_truncated_normal(bound: float, mean: float, sd: float) -> None:
    draws = np.random.default_rng(0).normal(mean, sd, 200_000)
    left = draws[draws >= bound]
    found = beyond(bound, mean, sd)
    assert found.mean >= max(bound, mean) - 1e-9
    if left.size > 5_000:
        assert found.mean == pytest.approx(left.mean(), abs=0.05 * sd)
        assert found.square == pytest.approx(((left - mean) ** 2).mean(), rel=0.1)


def test_a_new_group_starts_from_its_parent_and_a_large_one_stands_alone() -> None:
    group = Group()
    assert group.mean(5.0) == 5.0
    for _ in range(1000):
        group.add(7.0)
    assert group.mean(5.0) == pytest.approx(7.0, abs=0.03)


@given(st.permutations(range(6)))
def test_the_order_of_the_same_facts_matters_by_no_more_than_decay(order: list[int]) -> None:
    values = [1.0, 5.0, 2.0, 8.0, 3.0, 9.0]
    group, sorted_ = Group(), Group()
    for at in order:
        group.add(values[at])
    for value in values:
        sorted_.add(value)
    assert group.mean(4.0) == pytest.approx(sorted_.mean(4.0), abs=8.0 * 6 / MEMORY)


def test_a_reply_taken_in_while_it_runs_counts_once_and_ends_as_what_it_was() -> None:
    group, plain = Group(), Group()
    group.add(3.0)
    count = group.count
    plain.add(6.0)
    for value in (4.0, 5.0):
        group.add(value)
        plain.add(value)
    group.correct(3.0, count)
    assert (group.total, group.weight) == pytest.approx((plain.total, plain.weight))


def test_memory_is_bounded_under_a_million_senders() -> None:
    learner = Learner(most_groups=1000)
    for n in range(50_000):  # as many as show it; each is new
        learner.predict(n, Identity(model=1, sender=n + 1, template=n + 7))
        if n % 2:
            learner.finished(n, 10.0)
    assert len(learner.groups) == 1000
    assert learner.pending <= 100_000
    groups = Groups()
    for n in range(1, 1_000_001):
        groups.made(n, 0, 0.5)
    keys, values = groups.arrays()  # what is written stops growing where the groups do
    assert len(groups) == keys.shape[0] == MOST_GROUPS
    assert keys.tolist() == list(range(1_000_001 - MOST_GROUPS, 1_000_001))  # who was asked for last stays
    assert keys.nbytes + values.nbytes == 40 * MOST_GROUPS


def stream(rng: np.random.Generator, n: int, spread: float = 0.6) -> tuple[list[int], np.ndarray]:
    """Senders, each with a mean of its own, and their reply lengths."""
    means = rng.normal(5.0, 1.0, 12)
    who = rng.integers(0, 12, n)
    return who.tolist(), np.maximum(1.0, np.round(np.exp(means[who] + spread * rng.standard_normal(n))))


def test_it_learns_who_sends_and_starts_from_nothing() -> None:
    who, lengths = stream(np.random.default_rng(3), 3000)
    played = prequential.play(prequential.of_senders(who, None), lengths)
    means = np.array([np.log(lengths[np.array(who) == sender]).mean() for sender in who])
    assert played.alarms == 0
    assert played.off_share == 0.0
    assert kendall_tau(played.scores[500:], lengths[500:]) > kendall_tau(means[500:], lengths[500:]) - 0.03


def test_a_changed_model_raises_an_alarm_and_is_learned_anew() -> None:
    rng = np.random.default_rng(4)
    (first, before), (second, after) = stream(rng, 3000), stream(rng, 3000)
    learner, alarms = Learner(), []
    facts = prequential.of_senders([*first, *second], None)
    for row, length in enumerate([*before.tolist(), *after.tolist()]):
        learner.predict(row, facts.identities[row])
        if learner.finished(row, length).alarm:
            alarms.append(row)
    assert len(alarms) == 1
    assert 3000 <= alarms[0] < 3300
    played = prequential.play(facts, np.concatenate([before, after]))
    reached = kendall_tau(played.scores[4000:], after[1000:])
    assert kendall_tau(played.scores[3500:], after[500:]) > 0.95 * reached


@pytest.mark.parametrize("law", ["normal", "skewed", "heavy", "two humps"])
def test_false_alarms_are_rare(law: str) -> None:
    rng, n = np.random.default_rng(5), 100_000
    errors = {
        "normal": rng.standard_normal(n),
        "skewed": rng.exponential(1.0, n) - 1.0,
        "heavy": rng.standard_t(5, n),
        "two humps": np.where(rng.random(n) < 0.1, 3.0, -0.33) + 0.1 * rng.standard_normal(n),
    }[law]
    drift = Drift()
    for error, predicted in zip(errors.tolist(), rng.standard_normal(n).tolist(), strict=True):
        drift.add(error, predicted)
    assert drift.alarms <= n / 20_000


def test_bursts_of_which_the_short_replies_end_first_are_no_drift() -> None:
    """In the order of their ends errors go from below to above, in every burst; as they came, they do not."""
    n, burst, rng = 20_040, 120, np.random.default_rng(6)
    who = rng.integers(0, 2, n).tolist()
    lengths = np.exp(rng.normal(np.array([3.0, 4.0])[who], 0.8))
    facts, learner = prequential.of_senders(who, None), Learner()
    for start in range(0, n, burst):
        rows = range(start, start + burst)
        for row in rows:
            facts.predicted(learner, row)
        for row in sorted(rows, key=lambda row: lengths[row]):
            learner.finished(row, float(lengths[row]))
    assert learner.alarms <= n / 20_000


def test_the_threshold_is_siegmunds() -> None:
    slack, run = 0.25, 2_000.0
    limit, rng = threshold(run, slack), np.random.default_rng(0)
    lengths = []
    for _ in range(200):
        level = 0.0
        for n in itertools.count(1):
            level = max(0.0, level + rng.standard_normal() - slack)
            if level > limit:
                lengths.append(n)
                break
    assert np.mean(lengths) == pytest.approx(run, rel=0.25)


def test_the_switch_opens_on_shuffled_lengths_and_closes_again() -> None:
    rng = np.random.default_rng(6)
    who, lengths = stream(rng, 4000)
    lengths[1000:2500] = rng.permutation(lengths[1000:2500])
    learner, on = Learner(), []
    facts = prequential.of_senders(who, None)
    for row, length in enumerate(lengths.tolist()):
        said = learner.predict(row, facts.identities[row], Prediction(0.0, 100.0))
        on.append(learner.on(facts.identities[row]))
        assert math.isfinite(said.score)
        learner.finished(row, length)
    assert all(on[:1000])
    assert not any(on[1500:2500])
    assert all(on[3000:])


def test_gain_and_tau_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(7)
    lengths = rng.integers(1, 50, 80).astype(float)
    scores = lengths + rng.normal(0, 20, 80)
    now = standing(scores, lengths)
    assert now.tau == pytest.approx(kendall_tau(scores, np.minimum(lengths, np.quantile(lengths, 0.95))))
    assert 0 < now.gain < standing(lengths, lengths).gain
    assert standing(rng.standard_normal(80), lengths).gain < 3 * now.gain_error


@pytest.mark.parametrize("limited", [False, True], ids=["whole", "cut and aborted"])
def test_a_live_queue_teaches_what_all_the_truth_would(limited: bool) -> None:
    """Short replies end first and long ones are cut: the mean is within 3 % all the same, at any moment."""
    rng, n, slots = np.random.default_rng(8), 6000, 64
    lengths = np.exp(rng.normal(5.0, 0.8, n)).round() + 1
    limit = (
        np.where(rng.random(n) < 0.4, rng.integers(60, 400, n), 100_000) if limited else np.full(n, 100_000)
    )
    gone = (
        np.where(rng.random(n) < 0.1, rng.integers(20, 300, n), 100_000) if limited else np.full(n, 100_000)
    )
    end = np.minimum(np.minimum(lengths, limit), gone)
    live, told = Learner(), Learner()
    who = Identity(sender=1)
    running: dict[int, float] = {}
    for row in range(n):
        live.predict(row, who)
        told.predict(row, who)
        told.finished(row, float(lengths[row]))
        running[row] = 0.0
        while len(running) >= slots:
            for at in list(running):
                running[at] += 10.0
                if running[at] >= end[at]:
                    live.finished(at, float(end[at]), whole=end[at] == lengths[at])
                    del running[at]
                else:
                    live.running(at, running[at])
    found, wanted = live.root.mean(5.0), told.root.mean(5.0)
    assert math.exp(found) == pytest.approx(math.exp(wanted), rel=0.03)
    naive = np.log1p(end[: n - slots]).mean()
    assert not limited or abs(naive - wanted) > 3 * abs(found - wanted)
    assert live.alarms == 0


def test_a_limit_that_is_met_again_and_again_does_not_teach_that_replies_are_short() -> None:
    """Cut at 20 tokens a reply says "at least 20", by a law that knows nothing of the limit."""
    rng, learner, who = np.random.default_rng(9), Learner(), Identity(sender=1)
    for row in range(500):
        learner.predict(row, who)
        learner.finished(row, round(60 * float(np.exp(0.2 * rng.standard_normal()))))
    before = learner.root.mean(5.0)
    for row in range(500, 700):
        learner.predict(row, who, limit=20)
        learner.finished(row, 20.0, whole=False)
    assert learner.root.mean(5.0) == pytest.approx(before, abs=0.05)


@given(st.permutations(range(6)))
def test_the_order_of_the_same_facts_of_several_groups_matters_by_no_more_than_decay(
    order: list[int],
) -> None:
    """Requests of three senders and two templates under way at once: whoever ends first, all is learned."""
    asked = [Identity(1, 1 + at % 3, 1 + at % 2, 1 + at) for at in range(6)]
    lengths = [5.0, 900.0, 40.0, 300.0, 12.0, 2000.0]

    def taught(ends: list[int]) -> Learner:
        learner = Learner()
        for at, one in enumerate(asked):
            learner.predict(at, one)
        for at in ends:
            learner.finished(at, lengths[at])
        return learner

    found, plain = taught(order), taught(list(range(6)))
    for one in {*asked, Identity(1, 1, 2), Identity(1, 4), Identity(2)}:
        told, wanted = (learner.predict("new", one).score for learner in (found, plain))
        assert told == pytest.approx(wanted, abs=8.0 * 6 / MEMORY + STEP)  # both are on a grid
