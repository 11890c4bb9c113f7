"""The hinter as the service that an Envoy asks about each request: `ext_proc`, over gRPC."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from sooner.core import MissingExtra
from sooner.gateway.hints import envoy_wire as wire
from sooner.gateway.hints.ext_proc import Consultation
from sooner.gateway.hints.hinter import Hinter
from sooner.gateway.hints.pages import page, pages_at
from sooner.gateway.hints.settings import HintSettings

try:
    import grpc
    import grpc.aio
except ImportError as error:
    raise MissingExtra("grpcio", "envoy") from error

logger = logging.getLogger("sooner.hint")

_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"  # HealthCheckResponse: its field 1, `status`
_KNOWN = (b"", b"\x0a%c%b" % (len(wire.SERVICE), wire.SERVICE.encode()))  # HealthCheckRequest: 1, `service`


class ExtProcServer:
    """Everything that runs: made in an event loop, started by `serving`."""

    def __init__(self, settings: HintSettings) -> None:
        self.settings = settings
        self.hinter = Hinter(settings)
        self.closing = False
        self.url = ""
        self.pages_url = ""
        self.under_way = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[ExtProcServer]:
        """Serve in the running loop; at the end what is under way is finished, within `drain`."""
        settings = self.settings
        try:
            server = grpc.aio.server(options=[
                ("grpc.so_reuseport", 0),  # two of one port are a mistake
                ("grpc.max_receive_message_length", 2 * settings.max_body),
                ("grpc.max_send_message_length", -1),
            ])  # fmt: skip
            server.add_generic_rpc_handlers((
                grpc.method_handlers_generic_handler(
                    wire.SERVICE, {"Process": grpc.stream_stream_rpc_method_handler(self._process)}
                ),
                grpc.method_handlers_generic_handler(
                    wire.HEALTH_SERVICE, {"Check": grpc.unary_unary_rpc_method_handler(self._health)}
                ),
            ))  # fmt: skip
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            try:
                port = server.add_insecure_port(f"{host}:{settings.port}")
            except RuntimeError as error:
                raise OSError(errno.EADDRINUSE, f"cannot listen at {host}:{settings.port}") from error
            self.url = f"grpc://{host}:{port}"
            await server.start()
            try:
                async with AsyncExitStack() as stack:
                    if settings.metrics_port is not None:
                        pages = pages_at(settings.host, settings.metrics_port, self._page)
                        self.pages_url = await stack.enter_async_context(pages)
                    yield self
            finally:
                self.closing = True
                await server.stop(settings.drain)
        finally:
            self.hinter.close()

    def _page(self, path: str) -> bytes | None:
        return page(path, self.hinter, self.closing, self.under_way)

    async def _process(self, _: Any, stream: Any) -> None:
        """Answer what Envoy asks of one request; the stream ends when there is no more to say."""
        asked = Consultation(self.hinter)
        self.under_way += 1
        try:
            while not asked.over and (sent := await stream.read()) is not grpc.aio.EOF:
                for answer in await asked.answers(sent):
                    await stream.write(answer)
        except Exception as error:  # Envoy goes on by itself where the stream ends
            self.hinter.counters.warn("hook_errors", "Envoy was not answered: %r", error)
        finally:
            self.under_way -= 1

    async def _health(self, sent: bytes, call: Any) -> bytes:
        if sent not in _KNOWN:
            await call.abort(grpc.StatusCode.NOT_FOUND, f"allowed: no name, or {wire.SERVICE}")
        return _NOT_SERVING if self.closing else _SERVING
