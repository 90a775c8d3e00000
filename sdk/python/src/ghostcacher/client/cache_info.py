"""What the shared cache did for a request, as the router and the engine tell it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec


class CacheInfo(msgspec.Struct, frozen=True):
    """What the shared cache did for one request. None where nobody told it."""

    worker: str | None = None
    """The worker that answered."""
    request_id: str | None = None
    """The id under which the router and its log know the request."""
    forecast_ms: float | None = None
    """The router's forecast of the time to first token, in ms."""
    forecast_cached_tokens: int | None = None
    """Tokens of the prompt that needed no computing, by the router's forecast."""
    saved_ms: float | None = None
    """How much sooner the first token comes for what was cached, by the router's forecast, in ms."""
    cached_tokens: int | None = None
    """Tokens of the prompt that were in a cache, as the engine counts them in its answer's usage. Of a stream it is
    known once the event with the usage has come."""


def cache_info_of(headers: Mapping[str, str]) -> CacheInfo:
    """Return what the headers of an answer tell."""
    tokens = _number(headers.get("x-gc-cached-tokens"))
    return CacheInfo(
        worker=headers.get("x-gc-worker"),
        request_id=headers.get("x-request-id"),
        forecast_ms=_number(headers.get("x-gc-forecast-ms")),
        forecast_cached_tokens=None if tokens is None else int(tokens),
        saved_ms=_number(headers.get("x-gc-saved-ms")),
    )


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
