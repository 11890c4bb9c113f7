"""OpenTelemetry: a span for a request, and beneath it the wait, the score, the engine and its first byte.

On where the standard variables (`OTEL_EXPORTER_OTLP_ENDPOINT`) name a collector; nothing of OpenTelemetry is
imported otherwise. Names of attributes are those of the conventions for HTTP servers (the request) and for
generative AI clients (the engine); what no convention has begins with `sooner.`. Prompts are in no span.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sooner import __version__, config
from sooner.gateway.page.words import plain

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext, SpanKind

logger = logging.getLogger("sooner.gateway")

GRPC = "grpc"
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_LONGEST = 256  # letters of a value


class EngineCall(NamedTuple):
    """What is told of a request to an engine: the route, the engine, and what was asked for."""

    path: str
    model: str
    kind: str
    host: str
    port: int
    stream: bool
    max_tokens: int | None
    temperature: float | None


def opened() -> Tracing | None:
    """Return what makes spans, None where no collector is named, or what sends them is not installed."""
    if not config.otel_wanted():
        return None
    try:
        return Tracing(_exporter())
    except ImportError as error:
        logger.warning("no traces: %s; pip install 'sooner[otel]'", error)
        return None


def _exporter() -> SpanExporter:
    """Return the exporter that the variables ask for. Raises ImportError where it is not installed."""
    if config.otel_protocol() == GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


class Tracing:
    """Makes spans of what is over, and sends them from a thread of its own.

    While a span is open only its times are noted; the SDK's own is made when it ends, by its constructor:
    a fifth of what its tracer costs.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import Decision
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
        from opentelemetry.trace import get_current_span as current
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        ours = Resource({"service.name": "sooner", "service.version": __version__})
        resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._sender = BatchSpanProcessor(exporter)
        self._provider.add_span_processor(self._sender)
        self._scope = InstrumentationScope("sooner.gateway", __version__)
        self._resource = resource
        self._readable, self._context, self._flags = ReadableSpan, SpanContext, TraceFlags
        self._good, self._bad = Status(StatusCode.UNSET), Status(StatusCode.ERROR)
        self._carrier, self._current = TraceContextTextMapPropagator(), current
        self.kinds, self._sampled = SpanKind, Decision.RECORD_AND_SAMPLE

    def begin(self, path: str, scheme: str, headers: Mapping[str, str]) -> RequestTrace:
        """Return the trace of a request that came just now, beneath the one that its client is in."""
        name, ids = f"POST {path}", self._provider.id_generator
        given = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        within = self._carrier.extract(given) if given else None
        parent = None if within is None else self._current(within).get_span_context()
        if parent is not None and not parent.is_valid:
            parent = None
        trace_id = ids.generate_trace_id() if parent is None else parent.trace_id
        chosen = self._provider.sampler.should_sample(within, trace_id, name, self.kinds.SERVER)
        flags = self._flags(self._flags.SAMPLED if chosen.decision is self._sampled else self._flags.DEFAULT)
        root = self._context(trace_id, ids.generate_span_id(), False, flags, chosen.trace_state)
        return RequestTrace(self, name, {"url.path": path, "url.scheme": scheme}, root, parent)

    def beneath(self, parent: SpanContext) -> SpanContext:
        """Return what names a new span beneath another."""
        new = self._provider.id_generator.generate_span_id()
        return self._context(parent.trace_id, new, False, parent.trace_flags, parent.trace_state)

    def over(
        self, name: str, context: SpanContext, parent: SpanContext | None, kind: SpanKind,
        began: int, ended: int, told: dict[str, Any],
    ) -> None:  # fmt: skip
        """Send a span of what is over; times are Unix nanoseconds, and what is None is not told."""
        told = {key: value for key, value in told.items() if value is not None}
        self._sender.on_end(
            self._readable(
                name, context, parent, self._resource, told, kind=kind,
                status=self._bad if "error.type" in told else self._good,
                start_time=began, end_time=max(began, ended), instrumentation_scope=self._scope,
            )
        )  # fmt: skip

    def flush(self) -> None:
        """Send all spans that have ended."""
        self._provider.force_flush()

    def close(self) -> None:
        """Send what is left, and stop."""
        self._provider.shutdown()


