"""Orders to drop blocks, from routers to workers, and what each worker answers. Small, and kept for a minute.

router --append_flush--> orders (a stream) --flush_orders--> every worker drops what it names, in all of its tiers
worker --put_flush_report--> a value for each order and worker --flush_reports--> the router that asked
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ghostcacher_connector.core.types import Tier

FLUSH_AGE_S = 60.0
"""An order, or an answer, of a minute ago is no longer waited for. A worker that was away holds nothing since then that
peers could find: its lease has run out."""
FLUSHES_MAX = 256
"""Orders of a minute: people give them, and scripts of theirs."""
FLUSHED_BLOCKS_MAX = 4_096
"""The most hashes in one order, 128 KiB."""
ORDER_BYTES = 16
ERROR_CHARS_MAX = 512

_Count = Annotated[int, Meta(ge=0, le=1 << 53)]
_Name = Annotated[str, Meta(max_length=256)]


class FlushOrder(msgspec.Struct, frozen=True, array_like=True):
    """What every worker is to drop."""

    order: Annotated[bytes, Meta(min_length=ORDER_BYTES, max_length=ORDER_BYTES)]
    """Random, and this order's own."""

    scope: _Name
    """What it names: a value of `admin_api.FlushScope`."""

    blocks: Annotated[
        tuple[Annotated[bytes, Meta(min_length=1, max_length=128)], ...], Meta(max_length=FLUSHED_BLOCKS_MAX)
    ]
    """Chain hashes, of "doc" and "prefix"."""

    session: Annotated[bytes, Meta(max_length=64)]
    """The tag that requests of the session bear (core/sections.py), of "session"; else empty."""

    router: _Name
    """Name of the router that gave the order."""


class TierDropped(msgspec.Struct, frozen=True, array_like=True):
    """What one tier of a worker has dropped."""

    tier: Tier
    blocks: _Count
    bytes: _Count
    """On all ranks together; of objects in the fleet, each by the worker that has deleted it."""
    complete: bool = True
    """Whether that is all; if not, another report follows."""
    error: Annotated[str, Meta(max_length=ERROR_CHARS_MAX)] | None = None
    """Why it is not done yet; None when all went well."""


class FlushReport(msgspec.Struct, frozen=True, array_like=True):
    """A worker's answer to an order."""

    dropped: Annotated[tuple[TierDropped, ...], Meta(max_length=len(Tier))]
    """Of each tier that it has."""
