"""vLLM in this process, stepped by a thread of its own: requests go in and come out while it runs."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sooner.core import ConfigError, EngineError, MissingExtra

try:
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind
except ImportError as error:
    raise MissingExtra("vllm", "vllm") from error

_TAKEN = (
    "temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "logit_bias", "min_tokens", "ignore_eos",
)  # fmt: skip

INTERRUPTED = "interrupted"


class WholeReply(NamedTuple):
    """What came of a request: the whole reply, or what there was of it when it was interrupted."""

    text: str
    ids: tuple[int, ...]
    prompt_len: int
    finish_reason: str

    @property
    def interrupted(self) -> bool:
        return self.finish_reason == INTERRUPTED


def goes_on(params: Any) -> bool:
    """Whether a reply that is drawn so may be interrupted: nothing hangs on where it began."""
    return (
        params.seed is None and not params.stop and not params.min_tokens
        and not params.presence_penalty and not params.frequency_penalty
    )  # fmt: skip


Heard = Callable[[int, str, WholeReply | Exception | None], None]
"""Told, in the engine's thread, the tokens and the text that are new, and at the end what came of it."""


class _Open(NamedTuple):
    """A request that runs: who hears of it, and what has come so far."""

    heard: Heard
    prompt_len: int
    parts: list[str]
    ids: list[int]

    def ended(self, reason: str) -> None:
        """Tell that no more comes."""
        whole = WholeReply("".join(self.parts), tuple(self.ids), self.prompt_len, reason)
        self.heard(len(self.ids), "", whole)


class SteppedEngine:
    """One vLLM engine and the thread that steps it. `steps` counts the engine's iterations."""

    def __init__(self, model: str, settings: Mapping[str, Any], *, pieces: bool) -> None:
        """Load `model`; `settings` are `vllm.LLM`'s. With `pieces`, replies are told token by token.

        Raises ConfigError or EngineError where vLLM refuses.
        """
        try:
            self.llm = LLM(model=model, **settings)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"vLLM refuses {model!r} with {dict(settings)}: {error}") from error
        except (OSError, RuntimeError) as error:
            raise EngineError(f"vLLM cannot load {model!r}: {error}") from error
        self._engine: Any = self.llm.llm_engine
        config = self._engine.vllm_config
        self.max_num_seqs: int = config.scheduler_config.max_num_seqs
        self.max_model_len: int = config.model_config.max_model_len
        self.steps = 0
        self._kind = RequestOutputKind.DELTA if pieces else RequestOutputKind.FINAL_ONLY
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._heard: dict[str, _Open] = {}
        self._names = itertools.count()
        self._thread = threading.Thread(target=self._run, name="vllm steps", daemon=True)
        self._thread.start()

    def tokens(self, body: Mapping[str, Any]) -> list[int]:
        """Return the prompt of a chat or a completion as token ids. Raises ConfigError."""
        tokenizer: Any = self.llm.get_tokenizer()
        if "messages" not in body:
            return list(tokenizer.encode(body["prompt"]))
        more = {**(body.get("chat_template_kwargs") or {})}
        if body.get("tools"):
            more["tools"] = body["tools"]
        try:
            text = tokenizer.apply_chat_template(
                list(body["messages"]),
                tokenize=False,
                add_generation_prompt=not body.get("continue_final_message", False),
                continue_final_message=body.get("continue_final_message", False),
                **more,
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"the model's chat template refuses the messages: {error}") from error
        return list(tokenizer.encode(text, add_special_tokens=False))

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of a reply's tokens."""
        tokenizer: Any = self.llm.get_tokenizer()
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    def params(self, body: Mapping[str, Any], prompt_len: int, begun: int = 0) -> Any:
        """Return how a reply is drawn, the model's own defaults where the body says nothing.

        `begun` tokens of it are there already. Raises ConfigError for a setting that only a server serves,
        or a value that is not allowed.
        """
        for name in ("response_format", "logprobs", "tool_choice"):
            if body.get(name):
                raise ConfigError(f"{name}={body[name]!r}, allowed in process: none; a server does this")
        params = self.llm.get_default_sampling_params().clone()
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        room = self.max_model_len - prompt_len
        if room < 1:
            raise ConfigError(f"a prompt of {prompt_len} tokens, allowed: below {self.max_model_len}")
        given = {name: body[name] for name in _TAKEN if body.get(name) is not None}
        known = {name: getattr(params, name) for name in _TAKEN if name not in given}
        try:
            return SamplingParams(
                **{name: value for name, value in known.items() if value is not None},
                **given,
                max_tokens=(room if limit is None else min(limit, room)) - begun,
                output_kind=self._kind,
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"vLLM refuses the request's settings: {error}") from error

    def submit(self, ids: Sequence[int], params: Any, heard: Heard) -> str:
        """Put in a request; return its name, for `abort`."""
        name = f"sooner-{next(self._names)}"

        def add() -> None:
            try:
                self._engine.add_request(name, {"prompt_token_ids": list(ids)}, params)
            except Exception as error:
                heard(0, "", error)
                return
            self._heard[name] = _Open(heard, len(ids), [], [])

        self._inbox.put(add)
        return name

    def abort(self, name: str) -> None:
        """End a request early; nothing more is told of it."""

        def drop() -> None:
            if self._heard.pop(name, None) is not None:
                self._engine.abort_request([name])

        self._inbox.put(drop)

    def interrupt(self, name: str) -> None:
        """End a request early and tell what there is of it, unless it has ended by then."""

        def drop() -> None:
            known = self._heard.pop(name, None)
            if known is not None:
                self._engine.abort_request([name])
                known.ended(INTERRUPTED)

        self._inbox.put(drop)

    def close(self) -> None:
        """End the thread and the engine."""
        self._inbox.put(None)
        self._thread.join()
        shutdown = getattr(self._engine.engine_core, "shutdown", None)
        if shutdown is not None:
            shutdown()

    def _run(self) -> None:
        while True:
            try:
                while self._take_in(block=not self._heard):
                    pass
            except StopIteration:
                return
            if not self._heard:
                continue
            try:
                outputs = self._engine.step()
            except Exception as error:
                self._fail(EngineError(f"vLLM's engine failed: {error!r}"))
                return
            self.steps += 1
            for output in outputs:
                self._tell(output)

    def _take_in(self, block: bool) -> bool:
        """Do one thing that was asked; return whether there may be more. Raises StopIteration at the end."""
        try:
            todo = self._inbox.get(block=block)
        except queue.Empty:
            return False
        if todo is None:
            raise StopIteration
        todo()
        return True

    def _tell(self, output: Any) -> None:
        known = self._heard.get(output.request_id)
        if known is None:
            return
        reply = output.outputs[0]
        known.parts.append(reply.text)
        known.ids.extend(reply.token_ids)
        if output.finished:
            self._heard.pop(output.request_id)
            known.ended(str(reply.finish_reason))
        else:
            known.heard(len(known.ids), reply.text, None)

    def _fail(self, error: Exception) -> None:
        for known in self._heard.values():
            known.heard(0, "", error)
        self._heard.clear()