class RequestTrace:
    """One request's spans. Times are of the monotonic clock [s]; a trace that is not sampled only goes on."""

    def __init__(
        self, tracing: Tracing, name: str, told: dict[str, Any], root: SpanContext, parent: SpanContext | None
    ) -> None:
        self._tracing = tracing
        self._name = name
        self._told = {"http.request.method": "POST", "http.route": told["url.path"], **told}
        self._root, self._parent = root, parent
        self._zero = time.time_ns() - time.monotonic_ns()
        self._came = self._since = time.monotonic()
        self._engine: SpanContext | None = None
        self._sent = 0.0
        self._call: dict[str, Any] = {}
        self.on = root.trace_flags.sampled

    @property
    def id(self) -> str:
        """The trace's id where it is sampled, else ""."""
        return f"{self._root.trace_id:032x}" if self.on else ""

    def came(self, id: str, tenant: str, model: str) -> None:
        """Say which request it is, once that is known."""
        self._told |= {
            "sooner.request_id": id, "sooner.tenant": _shown(tenant), "gen_ai.request.model": _shown(model),
        }  # fmt: skip

    def scored(self, arrival: float, predicted_len: float | None) -> None:
        """Say that its score came."""
        told = {"sooner.predicted_tokens": None if predicted_len is None else float(predicted_len)}
        self._inside("score", self._root, arrival, time.monotonic(), told)

    def sent(self, call: EngineCall, rank: int) -> dict[str, str]:
        """Say that it goes to an engine now; return the headers that take the trace on."""
        self._sent = time.monotonic()
        self._inside("wait", self._root, self._since, self._sent, {"sooner.rank": rank})
        self._engine = to = self._tracing.beneath(self._root)
        self._call = {
            "gen_ai.operation.name": _OPERATIONS.get(call.path, call.path.rpartition("/")[2]),
            "gen_ai.provider.name": call.kind,
            "gen_ai.request.model": _shown(call.model),
            "gen_ai.request.stream": call.stream or None,
            "gen_ai.request.max_tokens": call.max_tokens,
            "gen_ai.request.temperature": call.temperature,
            "server.address": call.host,
            "server.port": call.port,
        }
        return {"traceparent": f"00-{to.trace_id:032x}-{to.span_id:016x}-{to.trace_flags:02x}"}

    def first_byte(self, began: float, seconds: float, status: int, *, stream: bool) -> None:
        """Say that the engine's reply began to come."""
        if self._engine is not None:
            self._inside("first byte", self._engine, began, began + seconds, {})
            self._call["http.response.status_code"] = status
            self._call["gen_ai.response.time_to_first_chunk"] = seconds if stream else None

    def used(self, prompt_len: int, output_len: int) -> None:
        """Say how many tokens the engine read and made."""
        self._call |= {"gen_ai.usage.input_tokens": prompt_len, "gen_ai.usage.output_tokens": output_len}

    def engine_over(self, error: str = "") -> None:
        """Say that it has left the engine; `error` names what went wrong there."""
        if self._engine is None:
            return
        self._since = time.monotonic()
        if self.on:
            told = self._call | {"error.type": error or None}
            name = f"{told['gen_ai.operation.name']} {told['gen_ai.request.model']}"
            times = self._at(self._sent), self._at(self._since)
            self._tracing.over(name, self._engine, self._root, self._tracing.kinds.CLIENT, *times, told)
        self._engine = None

    def close(self, status: int | None, error: str = "") -> None:
        """End it with the status that its client got, None where it got none."""
        self.engine_over(error or "cut_off")
        if self.on:
            failed = str(status) if status is not None and status >= 500 else None
            told = {**self._told, "http.response.status_code": status, "error.type": error or failed}
            times = self._at(self._came), self._at(time.monotonic())
            kind = self._tracing.kinds.SERVER
            self._tracing.over(self._name, self._root, self._parent, kind, *times, told)

    def _inside(
        self, name: str, parent: SpanContext, began: float, ended: float, told: dict[str, Any]
    ) -> None:
        if self.on:
            times = self._at(began), self._at(ended)
            own = self._tracing.beneath(parent)
            self._tracing.over(name, own, parent, self._tracing.kinds.INTERNAL, *times, told)

    def _at(self, when: float) -> int:
        return self._zero + int(when * 1e9)


@functools.lru_cache(1024)
def _shown(text: str) -> str:
    """Return what a stranger wrote as a value that can be sent and shown."""
    return plain(text, _LONGEST)
