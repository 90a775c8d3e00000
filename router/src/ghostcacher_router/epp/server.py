"""The gRPC server of the endpoint picker: a stream for each HTTP request of a gateway, and the health service."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

import grpc

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import Listen
from ghostcacher_router.epp.exchange import BadMessage, Exchange
from ghostcacher_router.epp.health import HealthService
from ghostcacher_router.epp.held_bodies import HeldBytes
from ghostcacher_router.epp.messages import SERVICE
from ghostcacher_router.epp.parts import Parts
from ghostcacher_router.epp.picking import EndpointPicking
from ghostcacher_router.epp.protocol import ProcessingRequest

logger = logging.getLogger(__name__)

MESSAGE_BYTES_OVER = 1 << 20
"""Of a message beside the piece of a body in it: headers and metadata."""

KEEPALIVE_S = 20.0
"""A gateway that has said nothing for so long is asked whether it is there, and has as long to answer. One whose host
is gone ends no stream: its requests would count as in flight for hours."""
PINGS_APART_S = 5.0
"""A gateway may ask the same so often. Who asks sooner has its connection closed; gRPC's own bound is five minutes."""

HEALTH_CALLS_MAX = 128
"""Health checks and watches, beside gateways' requests: a picker that has all it can take is still a ready one."""
NOTICE_S = 2.0
"""From the first word that a picker ends to the first stream that it refuses. `deploy/envoy` asks once a second."""


class PickerServer:
    """Listens for gateways. On the event loop only. port: where; 0 before it does."""

    def __init__(
        self,
        parts: Parts,
        picking: EndpointPicking,
        *,
        timeout_s: float,
        tls: tuple[bytes, bytes] | None = None,
        has_pool: Callable[[], bool] = lambda: True,
    ) -> None:
        """timeout_s: of waiting before a worker is picked. tls: certificate chain and key, PEM.

        has_pool: says whether it is known who belongs to the pool.
        """
        self._parts, self._picking, self._timeout_s, self._tls = parts, picking, timeout_s, tls
        self._has_pool = has_pool
        self._held = HeldBytes(parts.limits.buffered_bytes_max)
        self._health = HealthService(self._is_ready, lambda: self._draining)
        self._ids = itertools.count(1)
        self._server: Any = None
        self._draining = False
        self._streams = 0
        self.port = 0
        parts.metrics.gauge("gc_epp_streams", "Requests of gateways that are under way.", lambda: {"": self._streams})

    def __repr__(self) -> str:
        return f"PickerServer(port={self.port}, streams={self._streams})"

    @property
    def streams(self) -> int:
        """Requests of gateways that are under way."""
        return self._streams

    async def start(self, listen: Listen) -> None:
        """Begin to listen. Raises ConfigError when the port is taken or the certificate is none."""
        limits = self._parts.limits
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=limits.connections_max + HEALTH_CALLS_MAX,
            options=[
                ("grpc.max_receive_message_length", limits.body_bytes_max + MESSAGE_BYTES_OVER),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1e3)),
                ("grpc.keepalive_timeout_ms", int(KEEPALIVE_S * 1e3)),
                # Otherwise two pings are all, while nothing is written.
                ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_S * 1e3)),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.http2.min_ping_recv_interval_without_data_ms", int(PINGS_APART_S * 1e3)),
            ],
        )
        method = grpc.stream_stream_rpc_method_handler(self._process, ProcessingRequest.FromString)
        handlers = grpc.method_handlers_generic_handler(SERVICE, {"Process": method})
        self._server.add_generic_rpc_handlers((handlers, self._health.handler()))
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(str(listen))
            else:
                certificate, key = self._tls
                credentials = grpc.ssl_server_credentials([(key, certificate)])
                self.port = self._server.add_secure_port(str(listen), credentials)
        except RuntimeError as exc:
            raise ConfigError(f"grpc_listen: expected a free address, got {str(listen)!r}: {exc}") from exc
        if not self.port:
            raise ConfigError(f"grpc_listen: {listen}: expected a free address, and a certificate with its key")
        await self._server.start()

    async def give_notice(self) -> None:
        """Say by the health service that this picker ends, and take streams until those who ask have heard of it."""
        self._draining = True
        if self._health.is_asked:
            await asyncio.sleep(NOTICE_S)

    async def stop(self, grace_s: float) -> None:
        """Take no more streams, let those under way end for so long, and cut the others. Idempotent."""
        self._draining = True
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace_s)

    def _is_ready(self) -> bool:
        return not self._draining and self._has_pool() and self._parts.fleet.has_looked

    def _next_id(self) -> str:
        return f"gc-{self._parts.router}-epp-{next(self._ids)}"

    async def _process(self, _: Any, context: Any) -> None:
        if self._streams >= self._parts.limits.connections_max:
            said = f"expected at most {self._parts.limits.connections_max} requests at once (connections_max)"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, said)
        exchange = Exchange(self._parts, self._picking, self._held, self._next_id, timeout_s=self._timeout_s)
        self._streams += 1
        try:
            while not exchange.over and (request := await context.read()) is not grpc.aio.EOF:
                for answer in await exchange.answers(request):
                    await context.write(answer)
        except BadMessage as exc:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        finally:
            self._streams -= 1
            exchange.closed()
