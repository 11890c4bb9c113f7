"""An offline job's engines on a Ray cluster: actors with a vLLM each, which Ray starts anew when they die."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sooner.core import EngineError, MissingExtra
from sooner.generate.engines import Answer, Begun, Declined, OutOfReach, Told
from sooner.generate.inprocess import InProcess
from sooner.generate.prompts import Ask

logger = logging.getLogger("sooner.ray")

LOCAL = "local"
"""The address of a cluster that is started here and ended with the job."""

_STORE = 200 << 20  # bytes of object store of such a cluster: prompts and replies are small
_AT_ONCE = 10_000  # calls that an actor takes: more than any engine has slots
_LISTEN = 0.25  # seconds between two questions for what running replies have so far


@contextmanager
def engines(
    model: str, settings: Mapping[str, Any], *, address: str = LOCAL, replicas: int = 1, stream: bool = False
) -> Iterator[list[ActorEngine]]:
    """Yield `replicas` engines of a cluster, which load already; they end with the context.

    `address` is a cluster's, "auto" for the one that this machine belongs to. `settings` are `vllm.LLM`'s.
    An engine asks for as many GPUs as it splits the model over, on a cluster without GPUs for one CPU.
    Raises MissingExtra without Ray, EngineError without a cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("ray", "ray") from error
    own: dict[str, Any] = {}
    if address == LOCAL:
        own = {"num_cpus": max(os.cpu_count() or 1, replicas), "include_dashboard": False}
        own["object_store_memory"] = _STORE
    try:
        ray.init(address=address, log_to_driver=False, **own)
    except Exception as error:  # Ray raises plain ones where a node is slow to start
        raise EngineError(f"no Ray cluster at {address!r}: {error}") from error
    made: list[ActorEngine] = []
    try:
        place = _place(ray.cluster_resources(), settings, replicas)
        made += [ActorEngine(model, settings, place, number, stream=stream) for number in range(replicas)]
        yield made
    finally:
        for one in made:
            one.end()
        ray.shutdown()


def _place(there: Mapping[str, float], settings: Mapping[str, Any], replicas: int) -> dict[str, int]:
    """Return what an engine asks Ray for, and warn where a cluster has less for all of them."""
    kind, each = "CPU", 1
    if there.get("GPU"):
        kind = "GPU"
        each = int(settings.get("tensor_parallel_size", 1)) * int(settings.get("pipeline_parallel_size", 1))
    if there.get(kind, 0) < each * replicas:
        all_told = (replicas, each * replicas, kind, there.get(kind, 0))
        logger.warning("%d engines ask for %d %ss, the cluster has %g: waiting for more", *all_told)
    return {f"num_{kind.lower()}s": each}


class ActorEngine:
    """A `Maker` whose vLLM is in an actor. It loads from now on; when it dies, Ray starts it anew."""

    def __init__(
        self, model: str, settings: Mapping[str, Any], place: Mapping[str, int], number: int, *, stream: bool
    ) -> None:
        import ray

        self.model, self.name = model, f"ray/{number}"
        self._ray, self._stream = ray, stream
        self._window = 1
        self._steps = self._steps_of_dead = 0
        self._tells: dict[int, Told] = {}
        self._asked = 0
        self._listens: asyncio.Task[None] | None = None
        variables = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # one process: nothing outlives a killed actor
        actor = ray.remote(_Hosted).options(
            **place, max_restarts=-1, max_concurrency=_AT_ONCE, scheduling_strategy="SPREAD",
            runtime_env={"env_vars": variables},
        )  # fmt: skip
        self._actor: Any = actor.remote(model, dict(settings), stream)
        self._loading: Any = self._actor.load.remote()

    @property
    def window(self) -> int:
        """How many requests may be open at once."""
        return self._window

    @property
    def steps(self) -> int | None:
        """Engine steps so far, as the last reply told; what an engine did that died is counted."""
        return self._steps_of_dead + self._steps

    async def start(self) -> None:
        """Wait until the model is loaded. Raises ConfigError, EngineError or MissingExtra as vLLM does."""
        try:
            self._window = await self._loading
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            raise EngineError(f"Ray starts no engine: {error}") from error
        if self._stream:
            self._listens = asyncio.get_running_loop().create_task(self._listening())

    @property
    def pauses(self) -> bool:
        """Replies here are not interrupted: what is told of them comes too late."""
        return False

    async def reply(self, ask: Ask, told: Told | None, begun: Begun | None = None) -> Answer:
        """Return the whole reply; see `Maker`."""
        self._asked += 1
        number = self._asked
        if told is not None:
            self._tells[number] = told
        under_way = self._actor.reply.remote(number, ask)
        answer: Answer
        try:
            answer, steps = await under_way
        except asyncio.CancelledError:
            self._ray.cancel(under_way)
            raise
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            raise OutOfReach(f"{self.name}: {type(error).__name__}") from error
        finally:
            self._tells.pop(number, None)
        self._steps = max(self._steps, steps)
        return answer

    async def _listening(self) -> None:
        """Pass on what running replies have so far."""
        while True:
            await asyncio.sleep(_LISTEN)
            with contextlib.suppress(self._ray.exceptions.RayError):
                for number, (tokens, text) in (await self._actor.news.remote()).items():
                    if number in self._tells:
                        self._tells[number](tokens, text)

    async def recovered(self, patience: float) -> bool:
        """Wait until Ray has started the actor anew and its model is loaded; return whether it has."""
        self._steps_of_dead, self._steps = self._steps_of_dead + self._steps, 0
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while loop.time() < until:
            try:
                self._window = await asyncio.wait_for(self._actor.load.remote(), until - loop.time())
                return True
            except (self._ray.exceptions.RayError, TimeoutError):
                await asyncio.sleep(min(1.0, max(0.0, until - loop.time())))
        return False

    async def close(self) -> None:
        """Listen no longer; the actor ends with the context of `engines`."""
        if self._listens is not None:
            self._listens.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listens

    def end(self) -> None:
        """End the actor."""
        self._ray.kill(self._actor)


class _Hosted:
    """What an actor runs: vLLM in its process, and what it told since it was asked last."""

    def __init__(self, model: str, settings: Mapping[str, Any], stream: bool) -> None:
        self._engine = InProcess(model, settings, stream=stream)
        self._loaded = False
        self._news: dict[int, tuple[int, str]] = {}

    async def load(self) -> int:
        """Load the model, once; return how many requests may be open."""
        if not self._loaded:
            await self._engine.start()
            self._loaded = True
        return self._engine.window

    async def reply(self, number: int, ask: Ask) -> tuple[Answer, int]:
        """Return the answer and the steps so far. An engine that failed takes the actor with it."""

        def told(tokens: int, text: str) -> bool:
            self._news[number] = (tokens, self._news.get(number, (0, ""))[1] + text)
            return False

        try:
            await self.load()  # a call may come before the one that asks whether it is up again
            answer = await self._engine.reply(ask, told)
            assert isinstance(answer, Answer)  # nobody interrupts it
            return answer, self._engine.steps or 0
        except Declined:
            raise
        except EngineError:
            os._exit(1)
        finally:
            self._news.pop(number, None)

    async def news(self) -> dict[int, tuple[int, str]]:
        """Return what is new of each running reply: its tokens, and the text since the last time."""
        found, self._news = self._news, {}
        return found
