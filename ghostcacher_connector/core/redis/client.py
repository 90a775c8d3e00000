"""Calls to one Redis: a client that is made when it is first needed, its Lua scripts, and the one place that knows
redis-py's errors.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

from redis.exceptions import AuthenticationError, NoPermissionError, NoScriptError, RedisClusterException, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ghostcacher_connector.core.errors import IndexRefused, IndexReplyTooLarge, IndexUnavailable
from ghostcacher_connector.core.redis.reply_bounds import ReplyTooLarge
from ghostcacher_connector.core.redis.url import Client, RedisTarget, make_client

Argument = str | bytes | int

_PERMISSION_SIGNS = ("NOPERM", "The user executing the script can't", "ACL failure in script")
"""How Redis 6.2 and later begin what they say of a command in a script that the user may not run."""


class RedisCalls:
    """A client of one Redis, for any thread. Raises IndexUnavailable, and nothing else, when that does not answer.

    scripts: the package whose `scripts` folder holds the Lua scripts that `run` names.
    timeout_s: bound of each network wait. on_unavailable: called, in the calling thread, whenever Redis could not be
    reached; must not block.
    """

    def __init__(
        self,
        target: RedisTarget,
        *,
        scripts: str,
        timeout_s: float,
        on_unavailable: Callable[[], None] | None = None,
    ) -> None:
        self._target = target
        self._scripts = scripts
        self._timeout_s = timeout_s
        self._on_unavailable = on_unavailable
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"RedisCalls({self._target.kind}, {self._target.where})"

    def run(self, name: str, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run a script; return its reply."""
        return self.call(lambda client: script(self._scripts, name)(client, keys, args))

    def time(self, key: str) -> tuple[bytes, bytes]:
        """Return the time (s, us) of the server where a key lies."""
        seconds, us = self.call(lambda client: script(__package__, "now")(client, [key], []))
        return seconds, us

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
            refusal = refusal_of(exc)
            unreachable = isinstance(exc, (RedisConnectionError, RedisTimeoutError, RedisClusterException, OSError))
            if unreachable and refusal is None and self._on_unavailable is not None:
                self._on_unavailable()
            message = f"Redis at {self._target.where}: {text_of(exc, self._target.secrets)}"
            kind = (
                IndexRefused if refusal else IndexReplyTooLarge if isinstance(exc, ReplyTooLarge) else IndexUnavailable
            )
            raise kind(message) from (None if _leaks(exc, self._target.secrets) else exc)
        except (ValueError, AttributeError) as exc:
            # What redis-py does when another thread closes the connection on which it waits.
            if not self._closed:
                raise
            raise IndexUnavailable(f"Redis at {self._target.where}: this client was closed") from exc


def refusal_of(exc: BaseException | None) -> str | None:
    """Return in which way Redis refuses us, in words, with what it said itself; None when that is not what happened."""
    found = _refusal(exc)
    return None if found is None else ": ".join(found)


def text_of(exc: Exception, secrets: tuple[str, ...]) -> str:
    """Return what went wrong, in words. What Redis said itself is left out where it has one of the secrets in it."""
    words, said = _refusal(exc) or (type(exc).__name__, str(exc))
    return words if _leaks(exc, secrets) else f"{words}: {said}"


def _leaks(exc: Exception, secrets: tuple[str, ...]) -> bool:
    """Whether a secret is in what Redis said: a server that does not know AUTH repeats its arguments."""
    said = (_refusal(exc) or ("", str(exc)))[1]
    return any(secret in said for secret in secrets)


def _refusal(exc: BaseException | None) -> tuple[str, str] | None:
    """Return in which way Redis refuses us, in words of ours, and what it said itself."""
    while exc is not None:
        text = str(exc)
        if isinstance(exc, AuthenticationError) or text.startswith(("NOAUTH", "WRONGPASS")):
            return "wrong user or password", text
        if isinstance(exc, NoPermissionError) or any(sign in text for sign in _PERMISSION_SIGNS):
            return "this user lacks a permission (NOPERM)", text
        exc = exc.__cause__ or exc.__context__
    return None


def milliseconds(seconds: float) -> int:
    """Return a TTL as Redis takes it; never 0, which Redis refuses."""
    return max(1, round(seconds * 1000))


class Script:
    """A Lua script in the `scripts` folder of a package; it costs one round trip once the server has it."""

    def __init__(self, package: str, name: str) -> None:
        self.name = name
        self._source = _source(__package__, "prelude") + _source(package, name)
        # Redis names a script by its SHA-1; nothing here relies on that for security.
        self.sha = hashlib.sha1(self._source.encode(), usedforsecurity=False).hexdigest()

    def __repr__(self) -> str:
        return f"Script({self.name})"

    def __call__(self, client: Client, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run the script where `keys` are. A server that does not have it gets its source along."""
        try:
            return client.evalsha(self.sha, len(keys), *keys, *args)
        except NoScriptError:
            # EVAL, unlike SCRIPT LOAD, goes to the shard of the keys, and the server keeps the source.
            return client.eval(self._source, len(keys), *keys, *args)


def _source(package: str, name: str) -> str:
    return files(package).joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")


@cache
def script(package: str, name: str) -> Script:
    """Return the script of that name in a package, read once."""
    return Script(package, name)
