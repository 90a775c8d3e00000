"""One call from a setting to an index, and to the coordination store beside it."""

from __future__ import annotations

from pathlib import Path

from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.index.base import BlockIndex
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.redis.embedded import EmbeddedRedis


class EmbeddedIndex(RedisIndex):
    """A RedisIndex that brings its own Redis along, and brings it back when it is gone."""

    def __init__(self, server: EmbeddedRedis, *, timeout_s: float = 0.25, key: bytes = b"") -> None:
        super().__init__(server.ensure(), timeout_s=timeout_s, key=key, on_unavailable=server.revive)
        self.server = server

    def close(self) -> None:
        super().close()
        self.server.close()


def open_index(
    url: str | None, *, timeout_s: float = 0.25, key: bytes = b"", embedded_directory: Path | None = None
) -> BlockIndex:
    """Return the index at a URL (see redis/url.py), or without one an index in an embedded Redis.

    key: the fleet's secret that authenticates entries and records (see schema.py); those of another key are not seen.
    A Redis that is away is no error here, but at each call. Raises ConfigError for a URL that makes no sense or when
    there is no server to embed, IndexUnavailable when the embedded one does not start.
    """
    if url is not None:
        return RedisIndex(url, timeout_s=timeout_s, key=key)
    return EmbeddedIndex(EmbeddedRedis(embedded_directory), timeout_s=timeout_s, key=key)


def open_coordination(
    url: str | None, index: BlockIndex, *, timeout_s: float = 0.25, key: bytes = b""
) -> CoordinationStore:
    """Return the coordination store in the Redis of an index that `open_index` has returned for this URL and key."""
    if url is None:
        assert isinstance(index, EmbeddedIndex)
        url = index.server.url  # the index starts it again when it is gone
    return RedisCoordinationStore(url, timeout_s=timeout_s, key=key)
