"""What the settings say of the object tier, in the units that it counts in."""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

from ghostcacher_connector.config import Settings

HOUR_S = 3600.0


class TierOptions(NamedTuple):
    """Bounds of one rank's object tier, and of the store."""

    ttl_s: float = 168 * HOUR_S
    """How long an object is kept after its last use."""

    bytes_max: int = 100 << 30
    """What all objects of the whole fleet may take."""

    queue_bytes: int = 256 << 20
    """What may wait to be written in this rank."""

    timeout_s: float = 10.0
    """Bound of one request to the store."""

    compress: Literal["auto", "always", "never", "fp8"] = "auto"
    """Whether objects are compressed; auto: where it pays; fp8: their blocks are rounded to 8 bits."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return what these settings say."""
        return cls(
            ttl_s=settings.object_ttl_h * HOUR_S,
            bytes_max=int(settings.object_max_gib * (1 << 30)),
            queue_bytes=settings.object_queue_mib << 20,
            timeout_s=settings.object_timeout_s,
            compress=settings.object_compression,
        )
