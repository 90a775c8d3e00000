"""The access log: one line for each request that has ended, with what was forecast for it and what came."""

from __future__ import annotations

import logging

from ghostcacher_connector.core.log_format import with_fields
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.types import Placement

access = logging.getLogger("ghostcacher_router.access")


def log_request(
    peer: str | None,
    head: RequestHead | None,
    status: int,
    request_id: bytes | None,
    *,
    worker: str | None,
    placement: Placement | None,
    took_ms: float,
) -> None:
    """Log a request; without its query, since that may hold a secret.

    head: None when it could not be read. worker: whose answer the client got, or who was to give one. placement: of the
    last attempt; None where there is none to tell of. took_ms: since a worker was first wanted for it.
    """
    forecast = None if placement is None else placement.forecast
    fields = {
        "client": peer,
        "method": None if head is None else head.method,
        "path": None if head is None else head.path,
        "status": status,
        "worker": worker,
        "reason": None if placement is None else placement.reason.value,
        "forecast_ms": None if forecast is None else round(forecast.ttft_ms, 1),
        "ttft_ms": None if placement is None or placement.ttft_ms is None else round(placement.ttft_ms, 1),
        "cached_tokens": None if forecast is None else forecast.cached_tokens,
        "took_ms": round(took_ms, 1),
        "request_id": None if request_id is None else request_id.decode(),
    }
    what = "-" if head is None else f"{head.method} {head.path}"
    shown = {name: "-" if value is None else value for name, value in fields.items()}
    access.info(
        '%s "%s" %d %s %s, forecast %s ms, TTFT %s ms, cached %s tokens, %.1f ms %s',
        shown["client"],
        what,
        status,
        shown["worker"],
        shown["reason"],
        shown["forecast_ms"],
        shown["ttft_ms"],
        shown["cached_tokens"],
        took_ms,
        shown["request_id"],
        extra=with_fields(fields),
    )
