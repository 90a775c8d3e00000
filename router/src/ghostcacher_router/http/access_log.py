"""The access log: one line for each request that has ended, with what was forecast for it and what came."""

from __future__ import annotations

import logging
from itertools import islice

from ghostcacher_connector.core.log_format import with_fields
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.types import GRID_BYTES, Placement, Prompt

access = logging.getLogger("ghostcacher_router.access")

PREFIX_MAX = 4_096
"""Digests of one prompt: of its first 4 MiB, about a million tokens."""
DIGEST_BYTES = 8
"""Of a digest, in a log: enough to tell prompts apart."""


def log_request(
    peer: str | None,
    head: RequestHead | None,
    status: int,
    request_id: bytes | None,
    *,
    worker: str | None,
    placement: Placement | None,
    took_ms: float,
    prompts: bool,
    queued_ms: float | None = None,
) -> None:
    """Log a request; without its query, since that may hold a secret.

    head: None when it could not be read. worker: whose answer the client got, or who was to give one. placement: of the
    last attempt; None where there is none to tell of. took_ms: since a worker was first wanted for it. prompts: whether
    the fields say how long its prompt is and what it begins with. queued_ms: of that it waited for its turn; None
    without flow control, which adds the field.
    """
    forecast = None if placement is None else placement.forecast
    fields: dict[str, object] = {
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
    if prompts:
        fields |= _prompt_fields(None if placement is None else placement.prompt)
    if queued_ms is not None:
        fields["queued_ms"] = round(queued_ms, 1)
    what = "-" if head is None else f"{head.method} {head.path}"
    shown = {name: "-" if value is None else value for name, value in fields.items()}
    access.info(
        '%s "%s" %d %s %s, forecast %s ms, TTFT %s ms, cached %s tokens, %.1f ms %s%s',
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
        "" if queued_ms is None else f", queued {queued_ms:.1f} ms",
        extra=with_fields(fields),
    )


def _prompt_fields(prompt: Prompt | None) -> dict[str, object]:
    """Return how long a prompt is, and a digest of all that comes before each whole KiB of it, under the fleet's seed.

    Prompts have as many equal digests as they have equal KiBs at their beginning; no text can be read from them.
    """
    if prompt is None:
        return {"prompt_bytes": None, "prompt_tokens": None, "prefix": None}
    whole = (digest for end, digest in zip(prompt.ends, prompt.digests, strict=True) if not end % GRID_BYTES)
    prefix = [digest[:DIGEST_BYTES].hex() for digest in islice(whole, PREFIX_MAX)]
    return {"prompt_bytes": prompt.size, "prompt_tokens": prompt.tokens, "prefix": prefix}
