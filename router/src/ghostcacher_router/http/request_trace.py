"""The spans of one request in the router, where it is traced (`tracing`).

ghostcacher.request           from its last byte read to the end of its answer; a child of what the client names
  ghostcacher.route           one for each placement: how it was decided, and a provider's body written
    ghostcacher.lock_wait     waits for another request that computes the same prefix
  ghostcacher.upstream        one for each time that it was sent to a worker, which is told that it is the parent, or
                              to a hosted provider, which is not told of the trace
"""

from __future__ import annotations

import re

from ghostcacher_connector.core.tracing import HEADERS, Span, Tracer
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.types import Outcome, Placement

_TRACEPARENT = re.compile(rb"(?im)^traceparent:[^\r\n]*\r\n")
HTTP_SERVER_ERROR = 500


def without_traceparent(head: RequestHead) -> RequestHead:
    """Return a head that passes on no traceparent of the client's: the router's own takes its place."""
    if b"traceparent" not in head.headers:
        return head
    return head._replace(forward=_TRACEPARENT.sub(b"", head.forward))


class RequestTrace:
    """The spans of one request, told of waits as a `types.LockWaits`. Times are of the loop's clock, s. Loop only."""

    __slots__ = ("_decision", "_request", "_tracer", "_upstream")

    def __init__(self, tracer: Tracer, head: RequestHead, request_id: bytes, began_at: float) -> None:
        self._tracer = tracer
        found = {name: head.headers.get(name.encode()) for name in HEADERS}
        named = {name: value.decode("latin-1") for name, value in found.items() if value is not None}
        self._request = tracer.span(
            "ghostcacher.request",
            began_at,
            parent=named,
            kind="server",
            method=head.method,
            path=head.path,
            request_id=request_id.decode(),
        )
        self._decision: Span | None = None
        """Of the placement that is being decided."""
        self._upstream: Span | None = None
        """Of the worker that has the request."""

    def __repr__(self) -> str:
        return f"RequestTrace({self._request!r})"

    def deciding(self, at: float) -> None:
        """A worker is wanted, or a provider where none has been found."""
        if self._decision is None:
            self._decision = self._tracer.span("ghostcacher.route", at, parent=self._request)

    def waited(self, began_at: float, ended_at: float, *, worker: str) -> None:
        """See `types.LockWaits`."""
        parent = self._decision or self._request
        self._tracer.span("ghostcacher.lock_wait", began_at, parent=parent, worker=worker).end(ended_at)

    def placed(self, placement: Placement, at: float) -> None:
        """A worker is found."""
        forecast, decision = placement.forecast, self._decision
        self._decision = None
        if decision is not None:
            decision.end(
                at,
                worker=placement.worker,
                reason=placement.reason.value,
                forecast_ms=None if forecast is None else forecast.ttft_ms,
                cached_tokens=None if forecast is None else forecast.cached_tokens,
            )

    def sent(self, placement: Placement, at: float) -> bytes:
        """The request is written to a worker; return the header line that names the parent of what it does there."""
        if self._upstream is not None:
            self._upstream.end(at, error="the connection was closed, and another one is made")
        self._upstream = self._tracer.span(
            "ghostcacher.upstream", at, parent=self._request, kind="client", worker=placement.worker
        )
        return b"traceparent: %b\r\n" % self._upstream.traceparent.encode()

    def left(self, placement: Placement, outcome: Outcome, status: int | None, at: float) -> None:
        """The worker has the request no more, for better or worse. status: of its answer; None when none came."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            fine = outcome in (Outcome.DONE, Outcome.CANCELLED) and (status is None or status < HTTP_SERVER_ERROR)
            upstream.end(
                at,
                error=None if fine else f"{outcome.value}, status {status}",
                outcome=outcome.value,
                status=status,
                ttft_ms=placement.ttft_ms,
            )

    def ended(self, status: int, at: float, *, error: str | None = None) -> None:
        """The request is over. status: as it is counted. error: what the client was told; None for an answer."""
        if self._decision is not None:
            self._decision.end(at, error=error)
        self._request.end(at, error=error if status >= HTTP_SERVER_ERROR else None, status=status)
