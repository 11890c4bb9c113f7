"""What the scheduler asks the scorer, and tells it of how replies ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from sooner import rankers
from sooner.chat import ChatRequest
from sooner.core import Prediction
from sooner.ordering.client import ScorerClient
from sooner.ordering.counters import Counters
from sooner.ordering.standings import gauges, shadow_gauges
from sooner.ordering.wire import Ending
from sooner.policies import Policy
from sooner.vllm import compat
from sooner.vllm.settings import VllmSettings
from sooner.vllm.shadow import RankerNews

logger = logging.getLogger("vllm.plugins.sooner")

_RUNNING_EVERY = 2.0  # seconds between two words on replies that still run
_RUNNING_FROM = 64  # tokens


class EngineScores:
    """The scorer's client of one engine. Raises RankerFileError at start; after that it never waits."""

    def __init__(
        self,
        settings: VllmSettings,
        config: Any,
        deliver: Callable[[str, Prediction], None],
        counters: Counters,
        news: RankerNews | None = None,
    ) -> None:
        """`news` is told of how a shadow stands, where the settings name one."""
        try:
            self._unsaid = compat.filled(config)
        except Exception as error:  # a version that keeps its defaults elsewhere
            counters.warn("hook_errors", "what vLLM fills in is not known: %r", error)
            self._unsaid = compat.Filled(0)
        tokenizer = compat.tokenizer_name(config)
        self._model = str(config.model_config.model)
        self._swept = 0.0
        self._news = news
        shadow = settings.shadow
        if shadow and not tokenizer:
            counters.warn("shadow_failures", "nothing is compared: without a tokenizer no prompt can be read")
            shadow = ""
        learned = settings.learned_path(config)
        self.client = ScorerClient(
            settings.scorer_socket, settings.ranker if tokenizer else "", tokenizer, deliver, counters,
            settings.scorer_timeout, learned=None if learned is None else str(learned), shadow=shadow,
        )  # fmt: skip

    def ask(self, request: Any) -> None:
        """Ask for a request's score, where its prompt is tokens."""
        prompt = compat.prompt_tokens(request)
        if prompt is not None and request.pooling_params is None:
            said = compat.signals(request, self._unsaid, *compat.groups(request, self._model))
            self.client.submit(request.request_id, ChatRequest(prompt, said))

    def ended(self, request: Any) -> tuple[str, str]:
        """Tell how long a reply is and how it ended; return the hashes of its sender and template."""
        groups = self.client.groups(request.request_id)
        self.client.ended(request.request_id, request.num_output_tokens, compat.ending(request))
        return groups

    def sweep(self, now: float, running: Iterable[Any], expected: Callable[[str], float]) -> None:
        """Every few seconds, tell of the long replies that still run: the others are known by then."""
        if now - self._swept < _RUNNING_EVERY:
            return
        self._swept = now
        if self._news is not None:
            self._news.tell(self.client.shadow)
        for request in running:
            if request.num_output_tokens >= max(_RUNNING_FROM, expected(request.request_id)):
                self.client.ended(request.request_id, request.num_output_tokens, Ending.RUNNING)

    def gauges(self) -> dict[str, float]:
        """Return how the learned order stands, and its shadow."""
        return {**gauges(self.client.reports), **shadow_gauges(self.client.shadow)}

    def close(self) -> None:
        """Stop the scorer."""
        self.client.close()


def wanted(settings: VllmSettings, policy: Policy, config: Any) -> bool:
    """Return whether a scorer is of use; say so once where it could not read. Raises RankerFileError."""
    if policy.oracle or not (settings.ranker or settings.learn):
        return False
    watches = settings.shadow or (settings.shadow_policy and settings.shadowing_policy().uses_predictions)
    if not (policy.uses_predictions or watches):
        return False
    if settings.ranker and ":" not in settings.ranker:
        rankers.check(settings.ranker)
    if compat.tokenizer_name(config):
        return True
    if settings.learn:
        logger.warning("vLLM runs without a tokenizer: who sends and how prompts begin is learned, no more")
        return True
    logger.warning("vLLM runs without a tokenizer, so no prompt can be read: only clients' numbers count")
    return False
