"""The header lines that the router adds to a worker's response: whose it is, and what was forecast for it."""

from __future__ import annotations

from functools import lru_cache

from ghostcacher_router.types import Placement

WORKER_NAMES_MAX = 8192


def own_lines(request_id: bytes, placement: Placement) -> bytes:
    """Return the lines, each with a line end in front."""
    lines = b"\r\nx-request-id: %b\r\nx-gc-worker: %b" % (request_id, _printable(placement.worker))
    if (found := placement.forecast) is not None:
        lines += b"\r\nx-gc-forecast-ms: %.1f\r\nx-gc-cached-tokens: %d" % (found.ttft_ms, found.cached_tokens)
        lines += b"\r\nx-gc-saved-ms: %.1f" % found.saved_ms
    return lines


@lru_cache(WORKER_NAMES_MAX)
def _printable(worker: str) -> bytes:
    """Return a worker's name as a header's value: names come from Redis."""
    return bytes(byte if 0x21 <= byte <= 0x7E else 0x3F for byte in worker.encode())  # noqa: PLR2004
