"""The engine's own record: one JSON line per finished request, and one per step in a file beside it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from sooner.ordering.ticket import Ticket
from sooner.policies import Policy
from sooner.work import Pace


class EngineTrace:
    """Appends to `path`, `path` + ".steps" and `path` + ".pace"; lines are written out as they come.

    Each line holds `engine`, its data-parallel index. A request's line holds `request_id`, `tag` (the
    client's `sooner_tag`), `arrival_time` [s], `arrival_step`, `first_scheduled_step`, `first_token_step`,
    `finish_step` (-1: never; steps count from 1, and an arrival carries the number of steps run before
    it), `preemptions`, `prompt_tokens`, `cached_tokens`, `output_tokens`, `score`, `predicted_len`,
    `work` [s], `key`, `scored`, `status`, `sender` and `template` (hashes). A step's line holds `step`,
    `time` [s], `running`, `waiting`, and what it computes: `prefill` [tokens], `decoding` [requests],
    `context` [tokens]. A pace's line holds `step`, `time` and the numbers of `sooner.work.Pace`; there is
    one each time another was learned. A shadow's line, in `path` + ".shadow", holds `step`, `time`, what acts
    (as `ranker` or `policy`), its `shadow`, and how both stand, by the names of `/metrics`.
    `path` + ".engine" is JSON, the order and the engine's limits, as `sooner whatif` asks for them.
    """

    def __init__(self, path: Path, policy: Policy, vllm_config: Any, engine: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._engine = engine
        told = {"engine": engine, "policy": policy.name, "parameters": dict(policy.parameters)}
        told["engine_kwargs"] = _limits(vllm_config)
        Path(f"{path}.engine").write_text(json.dumps(told) + "\n", encoding="utf-8")
        self._requests = _appended(path)
        self._steps = _appended(Path(f"{path}.steps"))
        self._paces = _appended(Path(f"{path}.pace"))
        self._shadow: TextIO | None = None
        self._path = path
        self._unanswered: dict[str, Ticket] = {}

    def arrived(self, id: str, ticket: Ticket, extra: dict[str, Any] | None) -> None:
        """Take in a request and what its client sent with it; its first token is to be noted."""
        ticket.tag = str(extra.get("sooner_tag", "") if extra else "")[:200]
        self._unanswered[id] = ticket

    def note_first_tokens(self, requests: Mapping[str, Any], step: int) -> None:
        """Note whose first token came in a step."""
        for id, ticket in list(self._unanswered.items()):
            request = requests.get(id)
            if ticket.first_scheduled_step >= 0 and request is not None and request.num_output_tokens:
                ticket.first_token_step = step
                del self._unanswered[id]

    def request(self, line: dict[str, Any]) -> None:
        """Write a finished request."""
        self._requests.write(json.dumps(line) + "\n")

    def finished(self, request: Any, ticket: Ticket, step: int, groups: tuple[str, str] = ("", "")) -> None:
        """Write a request of vLLM's that ended in `step`, and where it stood; `groups` are hashes."""
        if self._unanswered.pop(request.request_id, None) is not None and request.num_output_tokens:
            ticket.first_token_step = step
        self.request(
            {
                "engine": self._engine,
                "request_id": request.request_id,
                "tag": ticket.tag,
                "arrival_time": ticket.arrival_time,
                "arrival_step": ticket.arrival_step,
                "first_scheduled_step": ticket.first_scheduled_step,
                "first_token_step": ticket.first_token_step,
                "finish_step": step,
                "preemptions": ticket.preemptions,
                "prompt_tokens": ticket.prompt_len,
                "cached_tokens": ticket.cached_len,
                "output_tokens": request.num_output_tokens,
                "score": ticket.score,
                "predicted_len": ticket.predicted_len,
                "work": ticket.work,
                "key": ticket.key,
                "scored": ticket.scored,
                "status": request.status.name,
                "sender": groups[0],
                "template": groups[1],
            }
        )

    def step(
        self, step: int, running: int, waiting: int, prefill: int, decoding: int, context: float
    ) -> None:
        """Write what a step saw, and what it computes."""
        self._steps.write(
            f'{{"engine": {self._engine}, "step": {step}, "time": {time.time():.4f}, '
            f'"running": {running}, "waiting": {waiting}, '
            f'"prefill": {prefill}, "decoding": {decoding}, "context": {context:.0f}}}\n'
        )

    def pace(self, step: int, pace: Pace) -> None:
        """Write how fast the engine is now known to work, from `step` on."""
        line = {"engine": self._engine, "step": step, "time": time.time(), **dataclasses.asdict(pace)}
        self._paces.write(json.dumps(line) + "\n")

    def shadow(self, step: int, standing: Mapping[str, Any]) -> None:
        """Write how a shadow stands beside what acts."""
        if self._shadow is None:
            self._shadow = _appended(Path(f"{self._path}.shadow"))
        line = {"engine": self._engine, "step": step, "time": time.time(), **standing}
        self._shadow.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Close the files."""
        if self._shadow is not None:
            self._shadow.close()
        self._paces.close()
        self._requests.close()
        self._steps.close()


def _limits(vllm_config: Any) -> dict[str, Any]:
    """Return what a configuration of vLLM says of the engine's limits."""
    names = {
        "scheduler_config": ("max_num_seqs", "max_num_batched_tokens"),
        "cache_config": ("block_size", "num_gpu_blocks"),
    }
    values = {
        name: getattr(getattr(vllm_config, part, None), name, None)
        for part, own in names.items()
        for name in own
    }
    return {name: value for name, value in values.items() if type(value) is int and value > 0}


def _appended(path: Path) -> TextIO:
    return path.open("a", buffering=1, encoding="utf-8")
