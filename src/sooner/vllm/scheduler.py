"""vLLM's own scheduler with the waiting queue in a policy's order; every hook fails open.

A request's life: `add_request` gives it a ticket and asks the scorer; it stands at a neutral place;
`schedule` takes in scores, asks the guard and runs vLLM's own on our queue; `_free_request` ends it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from sooner.core import Prediction
from sooner.guard import Guard
from sooner.ordering import given
from sooner.ordering.kept import Kept
from sooner.ordering.pacing import PaceLearner, StepTimer
from sooner.ordering.queue import Place, RankedQueue
from sooner.policies import Policy
from sooner.vllm import compat, memory, scores, settings, shadow
from sooner.vllm.counters import PluginCounters, Publisher
from sooner.vllm.displacement import Displacement
from sooner.vllm.prefixes import Prefixes
from sooner.vllm.scores import EngineScores
from sooner.vllm.sessions import Sessions
from sooner.vllm.stall import FIRST, Stall
from sooner.vllm.trace import EngineTrace

logger = logging.getLogger("vllm.plugins.sooner")

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
        self._vllm_add, self._vllm_free = self._vllm.add_request, self._vllm._free_request
        config = host.vllm_config
        self.settings = settings.load(config.additional_config)
        self.counters = PluginCounters()
        policy = self.settings.chosen_policy()
        guard: Guard[str] | None = None
        if self.settings.starvation_guard:
            guard = Guard(self.settings.starvation_threshold, self.settings.starvation_quantum)
        trace = self._trace = self._opened_trace(policy, config)
        self.order = shadow.order_of(self.settings, policy, guard, self.counters, host.requests, trace)
        self._bypassed = not self._fit(compat.version())
        if not self._bypassed:
            compat.replace_queues(host, lambda: RankedQueue(self._place, self._places))
            compat.use_arrival_victims(host)
        self._queues = compat.queues(host)
        self._displacement = Displacement(host, self.order, self.settings, self.counters)
        self._kept = Kept(self.settings.state_path(config)) if self.settings.state else None
        restored = self._kept is not None and self._kept.restore(self.order)
        learner = PaceLearner(compat.slots(host), self.order.pace if restored else None)
        self._timer = StepTimer(learner, ahead=compat.wants_async(config))
        self.order.set_pace(learner.pace)

        self._stall = Stall(host, self._place, self.counters)
        reckons = "work" in policy.reads or bool(self.settings.shadow_policy)
        self._prefixes = Prefixes(host, self.order, self.counters, wanted=reckons)
        self._unsorted = False
        self._held = 0  # steps in a row in which nobody was scheduled, so that those in flight may end
        self._resetting = False
        self._arrived: deque[tuple[str, Prediction]] = deque()
        self._sessions = Sessions(host, self.order)
        self.scores: EngineScores | None = None
        if scores.wanted(self.settings, policy, config) and not self._bypassed:
            news = shadow.RankerNews(self.settings, trace, self.order) if self.settings.shadow else None
            self.scores = EngineScores(
                self.settings, config, lambda id, said: self._arrived.append((id, said)), self.counters, news
            )
        elif self.settings.shadow:
            self.counters.warn(
                "shadow_failures", "shadow=%r is not asked: no scorer runs", self.settings.shadow
            )
        self._publisher: Publisher | None = None
        if self.settings.metrics_dir:
            directory = Path(self.settings.metrics_dir)
            self._publisher = Publisher(self.counters, self._gauges, directory, compat.engine_index(config))
        logger.info("sooner orders requests by %r with %s", policy.name, self.settings)

    def _opened_trace(self, policy: Policy, config: Any) -> EngineTrace | None:
        if not self.settings.trace:
            return None
        path = compat.of_engine(Path(self.settings.trace), config)
        return EngineTrace(path, policy, config, compat.engine_index(config))

    def add_request(self, request: Any) -> None:
        """Give a new request its place, then enqueue it; its score follows."""
        try:  # as `_safely`, which a flood of requests would feel
            self._arrive(request)
        except Exception as error:
            self._failed("_arrive", error)
        self._vllm_add(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Bring the order up to date, then schedule as vLLM does.

        Where that raises, vLLM's own queues are put back, what we touched is undone, and it is asked once
        more: from then on it serves in order of arrival, without us.
        """
        if self._bypassed:
            return self._vllm.schedule(*args, **kwargs)
        self._safely(self._before_step)
        ran_before = self._host.running.copy()
        try:
            output = self._schedule(*args, **kwargs)
        except Exception as error:
            self._bypass(f"schedule raised {error!r}", {request.request_id for request in ran_before})
            return self._vllm.schedule(*args, **kwargs)
        self._safely(self._displacement.after_step)
        self._safely(self._after_step, output)
        return output

    def _schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule as vLLM does; where it would preempt in vain nobody is scheduled, as in a pause."""
        host = self._host
        budget = host.max_num_scheduled_tokens
        if self._held < memory.MOST_HELD and self._safely(memory.preempts_in_vain, host):
            self._held += 1
            host.max_num_scheduled_tokens = 0
        else:
            self._held = 0
        try:
            return self._vllm.schedule(*args, **kwargs)
        finally:
            host.max_num_scheduled_tokens = budget

    def _select_waiting_queue_for_scheduling(self) -> Any:
        """Return the queue whose first goes next; vLLM 0.18.1 to 0.30 drain `skipped_waiting` first."""
        if not self._bypassed:
            chosen = self._safely(self._better_queue)
            if chosen is not None:
                return chosen
        return self._vllm._select_waiting_queue_for_scheduling()

    def _better_queue(self) -> Any:
        """Return the queue with the better-ranked first, None where vLLM's own choice is as good."""
        filled = [queue for queue in self._queues if queue]
        if len(filled) < 2:
            return None
        return min(filled, key=lambda queue: self._place(queue.peek_request()))

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> Any:
        """Reset as vLLM does; whom that sends back is not counted as a victim of a full cache."""
        self._resetting = True
        try:
            return self._vllm.reset_prefix_cache(*args, **kwargs)
        finally:
            self._resetting = False

    def _fit(self, version: tuple[int, int] | None) -> bool:
        """Say once what this version of vLLM allows; return whether we order on it at all."""
        if version is None or not compat.known(version):
            told = (*compat.FLOOR, *compat.CEILING, compat.release())
            logger.warning("sooner knows vLLM %d.%d to %d.%d, this is %s: served in order of arrival", *told)
            return False
        if not compat.displaces(version) and (self.settings.second_look or self.settings.preemption):
            logger.warning("running requests are not sent back on vLLM %d.%d: waiting ones only", *version)
            self.settings = dataclasses.replace(self.settings, second_look=False, preemption=False)
        return True

    def _bypass(self, why: str, ran_before: set[str]) -> None:
        """Put vLLM's own queues back in order of arrival and step aside for good."""
        self._bypassed = True
        self.counters.add("bypassed")
        logger.error("sooner steps aside, requests are served in order of arrival: %s", why)
        compat.take_back(self._host, ran_before)
        self._safely(self._displacement.after_step)
        compat.stock_queues(self._host)
        self._queues = []

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """Note first tokens for the trace; queue again whom vLLM lost."""
        outputs = self._vllm.update_from_output(*args, **kwargs)
        if self._trace is not None:
            self._safely(self._trace.note_first_tokens, self._host.requests, self.order.step)
        if self._sessions and not self._bypassed:
            self._safely(self._sessions.queue_lost)
        return outputs

    def _update_request_as_session(self, session: Any, update: Any) -> None:
        """Take in the next input of a streaming session: from then on it waits anew."""
        without_memory = self._safely(self._sessions.keep_context, session)
        self._vllm._update_request_as_session(session, update)
        if without_memory:
            session.num_computed_tokens = 0
        self._safely(self._sessions.wait_anew, session, self._queues)

    def shutdown(self) -> None:
        """Stop the scorer and close the trace."""
        self._safely(self._close)
        self._vllm.shutdown()

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        self._safely(self._before_preemption, request)
        self._vllm._preempt_request(request, *args, **kwargs)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        try:  # as above
            self._leave(request)
        except Exception as error:
            self._failed("_leave", error)
        return self._vllm_free(request, *args, **kwargs)

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
        id, here = request.request_id, self._host.requests
        if id in here:  # the next input of a streaming session
            return
        if not here:
            self._timer.idle()
        if compat.is_session(request):
            self._sessions.arrive(id)
        self.counters.counts["requests"] += 1
        said = given.NOTHING
        extra = getattr(request.sampling_params, "extra_args", None)
        if self.settings.client_scores:
            said = given.read(extra, request.priority)
            if said.malformed:
                self.counters.warn("malformed_client_values", "a client's number was ignored")
                self.counters.add("malformed_client_values", said.malformed - 1)
        cached = self._prefixes.cached_tokens(request) if self._prefixes.caching else 0
        ticket = self.order.arrive(id, request.arrival_time, request.num_prompt_tokens, said, None, cached)
        if self._trace is not None:
            self._trace.arrived(id, ticket, extra)
        if said.score is not None:
            self.counters.counts["client_scored"] += 1
        elif self.scores is not None:
            self.scores.ask(request)

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
                    self._displacement.scored_late()
        news = self.order.take_news()
        for queue in self._queues:
            for id in changed:
                request = host.requests.get(id)
                if request is not None:
                    queue.move(request)
            if news or not self.order.policy.timeless:
                queue.tick()
        if self._prefixes.caching and host.waiting:
            self._prefixes.check_first()
        self._unsorted = self._unsorted or bool(changed) or news or not self.order.policy.static
        chosen = self.settings
        if self._unsorted and (chosen.kv_victims or chosen.preemption):
            self._rank_running(anew=news or not self.order.policy.static)
            self._unsorted = False
        self._displacement.before_step()
        self._learn_pace()

    def _learn_pace(self) -> None:
        """Learn from the step that ended; reckon all work anew where the engine's pace is another."""
        learned = self._timer.next(time.monotonic(), waiting=bool(self._host.waiting))
        self.counters.counts["paused_steps"] = self._timer.learner.paused
        if learned is not None:
            self.order.set_pace(learned)
            if self._trace is not None:
                self._trace.pace(self.order.step, learned)

    def _rank_running(self, *, anew: bool) -> None:
        """Sort the running requests, so that vLLM's victim, the last of them, is the worst-ranked."""
        running = self._host.running
        if anew:
            self._refresh(running)
        running.sort(key=self._place)

    def _before_preemption(self, request: Any) -> None:
        self.order.preempted(request.request_id, request.num_output_tokens)
        if not (self._displacement.active or self._resetting):
            self.counters.add("kv_preemptions")

    def _after_step(self, output: Any) -> None:
        host = self._host
        ran = compat.steps_tokens(output)
        if ran:
            self.order.step += 1
            done = (*compat.shape(host, output), compat.context_tokens(host))
            self._timer.did(*done)
            if self.scores is not None:
                self._safely(self.scores.sweep, time.monotonic(), host.running, self._expected)
        else:
            self._timer.idle()
        why = self._safely(self._stall.after_step, ran, self._queues)
        if why:
            self._bypass(why, {request.request_id for request in host.running})
        for queue in self._queues:
            for request in queue.take_popped():
                if compat.is_running(request):
                    self.order.admitted(request.request_id)
                    self._unsorted = True
        if self._trace is not None and ran:
            running, waiting = host.get_request_counts()
            self._trace.step(self.order.step, running, waiting, *done)
        if self._kept is not None:
            self._kept.tick(self.order)

    def _leave(self, request: Any) -> None:
        groups = (self._safely(self.scores.ended, request) if self.scores else None) or ("", "")
        self._sessions.leave(request.request_id)
        ticket = self.order.leave(request.request_id)
        if ticket is None or self._trace is None:
            return
        self._trace.finished(request, ticket, self.order.step, groups)

    def _gauges(self) -> dict[str, float]:
        running, waiting = self._host.get_request_counts()
        learned = {} if self.scores is None else self.scores.gauges()
        return {"running": running, "waiting": waiting, **self.order.gauges(), **learned}

    def _expected(self, id: str) -> float:
        ticket = self.order.tickets.get(id)
        return 0.0 if ticket is None else ticket.predicted_len

    def _place(self, request: Any) -> Place:
        id = request.request_id
        if id == self._stall.first:
            return FIRST
        ticket = self.order.tickets.get(id)
        return ticket.place if ticket is not None else (1, 0.0, request.arrival_time, 0)

    def _places(self, requests: list[Any]) -> list[Place]:
        self._safely(self._refresh, requests)
        return [self._place(request) for request in requests]

    def _refresh(self, requests: list[Any]) -> None:
        tickets = self.order.tickets
        known = [request for request in requests if request.request_id in tickets]
        asked = "attained" in self.order.policy.reads
        self.order.refresh(
            [tickets[request.request_id] for request in known],
            [request.num_output_tokens for request in known] if asked else [0] * len(known),
        )

    def _close(self) -> None:
        if self._kept:
            self._kept.save(self.order)
        for part in (self.scores, self._publisher, self._trace):
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
