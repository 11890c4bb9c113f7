"""The learner: what senders and templates say of the next reply, with what a text ranker says of it.

Everything is in log lengths, which are near normal in every trace we have: a running normal score would
make yesterday's facts depend on today's scale. No clock, no thread, no file: a host tells it what comes
and what ends.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict, deque
from typing import NamedTuple

from sooner.core import Prediction
from sooner.learning.censoring import beyond
from sooner.learning.drift import Drift
from sooner.learning.hierarchy import MOST_GROUPS, Group, Groups, GroupSays
from sooner.learning.identity import Identity
from sooner.learning.last_layer import LastLayer, Vector
from sooner.learning.regression import Regression
from sooner.learning.switch import Switch
from sooner.learning.watch import Watch

logger = logging.getLogger("sooner.learning")

STEP = 0.05
"""Grid of what groups say, in log lengths: two means 5 % apart are one, and arrival decides."""

KEPT = 0.02
"""Share of what was learned that outlives a drift."""

_USUAL = math.log1p(200.0)  # before the first reply
_SPREAD = 1.0  # of log lengths, before it is known
_PRIOR = (0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.7)
"""Of the constant; of model, sender, template, opening beyond their parents; of shared template; of text."""
_BELIEF = 30.0  # requests' worth
_SETTLED = 200  # replies of a model before its errors count, and after an alarm
_FAR = 0.3  # log lengths
_KNOWN = 100  # replies of a sender that are remembered before its errors count
_MOST_PENDING = 100_000
_LATE = 4  # times as many as are under way have come since: drift waits no more for such a reply
_MOST_MODELS = 256
_MOST_WATCHED = 64  # senders
_MODEL, _SENDER = 1, 2
_MEMORY = 1000.0
_MIX, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


class Served:
    """What is known of one served model: whether it drifts, how its order stands, whether it is on."""

    def __init__(self) -> None:
        self.epoch = 0
        self.settled = 0  # finished requests since the last alarm
        self.drift = Drift()
        self.watch = Watch()
        self.switch = Switch()
        self.neutral = _USUAL

    def usual(self, mean: float) -> None:
        """Take in the mean of its replies; what all are given while off follows only what is far from it."""
        if abs(mean - self.neutral) > _FAR:
            self.neutral = mean


class Pending:
    """A request under way: the groups it is of, what was predicted, and what it was last taken in as."""

    __slots__ = (
        "counts", "error", "groups", "known", "level", "mean", "model", "over", "raw", "row", "sender",
        "shift", "taken", "text", "word",
    )  # fmt: skip

    def __init__(
        self, model: Served, groups: list[Group], known: bool, level: float, row: list[float]
    ) -> None:
        self.model = model
        self.groups = groups
        self.known = known  # its model and its sender have a past
        self.level = level  # of all, when it came
        self.row = row
        self.raw = level
        self.mean = level  # the same, were there no limit
        self.text = 0.0  # what of `raw` is the text's
        self.shift = 0.0  # what of that the last layer adds
        self.word: float | None = None  # what a ranker said, in its own scale
        self.sender = 0
        self.taken: float | None = None
        self.counts: list[int] = []
        self.over = False
        self.error: float | None = None  # in deviations, once it is over and until drift was looked for in it


class Learned(NamedTuple):
    """What one finished request changed: whether it raised an alarm, and whether the switch moved."""

    alarm: bool = False
    moved: bool = False


class Learner:
    """Predicts log lengths from groups and a text ranker's word, and learns from every reply."""

    def __init__(self, most_groups: int = MOST_GROUPS) -> None:
        self.groups = Groups(most_groups)
        self.root = Group(long=True)
        self.regression = Regression(_PRIOR, _BELIEF)
        self.layer = LastLayer()
        self.variance = _SPREAD**2
        self.text_mean = _USUAL  # of finished requests
        self.senders: OrderedDict[int, Watch] = OrderedDict()  # of those heard of last
        self.watch = Watch()  # of all models together
        self.switch = Switch()
        self.seen = 0  # finished requests
        self._texts = 0
        self._models: OrderedDict[int, Served] = OrderedDict()
        self._pending: OrderedDict[object, Pending] = OrderedDict()
        self._came: deque[Pending] = deque()  # in order of arrival, from the first that is not over

    @property
    def models(self) -> dict[int, Served]:
        """What is known of each served model, by the hash of its name."""
        return dict(self._models)

    @property
    def alarms(self) -> int:
        """Drifts found so far."""
        return sum(model.drift.alarms for model in self._models.values())

    def facts(self) -> list[float]:
        """Return the numbers that are kept of all requests together."""
        return [self.variance, self.text_mean, self.seen, self._texts]

    def take_facts(self, kept: list[float]) -> None:
        """Take over what `facts` gave."""
        self.variance, self.text_mean, seen, texts = kept
        self.seen, self._texts = int(seen), int(texts)

    def on(self, identity: Identity) -> bool:
        """Return whether the learned order of a request's model is switched on."""
        model = self._models.get(identity.model)
        return self.switch.on and (model is None or model.switch.on)

    @property
    def pending(self) -> int:
        """Requests under way."""
        return len(self._pending)

    def predict(
        self,
        key: object,
        identity: Identity,
        text: Prediction | None = None,
        *,
        limit: int | None = None,
        vector: Vector | None = None,
    ) -> Prediction:
        """Return what is expected of request `key`, and remember it until `finished`.

        `text` is a ranker's word and `vector` what it was made from; `limit` is the client's [tokens].
        """
        model = self.served(identity.model)
        pending = self._placed(model, identity)
        *weights, trust = self.regression.weights
        said = self._said(pending, text)
        part = pending.level + sum([w * x for w, x in zip(weights, pending.row, strict=True)])
        pending.row.append(said)
        pending.shift = self.layer.said(key, text, vector)
        pending.text = trust * said + pending.shift
        pending.raw = round(part / STEP) * STEP + pending.text
        sure = 1.0
        if text is not None:  # who has learned little says what the ranker says, and in its order
            sure = self.seen / (self.seen + _BELIEF)
            base = pending.level if text.predicted_len is None else self.text_mean
            pending.raw = sure * pending.raw + (1.0 - sure) * (base + said)
        pending.mean = pending.raw
        if limit is not None:
            pending.raw = min(pending.raw, math.log1p(limit))
        pending.sender = identity.sender
        self._pending[key] = pending
        self._came.append(pending)
        if len(self._pending) > _MOST_PENDING:
            self._pending.popitem(last=False)
        if not (self.switch.on and model.switch.on):
            return Prediction(model.neutral, self._tokens(model.neutral, self.variance))
        if text is not None and text.predicted_len is None and self.seen < _BELIEF:
            return Prediction(pending.raw)
        length = self._tokens(pending.raw, sure * self.variance)
        return Prediction(pending.raw, length if limit is None else min(length, limit))

    def why(self, identity: Identity) -> list[GroupSays]:
        """Return what each group of a request says of it; nothing is remembered, and none is made."""
        model = self.served(identity.model)
        mean, found = self.root.mean(_USUAL), []
        found.append(GroupSays("all", self.root.count, self._tokens(mean, self.variance), 0.0))
        key, weights = 0, self.regression.weights
        for tier, (of, part) in enumerate(identity._asdict().items(), start=1):
            if not part:
                continue
            key = _mixed(key, part, tier)
            group = self.groups.get(key, model.epoch, KEPT)
            if group is None:
                continue
            parent, mean = mean, group.mean(mean)
            said = weights[tier] * (mean - parent)
            found.append(GroupSays(of, group.count, self._tokens(mean, self.variance), said))
        return found

    def running(self, key: object, length: float) -> None:
        """Say that a reply is still going on at `length` tokens."""
        pending = self._pending.get(key)
        if pending is not None:
            self._take(pending, beyond(math.log1p(length), pending.mean, math.sqrt(self.variance)).mean)

    def finished(self, key: object, length: float, *, whole: bool = True) -> Learned:
        """Take in a reply of `length` tokens; not `whole` where it was cut at a limit or aborted."""
        pending = self._pending.pop(key, None)
        if pending is None:
            return Learned()
        sd = math.sqrt(self.variance)
        value = math.log1p(length)
        square = (value - pending.mean) ** 2
        if whole and pending.model.settled < _SETTLED:  # it was predicted from little: what is known by now?
            square = min(square, (value - pending.text - _mean(pending.groups)) ** 2)
        elif not whole:
            value, square = beyond(value, pending.mean, sd)
        self._take(pending, value)
        self.regression.add(pending.row, value - pending.level - pending.shift)
        self.layer.ended(key, value - pending.mean + pending.shift)
        if pending.word is not None:
            self._texts += 1
            self.text_mean += (pending.word - self.text_mean) / min(self._texts, _MEMORY)
        self.seen += 1
        self.variance += (square - self.variance) / min(self.seen + _BELIEF, _MEMORY)
        return self._judged(pending, (value - pending.mean) / sd, math.expm1(min(value, 30.0)))

    def knows(self, key: object) -> bool:
        """Return whether a request is under way."""
        return key in self._pending

    def under_way(self) -> list[object]:
        """Return the requests under way."""
        return list(self._pending)

    def dropped(self, key: object) -> None:
        """Say that a request ended before anything was known of its reply."""
        pending = self._pending.pop(key, None)
        if pending is not None:
            pending.over = True
        self.layer.ended(key, None)

    def served(self, name: int) -> Served:
        """Return what is known of a model, made where it is not known."""
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = Served()
            if len(self._models) > _MOST_MODELS:
                self._models.popitem(last=False)
        return model

    def _placed(self, model: Served, identity: Identity) -> Pending:
        """Return the request at its groups, with how far each of them is from its parent."""
        level = mean = of_model = self.root.mean(_USUAL)
        groups, row = [self.root], [1.0]
        key, known = 0, model.settled > _SETTLED
        for tier, part in enumerate(identity, start=1):
            if not part:
                row.append(0.0)
                continue
            key = _mixed(key, part, tier)
            group = self.groups.made(key, model.epoch, KEPT)
            groups.append(group)
            parent, mean = mean, group.mean(mean)
            row.append(mean - parent)
            if tier == _MODEL:
                of_model = mean
            known = known and (tier > _SENDER or group.weight >= _KNOWN)
        if identity.sender and identity.template:  # who shares a template shares more than a model
            group = self.groups.made(_mixed(identity.model, identity.template, 0), model.epoch, KEPT)
            groups.append(group)
            row.append(group.mean(of_model) - of_model)
        else:
            row.append(0.0)
        model.usual(of_model)
        return Pending(model, groups, known, level, row)

    def _said(self, pending: Pending, text: Prediction | None) -> float:
        """Return a ranker's word as a distance from its own mean, in log lengths.

        A score without a length has no unit: it is bent as a logarithm would, and the regression finds its
        scale.
        """
        if text is None:
            return 0.0
        known = text.predicted_len
        pending.word = math.asinh(text.score) if known is None else math.log1p(max(known, 0.0))
        if not self._texts:
            self._texts, self.text_mean = 1, pending.word
        return pending.word - self.text_mean

    def _take(self, pending: Pending, value: float) -> None:
        """Take a reply into its groups, or correct what it was taken in as."""
        value -= pending.text
        if pending.taken is None:
            for group in pending.groups:
                group.add(value)
            pending.counts = [group.count for group in pending.groups]
        else:
            for group, count in zip(pending.groups, pending.counts, strict=True):
                group.correct(value - pending.taken, count)
        pending.taken = value

    def _judged(self, pending: Pending, error: float, length: float) -> Learned:
        """Hold what was predicted against what came."""
        model = pending.model
        model.settled += 1
        moved = model.watch.add(pending.raw, length) and model.switch.see(model.watch.now)
        moved = self._switched(pending.raw, length) or moved
        if pending.sender:
            self._of_sender(pending.sender).note(pending.raw, length)
        pending.over, pending.error = True, error
        alarm = self._drifted()
        if moved:
            now = model.watch.now if model.watch.now.n else self.watch.now
            if self.switch.on and model.switch.on:
                logger.warning("the learned order is back: %s", now.told)
            else:
                logger.warning("the learned order is off, requests go by arrival: %s", now.told)
        return Learned(alarm, moved)

    def _drifted(self) -> bool:
        """Look for drift in the replies that are over, in order of arrival; return whether there is an alarm.

        In the order in which they end it would always be found: of those under way, short ones end first.
        """
        alarm = False
        most = _LATE * (len(self._pending) + _KNOWN)
        while self._came and (self._came[0].over or len(self._came) > most):
            pending = self._came.popleft()
            model, error = pending.model, pending.error
            if error is None or not pending.known or model.settled <= _SETTLED:
                continue
            if model.drift.add(error, pending.raw - pending.level):
                alarm = True
                self._begin_anew(model)
        return alarm

    def _begin_anew(self, model: Served) -> None:
        """Forget most of what was learned of a model's replies."""
        logger.warning("replies are not as they were (alarm %d): the order is learned anew", self.alarms)
        model.epoch += 1
        model.settled = 0
        model.watch.clear()
        self.watch.clear()
        self.regression.forget(KEPT)
        self.layer.forget()

    def _of_sender(self, sender: int) -> Watch:
        watch = self.senders.get(sender)
        if watch is None:
            watch = self.senders[sender] = Watch()
            if len(self.senders) > _MOST_WATCHED:
                self.senders.popitem(last=False)
        self.senders.move_to_end(sender)
        return watch

    def _switched(self, score: float, length: float) -> bool:
        """Hold the order of all against what came; when it comes back, each model begins anew."""
        if not (self.watch.add(score, length) and self.switch.see(self.watch.now)):
            return False
        if self.switch.on:
            for model in self._models.values():
                model.watch.clear()
                model.switch.on = True
        return True

    def _tokens(self, level: float, variance: float) -> float:
        return max(1.0, math.expm1(min(level + variance / 2.0, 20.0)))


def _mean(groups: list[Group]) -> float:
    """Return what a request's groups say now, from the root down."""
    mean = _USUAL
    for group in groups:
        mean = group.mean(mean)
    return mean


def _mixed(above: int, part: int, tier: int) -> int:
    """Return the key of a group in a group."""
    return (((above ^ tier) * _MIX) ^ part) & _MASK
