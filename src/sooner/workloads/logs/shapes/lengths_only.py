"""What holds lengths but no prompts: named for what it is, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

from sooner.workloads.logs.fields import mapping
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Dropped, Record, shape

SIMULATE = "`sooner simulate` reads it; a ranker learns from prompts"

_LENGTHS = (
    ("prompt_len", "output_len"),
    ("ContextTokens", "GeneratedTokens"),
    ("input_length", "output_length"),
)
_TRACES = ("Request tokens", "num_prefill_tokens", "number_output_tokens", "input_toks")
_PROMPTS = ("prompt", "messages", "input", "inputs", "text_input", "request", "body", "conversations")


def _trace(record: Record) -> bool:
    if any(record.get(name) is not None for name in _PROMPTS):
        return False
    return any(all(name in record for name in pair) for pair in _LENGTHS) or any(n in record for n in _TRACES)


@shape("trace", when=_trace)
def trace(record: Record, report: Report) -> Iterator[Dropped]:
    """Refuse a row of a trace."""
    yield Dropped(f"a row of a trace: lengths without prompts ({SIMULATE})")


@shape("aiperf", when=lambda record: "input_sequence_length" in mapping(record.get("metrics")))
def aiperf(record: Record, report: Report) -> Iterator[Dropped]:
    """Refuse what AIPerf measured."""
    yield Dropped(f"a record of AIPerf: lengths without prompts ({SIMULATE})")


@shape("aiperf inputs", when=lambda record: isinstance(record.get("payloads"), list))
def aiperf_inputs(record: Record, report: Report) -> Iterator[Dropped]:
    """Refuse what AIPerf sends."""
    yield Dropped("inputs of AIPerf: requests without replies (run them, and log the replies)")


@shape("vllm bench", when=lambda record: isinstance(record.get("output_lens"), list))
def vllm_bench(record: Record, report: Report) -> Iterator[Dropped]:
    """Refuse what `vllm bench serve --save-detailed` writes."""
    yield Dropped(f"a result of `vllm bench`: lengths without prompts ({SIMULATE})")


@shape(
    "batch output",
    when=lambda record: (
        "custom_id" in record and ("response" in record or "result" in record) and not _asked(record)
    ),
)
def batch_output(record: Record, report: Report) -> Iterator[Dropped]:
    """Refuse a batch's output that met no input."""
    yield Dropped("an output of a batch without its input (give the folder that holds both files)")


def _asked(record: Record) -> bool:
    return any(record.get(name) is not None for name in (*_PROMPTS, "params"))
