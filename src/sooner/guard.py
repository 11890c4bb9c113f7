"""The starvation guard of vllm-ltr as pure logic around any policy (Fu et al., NeurIPS 2024, section 4.3).

A request that was not executed for `threshold` steps is promoted above all that are not, until it
has been executed for `quantum` steps; one that idles as long again is renewed. The host says when a
request starts and stops running, so a step costs O(log n) per promotion and nothing per waiting
request, where the original counts every request at every step.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from sooner.core import ConfigError

Id = TypeVar("Id", bound=Hashable)


class Changes(NamedTuple, Generic[Id]):
    """Who was promoted and who was demoted at the start of a step; a renewal is neither."""

    promoted: list[Id]
    demoted: list[Id]


class _State:
    """`turn` is new at each start, stop and renewal, so that what was planned before is known to be stale."""

    __slots__ = ("promoted", "quantum", "running", "since", "turn")

    def __init__(self, step: int, turn: int) -> None:
        self.promoted = False
        self.quantum = 0
        self.running = False
        self.since = step
        self.turn = turn


class Guard(Generic[Id]):
    """Promotes whoever idles too long. Steps are whole numbers that never go back.

    Guarantee: at the start of every step, each request that idled for `threshold` steps since its
    arrival, its last executed step or its last promotion is promoted; among the promoted the
    policy's own key decides. A request never idle that long is never promoted.
    """

    def __init__(self, threshold: int = 200, quantum: int = 10) -> None:
        for name, value in (("threshold", threshold), ("quantum", quantum)):
            if value < 1:
                raise ConfigError(f"starvation guard: {name}={value!r}, allowed: >= 1 [steps]")
        self.threshold = threshold
        self.quantum = quantum
        self._states: dict[Id, _State] = {}
        self._idle: deque[tuple[int, Id, int]] = deque()  # (due step, id, turn), due never falls
        self._spent: list[tuple[int, int, Id]] = []  # heap of (due step, turn, id)
        self._turns = 0  # of all requests, for an id that left may come back

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, id: Id) -> bool:
        return id in self._states

    def promoted(self, id: Id) -> bool:
        """Return whether `id` now goes before every request that is not promoted."""
        state = self._states.get(id)
        return state is not None and state.promoted

    def arrive(self, id: Id, step: int) -> None:
        """Count `id` as idle from `step`, the next step to run."""
        self._states[id] = _State(step, self._next_turn())
        self._idle.append((step + self.threshold, id, self._turns))

    def start(self, id: Id, step: int) -> None:
        """Say that `id` is executed in `step` and in every later one until it stops."""
        state = self._states.get(id)
        if state is None or state.running:
            return
        state.running, state.since, state.turn = True, step, self._next_turn()
        if state.promoted:
            heapq.heappush(self._spent, (step + state.quantum, state.turn, id))

    def stop(self, id: Id, step: int) -> None:
        """Say that `step` is the first in which `id` is no longer executed."""
        state = self._states.get(id)
        if state is None or not state.running:
            return
        if state.promoted:
            state.quantum -= step - state.since
        state.running, state.since, state.turn = False, step, self._next_turn()
        self._idle.append((step + self.threshold, id, state.turn))

    def leave(self, id: Id) -> None:
        """Forget `id`; one that is not known is tolerated."""
        self._states.pop(id, None)
        if len(self._idle) > 64 + 4 * len(self._states):
            self._idle = deque(due for due in self._idle if self._fresh(due[1], due[2]))

    def begin(self, step: int) -> Changes[Id]:
        """Promote and demote what is due before `step` runs."""
        changes: Changes[Id] = Changes([], [])
        while self._idle and self._idle[0][0] <= step:
            _, id, turn = self._idle.popleft()
            state = self._fresh(id, turn)
            if state is None:
                continue
            if not state.promoted:
                changes.promoted.append(id)
            state.promoted, state.quantum, state.turn = True, self.quantum, self._next_turn()
            self._idle.append((step + self.threshold, id, state.turn))
        while self._spent and self._spent[0][0] <= step:
            _, turn, id = heapq.heappop(self._spent)
            state = self._fresh(id, turn)
            if state is not None:
                state.promoted, state.quantum = False, 0
                changes.demoted.append(id)
        return changes

    def _next_turn(self) -> int:
        self._turns += 1
        return self._turns

    def _fresh(self, id: Id, turn: int) -> _State | None:
        state = self._states.get(id)
        return state if state is not None and state.turn == turn else None
