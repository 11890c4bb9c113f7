"""The real vLLM scheduler without a model: a fake runner that hands out one token a request a step."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # what vLLM and torch use while they are imported
    import torch
    import torch.utils.mkldnn  # it warns, and is otherwise imported in the middle of a test
    from vllm.config import (
        CacheConfig,
        DeviceConfig,
        KVTransferConfig,
        ModelConfig,
        SchedulerConfig,
        VllmConfig,
    )
    from vllm.distributed.kv_transfer.kv_connector.v1.base import (
        KVConnectorBase_V1,
        KVConnectorMetadata,
    )
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
    from vllm.v1.request import Request, RequestStatus
    from vllm.v1.structured_output import StructuredOutputManager

BLOCK = 16
init_none_hash(sha256)
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_model(folder: Path) -> Path:
    """Write the configuration of a Llama small enough for random weights; no tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
    return folder


def vllm_config(
    model: Path,
    sooner: Mapping[str, Any] | None = None,
    *,
    slots: int = 4,
    blocks: int = 10_000,
    asynchronous: bool = False,
    policy: str = "fcfs",
    caching: bool = False,
    connector: bool = False,
) -> VllmConfig:
    """Return an engine's configuration; `sooner` are the plugin's settings, `connector` is `Delayed`."""
    cache = CacheConfig(block_size=BLOCK, enable_prefix_caching=caching)
    cache.num_gpu_blocks = blocks
    config = VllmConfig(
        model_config=ModelConfig(model=str(model), skip_tokenizer_init=True, dtype="float32", seed=0),
        cache_config=cache,
        scheduler_config=SchedulerConfig(
            max_num_seqs=slots,
            max_num_batched_tokens=8192,
            max_model_len=2048,
            is_encoder_decoder=False,
            policy=policy,
            async_scheduling=asynchronous,
        ),
        device_config=DeviceConfig(device="cpu"),
        kv_transfer_config=KVTransferConfig(
            kv_connector="Delayed", kv_role="kv_both", kv_connector_module_path=__name__
        )
        if connector
        else None,
        additional_config={"sooner": {"ranker": "", "learn": False, "state": "", **(sooner or {})}},
    )
    config.scheduler_config.async_scheduling = asynchronous  # the CPU platform switches it off
    return config


def scheduler(kind: Callable[..., Any], config: VllmConfig) -> Any:
    """Return a scheduler of class `kind` as EngineCore makes it."""
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=config.cache_config.num_gpu_blocks or 0,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        log_stats=True,
    )


def builtin(config: VllmConfig) -> Any:
    """Return vLLM's own scheduler for the same configuration."""
    return scheduler(AsyncScheduler if config.scheduler_config.async_scheduling else Scheduler, config)


def request(
    id: int | str,
    output_len: int,
    *,
    arrival_time: float = 0.0,
    prompt_len: int = 10,
    priority: int = 0,
    xargs: Mapping[str, Any] | None = None,
    offset: int = 0,
    hashed: bool = False,
    resumable: bool = False,
) -> Request:
    """Return a request that ends after exactly `output_len` tokens; `hashed` for the prefix cache.

    `resumable` begins a streaming session, or goes on with it; without it an input of one is its last.
    """
    sampling = SamplingParams(
        ignore_eos=True, max_tokens=output_len, extra_args=dict(xargs) if xargs else None
    )
    return Request(
        request_id=str(id),
        prompt_token_ids=[3 + (i + offset) % 500 for i in range(prompt_len)],
        sampling_params=sampling,
        pooling_params=None,
        arrival_time=arrival_time,
        priority=priority,
        block_hasher=get_request_block_hasher(BLOCK, sha256) if hashed else None,
        **({"resumable": True} if resumable else {}),
    )


