"""Calls to one Redis: a client that is made when it is first needed, and the one place that knows redis-py's errors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ghostcacher_connector.errors import IndexUnavailable
from ghostcacher_connector.index.connect import Client, RedisTarget, make_client
from ghostcacher_connector.index.lua import Argument, script


class RedisCalls:
    """A client of one Redis, for any thread. Raises IndexUnavailable, and nothing else, when that does not answer.

    timeout_s: bound of each network wait. on_unavailable: called, in the calling thread, whenever Redis could not be
    reached; must not block.
    """

    def __init__(
        self, target: RedisTarget, *, timeout_s: float, on_unavailable: Callable[[], None] | None = None
    ) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._on_unavailable = on_unavailable
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"RedisCalls({self._target.kind}, {self._target.where})"

    def run(self, name: str, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run a script; return its reply."""
        return self.call(lambda client: script(name)(client, keys, args))

    def call(self, command: Callable[[Client], Any]) -> Any:
        with self._translated():
            return command(self._connected())

    def close(self) -> None:
        with self._lock:
            client, self._client, self._closed = self._client, None, True
        if client is not None:
            client.close()

    def _connected(self) -> Client:
        with self._lock:
            if self._closed:
                raise IndexUnavailable(f"Redis at {self._target.where}: this client is closed")
            if self._client is None:
                self._client = make_client(self._target, self._timeout_s)
            return self._client

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, RedisClusterException, OSError) as exc:
            text = f"{type(exc).__name__}: {exc}"
            unreachable = isinstance(exc, (RedisConnectionError, RedisTimeoutError, RedisClusterException, OSError))
            if unreachable and self._on_unavailable is not None:
                self._on_unavailable()
            # A server that does not know AUTH repeats its arguments.
            leaks = any(secret in text for secret in self._target.secrets)
            message = f"Redis at {self._target.where}: {type(exc).__name__ if leaks else text}"
            raise IndexUnavailable(message) from (None if leaks else exc)
        except (ValueError, AttributeError) as exc:
            # What redis-py does when another thread closes the connection on which it waits.
            if not self._closed:
                raise
            raise IndexUnavailable(f"Redis at {self._target.where}: this client was closed") from exc


def milliseconds(seconds: float) -> int:
    """Return a TTL as Redis takes it; never 0, which Redis refuses."""
    return max(1, round(seconds * 1000))
