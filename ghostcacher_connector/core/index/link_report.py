"""What a rank reports of its links: how fast it reads each of its peers. A report of the index, like any other.

Field ``<rank>:<peer>`` of the report ``links.<rank>`` is a packed LinkReport.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from ghostcacher_connector.core.errors import ProtocolError

MESSAGE_BYTES_MAX = 4096

M = TypeVar("M", bound=msgspec.Struct)


class LinkReport(msgspec.Struct, frozen=True, kw_only=True):
    """One timed pull from a peer."""

    ok: bool
    transport: str | None
    """Name of the transport that carried it; None when none did."""

    bytes_per_s: float | None
    """None when it was not measured."""

    rtt_us: float | None
    """None when it was not measured."""

    error: str
    """What went wrong, empty when nothing did."""

    at: float
    """Seconds since the epoch."""

    request: str = ""
    """Id of the request that it answers; empty when it was measured by itself."""


def links_report(rank: int) -> str:
    return f"links.{rank}"


def unpack(packed: bytes, kind: type[M]) -> M:
    """Return a message that came from the index. Raises ProtocolError."""
    if len(packed) > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"{kind.__name__}: expected at most {MESSAGE_BYTES_MAX} bytes, got {len(packed)}")
    try:
        return msgspec.msgpack.decode(packed, type=kind)
    except msgspec.DecodeError as exc:
        raise ProtocolError(f"{kind.__name__}: {exc}") from exc