class Delayed(KVConnectorBase_V1):  # type: ignore[misc]  # vLLM is not type-checked
    """A KV connector whose loads take steps; `remote`: whose prompts are elsewhere, and for how many steps.

    `loading` holds the step in which each load is there. Scheduler's side only.
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any = None) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.remote: dict[str, int] = {}
        self.loading: dict[str, int] = {}
        self.step = 0

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """Return how many tokens of a prompt are elsewhere: all whole blocks but the last token."""
        if request.request_id not in self.remote or num_computed_tokens:
            return 0, False
        found = (request.num_prompt_tokens - 1) // BLOCK * BLOCK
        return found, found > 0

    def update_state_after_alloc(self, request: Request, blocks: Any, num_external_tokens: int) -> None:
        """Begin a load."""
        if num_external_tokens:
            self.loading[request.request_id] = self.step + self.remote[request.request_id]

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """Return nothing: there is no worker."""
        return KVConnectorMetadata()

    def loaded(self) -> set[str]:
        """Go on by a step; return whose loads are there now."""
        self.step += 1
        done = {id for id, due in self.loading.items() if due <= self.step}
        for id in done:
            del self.loading[id]
        return done

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Do nothing, as the three below: there is no worker."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def wait_for_save(self) -> None:
        """Do nothing."""


class Runner:
    """Drives a scheduler step by step; `depth` steps are in flight at once, as async scheduling has them.

    `admitted` holds request ids in the order they first ran, `tokens` how many each was given,
    `finished` the step in which each ended.
    """

    def __init__(self, scheduler: Any, depth: int = 1) -> None:
        self.scheduler = scheduler
        self.step = 0
        self.admitted: list[str] = []
        self.tokens: dict[str, int] = {}
        self.finished: dict[str, int] = {}
        self._depth = depth
        self._flying: list[Any] = []
        found = getattr(scheduler, "connector", None)
        self.connector: Delayed | None = found if isinstance(found, Delayed) else None

    @property
    def busy(self) -> bool:
        """Whether steps or loads are in flight."""
        flying = any(sampled for _, sampled in self._flying)
        return flying or bool(self.connector and self.connector.loading)

    def awaits_input(self, id: str) -> bool:
        """Whether a streaming session answered all that it was asked."""
        request = self.scheduler.requests.get(id)
        return request is not None and request.status.name == "WAITING_FOR_STREAMING_REQ"

    def add(self, requests: Iterable[Request]) -> None:
        """Hand requests to the scheduler."""
        for one in requests:
            self.scheduler.add_request(one)

    def run(self, steps: int | None = None) -> Runner:
        """Run a number of steps, or until nothing is left."""
        while steps is None or steps > 0:
            if not self.scheduler.has_unfinished_requests() and not self.busy:
                break
            self.once()
            steps = None if steps is None else steps - 1
            assert self.step < 5_000, "the scheduler does not come to an end"
        return self

    def timed_step(self) -> float:
        """Run one step; return the CPU time of its schedule() [us]."""
        start = time.thread_time_ns()
        output = self.scheduler.schedule()
        taken = (time.thread_time_ns() - start) / 1000.0
        self._after(output)
        return taken

    def once(self) -> None:
        """Run one step."""
        self._after(self.scheduler.schedule())

    def _after(self, output: Any) -> None:
        self.step += 1
        self.admitted += [data.req_id for data in output.scheduled_new_reqs if data.req_id not in self.tokens]
        for data in output.scheduled_new_reqs:
            self.tokens.setdefault(data.req_id, 0)
        sampled = {id: not self.scheduler.requests[id].is_prefill_chunk for id in output.num_scheduled_tokens}
        if sampled or self.connector:
            self._flying.append((output, sampled))
        if self._flying and (len(self._flying) >= self._depth or not sampled):
            self._deliver(*self._flying.pop(0))

    def _deliver(self, output: Any, sampled: Mapping[str, bool]) -> None:
        ids = list(output.num_scheduled_tokens)
        result = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={id: i for i, id in enumerate(ids)},
            sampled_token_ids=[[7] if sampled[id] else [] for id in ids],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
            kv_connector_output=KVConnectorOutput(finished_recving=self.connector.loaded())
            if self.connector
            else None,
        )
        for outputs in self.scheduler.update_from_output(output, result).values():
            for one in outputs.outputs:
                self.tokens[one.request_id] += len(one.new_token_ids)
                if one.finish_reason is not None:
                    self.finished[one.request_id] = self.step


def waiting_for_grammar() -> RequestStatus:
    """Return the status of a request whose grammar is being compiled; its name changed in 0.18."""
    for name in ("WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR", "WAITING_FOR_FSM"):
        if name in RequestStatus.__members__:
            return RequestStatus[name]
    raise AssertionError("vLLM has no status for a grammar that is not there yet")


def abort(scheduler: Any, id: str) -> None:
    """Abort a request as a client that goes away does."""
    scheduler.finish_requests(id, RequestStatus.FINISHED_ABORTED)
