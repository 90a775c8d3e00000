"""Opens what a router has in Redis, by its settings."""

from __future__ import annotations

import secrets
from hashlib import blake2b

from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_connector.core.index.base import BlockIndex
from ghostcacher_connector.core.open import open_coordination, open_index
from ghostcacher_router.config import RouterSettings


def seed_of(settings: RouterSettings) -> int:
    """Return the seed of digests until a heartbeat tells the fleet's: one that routers share which agree by hash."""
    if settings.replicas == 1:
        return secrets.randbits(64)
    shared = b"ghostcacher seed " + (settings.index_key or "").encode()
    return int.from_bytes(blake2b(shared, digest_size=8).digest(), "big")


def open_stores(settings: RouterSettings) -> tuple[BlockIndex | None, CoordinationStore | None]:
    """Return the index and the coordination store; None without Redis. Raises ConfigError, IndexUnavailable."""
    if not settings.redis:
        return None, None
    key = (settings.index_key or "").encode()
    index = open_index(settings.redis_url, timeout_s=settings.redis_timeout_s, key=key)
    return index, open_coordination(settings.redis_url, index, timeout_s=settings.redis_timeout_s, key=key)
