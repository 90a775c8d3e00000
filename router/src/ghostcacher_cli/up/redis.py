"""The Redis of a fleet on this machine: the one that was named, or the embedded one of this user."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Self

import redis

from ghostcacher_connector.core.redis.embedded import EmbeddedRedis
from ghostcacher_connector.core.redis.url import make_client, parse_redis_url

CHECK_TIMEOUT_S = 2.0


class FleetRedis(AbstractContextManager["FleetRedis"]):
    """Where the index is. warning: what people should know of it at the start."""

    def __init__(self, url: str | None) -> None:
        """Start the embedded one when no URL is given. Raises ConfigError and IndexUnavailable."""
        self._embedded = EmbeddedRedis() if url is None else None
        self.warning: str | None = None
        if self._embedded is not None:
            self.url = self._embedded.ensure()
            self.where = self.url
        elif url is not None:
            self.url = url
            self.where, self.warning = _check(url)

    def __repr__(self) -> str:
        return f"FleetRedis({self.where})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._embedded is not None:
            self._embedded.close()

    def step(self) -> None:
        """See to it that the embedded one comes back when it has ended. Never waits."""
        if self._embedded is not None:
            self._embedded.revive()


def _check(url: str) -> tuple[str, str | None]:
    """Return where a URL leads, without its secrets, and a warning when nothing answers there."""
    target = parse_redis_url(url)
    try:
        client = make_client(target, CHECK_TIMEOUT_S)
        with suppress(redis.AuthenticationError):
            client.ping()
        client.close()
    except (redis.RedisError, OSError) as exc:
        problem = type(exc).__name__
        return target.where, f"Redis at {target.where} does not answer ({problem}): until it does, nothing is shared"
    return target.where, None
