"""The health service of gRPC, under the names that the endpoint picker protocol gives.

    liveness                            SERVING while the process answers
    readiness, the picker's service     SERVING when the fleet has been looked at once, and the picker does not stop
    no name                             the same as readiness

A picker without a ready worker is ready: it says so to clients, and a gateway that went on without it would not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb

from ghostcacher_router.epp.messages import SERVICE

HEALTH_SERVICE = "grpc.health.v1.Health"
LIVENESS, READINESS = "liveness", "readiness"
WATCH_POLL_S = 0.5
ASKED_S = 15.0
"""Whoever asks does so several times in this time."""
WATCHES_MAX = 64
"""At a time: whoever watches stays, and must not take the place of those that only ask."""


class HealthService:
    """Answers health checks. ready: says whether requests can be picked for. ending: whether the picker stops."""

    def __init__(self, ready: Callable[[], bool], ending: Callable[[], bool]) -> None:
        self._ready, self._ending = ready, ending
        self._watches = 0
        self._asked_at = float("-inf")

    @property
    def is_asked(self) -> bool:
        """Whether somebody goes by what is said here."""
        return self._watches > 0 or asyncio.get_running_loop().time() - self._asked_at < ASKED_S

    def handler(self) -> Any:
        """Return what a gRPC server takes."""
        check = grpc.unary_unary_rpc_method_handler(
            self._check, pb.HealthCheckRequest.FromString, pb.HealthCheckResponse.SerializeToString
        )
        watch = grpc.unary_stream_rpc_method_handler(
            self._watch, pb.HealthCheckRequest.FromString, pb.HealthCheckResponse.SerializeToString
        )
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, {"Check": check, "Watch": watch})

    def status(self, service: str) -> int:
        """Return the status of a service, of `HealthCheckResponse`."""
        if service == LIVENESS:
            return int(pb.HealthCheckResponse.SERVING)
        if service in ("", READINESS, SERVICE):
            status = pb.HealthCheckResponse.SERVING if self._ready() else pb.HealthCheckResponse.NOT_SERVING
            return int(status)
        return int(pb.HealthCheckResponse.SERVICE_UNKNOWN)

    async def _check(self, request: Any, context: Any) -> Any:
        self._asked_at = asyncio.get_running_loop().time()
        status = self.status(request.service)
        if status == pb.HealthCheckResponse.SERVICE_UNKNOWN:
            expected = f"expected {LIVENESS}, {READINESS}, {SERVICE} or nothing"
            await context.abort(grpc.StatusCode.NOT_FOUND, f"service {request.service[:200]!r}: {expected}")
        return pb.HealthCheckResponse(status=status)

    async def _watch(self, request: Any, context: Any) -> None:
        if self._watches >= WATCHES_MAX:
            said = f"expected at most {WATCHES_MAX} watches at once: ask with Check"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, said)
        self._watches += 1
        try:
            await self._tell(request, context)
        finally:
            self._watches -= 1

    async def _tell(self, request: Any, context: Any) -> None:
        last: int | None = None
        while True:
            status = self.status(request.service)
            if status != last:
                last = status
                await context.write(pb.HealthCheckResponse(status=status))
            if self._ending():
                return  # Whoever watches would hold up the end.
            await asyncio.sleep(WATCH_POLL_S)
