"""The header lines that the router adds to a worker's response: whose it is, and what was forecast for it."""

from __future__ import annotations

from functools import lru_cache

from ghostcacher_router.types import Placement

WORKER_NAMES_MAX = 8192
_FORECAST = (
    b"\r\nx-request-id: %b\r\nx-gc-worker: %b\r\nx-gc-forecast-ms: %.1f\r\nx-gc-cached-tokens: %d"
    b"\r\nx-gc-saved-ms: %.1f"
)


def own_lines(request_id: bytes, placement: Placement) -> bytes:
    """Return the lines, each with a line end in front."""
    if (found := placement.forecast) is None:
        return b"\r\nx-request-id: %b\r\nx-gc-worker: %b" % (request_id, _printable(placement.worker))
    told = (request_id, _printable(placement.worker), found.ttft_ms, found.cached_tokens, found.saved_ms)
    return _FORECAST % told


@lru_cache(WORKER_NAMES_MAX)
def _printable(worker: str) -> bytes:
    """Return a worker's name as a header's value: names come from Redis."""
    return bytes(byte if 0x21 <= byte <= 0x7E else 0x3F for byte in worker.encode())  # noqa: PLR2004
