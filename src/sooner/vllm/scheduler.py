"""vLLM's own scheduler with the waiting queue in a policy's order; every hook fails open.

The life of a request: `add_request` gives it a ticket and asks the scorer; it stands at a neutral
place; `schedule` takes in the scores that came, lets the guard act, and runs vLLM's unchanged
`schedule`, which pops our queue; `_free_request` writes the trace and forgets it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from sooner.chat import ChatRequest
from sooner.core import Prediction
from sooner.guard import Guard
from sooner.ordering import given
from sooner.ordering.client import ScorerClient
from sooner.ordering.order import Order, Ticket
from sooner.ordering.queue import Place, RankedQueue
from sooner.vllm import compat, settings
from sooner.vllm.counters import Counters, Publisher
from sooner.vllm.trace import Trace

logger = logging.getLogger("vllm.plugins.sooner")

YOUNG = 64
"""Tokens up to which a request that was admitted before its score came may be sent back."""

_SECOND_LOOK_GAIN = 1.25
"""How many times the first waiting one's tokens it must need then: a prompt is computed again for it."""

_Result = TypeVar("_Result")


class RankOrder:
    """What is laid over vLLM's scheduler, sync or async: override, do our part safely, call on.

    Raises ConfigError at start for a wrong setting; after that nothing of ours raises.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        host: Any = self  # the class it is mixed into is vLLM's
        self._host = host
        self._vllm = cast(Any, super())
        self._vllm_add = self._vllm.add_request
        config = host.vllm_config
        self.settings = settings.load(config.additional_config)
        self.counters = Counters()
        policy = self.settings.chosen_policy()
        guard: Guard[str] | None = None
        if self.settings.starvation_guard:
            guard = Guard(self.settings.starvation_threshold, self.settings.starvation_quantum)
        self.order = Order(policy, guard, self.counters)
        reorder = None if policy.timeless else self._places
        compat.replace_queues(host, lambda: RankedQueue(self._place, reorder))
        self._queues = compat.queues(host)
        self._unsorted = False
        self._arrived: deque[tuple[str, Prediction]] = deque()
        self._first_tokens: dict[str, Ticket] = {}
        self._rank_preempting = False
        self._blind_until = -1
        self._trace = Trace(Path(self.settings.trace)) if self.settings.trace else None
        self._publisher: Publisher | None = None
        if self.settings.metrics_dir:
            directory = Path(self.settings.metrics_dir)
            self._publisher = Publisher(self.counters, self._gauges, directory, compat.engine_index(config))
        self._unsaid = self._safely(compat.filled, config) or compat.Filled(0)
        self.scorer: ScorerClient | None = None
        if self.settings.ranker and not policy.oracle and policy.uses_predictions:
            self.scorer = ScorerClient(
                self.settings.scorer_socket,
                self.settings.ranker,
                compat.tokenizer_name(config),
                lambda id, prediction: self._arrived.append((id, prediction)),
                self.counters,
                self.settings.scorer_timeout,
            )
        logger.info("sooner orders requests by %r with %s", policy.name, self.settings)

    def add_request(self, request: Any) -> None:
        """Give a new request its place, then enqueue it; its score follows."""
        try:
            self._arrive(request)
        except Exception as error:
            self._failed("arrive", error)
        self._vllm_add(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Bring the order up to date, then schedule as vLLM does."""
        self._safely(self._before_step)
        output = self._vllm.schedule(*args, **kwargs)
        self._safely(self._after_step, output)
        return output

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """Note first tokens for the trace."""
        outputs = self._vllm.update_from_output(*args, **kwargs)
        if self._first_tokens:
            self._safely(self._note_first_tokens)
        return outputs

    def shutdown(self) -> None:
        """Stop the scorer and close the trace."""
        self._safely(self._close)
        self._vllm.shutdown()

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        self._safely(self._before_preemption, request)
        self._vllm._preempt_request(request, *args, **kwargs)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self._safely(self._leave, request)
        return self._vllm._free_request(request, *args, **kwargs)

    def _safely(self, hook: Callable[..., _Result], *arguments: Any) -> _Result | None:
        """Run one of our hooks; what it raises is counted and logged, and vLLM goes on."""
        try:
            return hook(*arguments)
        except Exception as error:
            self._failed(hook.__name__, error)
            return None

    def _failed(self, hook: str, error: Exception) -> None:
        self.counters.warn("hook_errors", "%s failed, arrival order stands in: %r", hook, error)

    def _arrive(self, request: Any) -> None:
        id = request.request_id
        if id in self._host.requests:  # the next input of a streaming session
            return
        self.counters.add("requests")
        said = given.NOTHING
        extra = getattr(request.sampling_params, "extra_args", None)
        if self.settings.client_scores:
            said = given.read(extra, request.priority)
            if said.malformed:
                self.counters.warn("malformed_client_values", "a client's number was ignored")
                self.counters.add("malformed_client_values", said.malformed - 1)
        ticket = self.order.arrive(id, request.arrival_time, request.num_prompt_tokens, said)
        if self._trace is not None:
            tag = extra.get("sooner_tag", "") if extra else ""
            ticket.tag = str(tag)[:200]
            self._first_tokens[id] = ticket
        if said.score is not None:
            self.counters.add("client_scored")
        elif self.scorer is not None:
            prompt = compat.prompt_tokens(request)
            if prompt is not None:
                self.scorer.submit(id, ChatRequest(prompt, compat.signals(request, self._unsaid)))

    def _before_step(self) -> None:
        host = self._host
        changed = self.order.begin_step(time.time())
        while self._arrived:
            id, prediction = self._arrived.popleft()
            request = host.requests.get(id)
            if request is not None and self.order.predicted(id, prediction, request.num_output_tokens):
                self.counters.add("scored")
                changed.append(id)
                if self.order.tickets[id].blind:
                    self._blind_until = self.order.step + YOUNG
        for queue in self._queues:
            for id in changed:
                request = host.requests.get(id)
                if request is not None:
                    queue.move(request)
            queue.tick()
        self._unsorted = self._unsorted or bool(changed) or not self.order.policy.static
        chosen = self.settings
        if self._unsorted and (chosen.kv_victims or chosen.preemption):
            self._rank_running()
            self._unsorted = False
        if chosen.preemption or (chosen.second_look and self.order.step <= self._blind_until):
            self._displace_worst()

    def _rank_running(self) -> None:
        """Sort the running requests, so that vLLM's victim, the last of them, is the worst-ranked."""
        running = self._host.running
        if not self.order.policy.static:
            self._refresh(running)
        running.sort(key=self._place)

    def _displace_worst(self) -> None:
        """Send the worst-ranked running request back where the first in the queue should have its place.

        One a step at most: each costs the victim the recomputation of its tokens.
        """
        host = self._host
        if len(host.running) < compat.slots(host) or not host.waiting:
            return
        first = self.order.tickets.get(host.waiting.peek_request().request_id)
        victim = max(host.running, key=self._place)
        worst = self.order.tickets.get(victim.request_id)
        if first is None or worst is None or not (first.place < worst.place):
            return
        reason = self._reason_to_displace(worst, first, victim.num_output_tokens)
        if reason is None or not compat.can_preempt(host, victim):
            return
        host.running.remove(victim)
        worst.rank_preemptions += 1
        self.counters.add(reason)
        self._rank_preempting = True
        try:
            host._preempt_request(victim, time.monotonic())
        finally:
            self._rank_preempting = False

    def _reason_to_displace(self, worst: Ticket, first: Ticket, attained: int) -> str | None:
        """Return the counter of what lets `first` take the place of `worst`, or None."""
        chosen = self.settings
        known = first.scored and worst.scored
        left = worst.predicted_len - attained
        young = worst.blind and attained <= YOUNG and worst.rank_preemptions == 0
        if chosen.second_look and young and known and left >= _SECOND_LOOK_GAIN * first.predicted_len:
            return "second_looks"
        gains = first.promoted or (known and left >= chosen.preemption_gain * first.predicted_len)
        if chosen.preemption and gains and worst.rank_preemptions < chosen.max_preemptions:
            return "rank_preemptions"
        return None

    def _before_preemption(self, request: Any) -> None:
        self.order.preempted(request.request_id, request.num_output_tokens)
        if not self._rank_preempting:
            self.counters.add("kv_preemptions")

    def _after_step(self, output: Any) -> None:
        host = self._host
        if compat.steps_tokens(output):
            self.order.step += 1
        for queue in self._queues:
            for request in queue.take_popped():
                if compat.is_running(request):
                    self.order.admitted(request.request_id)
                    self._unsorted = True
        if self._trace is not None:
            self._trace.step(self.order.step, *host.get_request_counts())

    def _note_first_tokens(self) -> None:
        requests = self._host.requests
        for id, ticket in list(self._first_tokens.items()):
            request = requests.get(id)
            if ticket.first_scheduled_step >= 0 and request is not None and request.num_output_tokens:
                ticket.first_token_step = self.order.step
                del self._first_tokens[id]

    def _leave(self, request: Any) -> None:
        ticket = self.order.leave(request.request_id)
        if ticket is None or self._trace is None:
            return
        if self._first_tokens.pop(request.request_id, None) is not None and request.num_output_tokens:
            ticket.first_token_step = self.order.step
        self._trace.request(
            {
                "request_id": request.request_id,
                "tag": ticket.tag,
                "arrival_time": ticket.arrival_time,
                "arrival_step": ticket.arrival_step,
                "first_scheduled_step": ticket.first_scheduled_step,
                "first_token_step": ticket.first_token_step,
                "finish_step": self.order.step,
                "preemptions": ticket.preemptions,
                "prompt_tokens": ticket.prompt_len,
                "output_tokens": request.num_output_tokens,
                "score": ticket.score,
                "predicted_len": ticket.predicted_len,
                "key": ticket.key,
                "scored": ticket.scored,
                "status": request.status.name,
            }
        )

    def _gauges(self) -> dict[str, float]:
        running, waiting = self._host.get_request_counts()
        return {
            "running": running,
            "waiting": waiting,
            "pressure_seconds_per_token": self.order.pressure,
            "mean_predicted_len_tokens": self.order.mean_predicted_len,
        }

    def _place(self, request: Any) -> Place:
        ticket = self.order.tickets.get(request.request_id)
        return ticket.place if ticket is not None else (1, 0.0, request.arrival_time, 0)

    def _places(self, requests: list[Any]) -> list[Place]:
        self._safely(self._refresh, requests)
        return [self._place(request) for request in requests]

    def _refresh(self, requests: list[Any]) -> None:
        tickets = self.order.tickets
        known = [(tickets.get(request.request_id), request.num_output_tokens) for request in requests]
        pairs = [(ticket, attained) for ticket, attained in known if ticket is not None]
        self.order.refresh([ticket for ticket, _ in pairs], [attained for _, attained in pairs])

    def _close(self) -> None:
        for part in (self.scorer, self._publisher, self._trace):
            if part is not None:
                part.close()


class Scheduler(RankOrder, compat.VllmScheduler):  # type: ignore[misc]  # vLLM is not type-checked
    """What `--scheduler-cls sooner.vllm.Scheduler` names; async where the engine schedules ahead."""

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Scheduler:
        chosen = AsyncScheduler if cls is Scheduler and compat.wants_async(vllm_config) else cls
        made: Scheduler = object.__new__(chosen)
        return made


class AsyncScheduler(Scheduler, compat.VllmAsyncScheduler):  # type: ignore[misc]  # as above
    """The same over vLLM's AsyncScheduler; chosen by `Scheduler`, not by the user."""
