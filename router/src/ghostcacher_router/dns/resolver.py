"""Finds the addresses of host names. A name that is slow to resolve costs nothing but a thread.

A name is looked up by at most one thread at a time, and again once its answer is `refresh_s` old. Whoever asks
meanwhile gets the last good answer at once, however old it is: a DNS server that is away changes no address. Only for
a name that was never resolved somebody waits.

Threads are bounded, and names whose last look-up was slow share half of them: so a name that resolves quickly always
finds a thread, however many others hang. They are daemon threads, since `getaddrinfo` cannot be cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from ghostcacher_connector.core.threads import daemon_thread

logger = logging.getLogger(__name__)

THREADS_MAX = 128
"""Look-ups at a time. A thread that waits for a DNS server takes some 50 KiB and a socket."""
SLOW_THREADS_MAX = THREADS_MAX // 2
"""Of these for names whose last look-up was slow."""
SLOW_S = 1.0
"""A look-up that takes longer is slow: resolvers on the same host or network answer within milliseconds."""
FAILED_S = 1.0
"""No name is looked up again sooner for a failure, be it of the look-up or of a connection."""
NAMES_MAX = 8192
"""Names that are remembered; of more, those that were asked for last. Twice as many as workers can be given by URL."""
ADDRESSES_MAX = 8
"""Addresses of one name that are used."""

Lookup = Callable[[str], Sequence[str]]
"""Returns the addresses of a name; blocks, for as long as it likes. Raises OSError."""


class _Name:
    """What is known of one name. Times are of the resolver's clock, in seconds."""

    __slots__ = ("addresses", "due", "error", "host", "slow", "started_at", "waiters")

    def __init__(self, host: str) -> None:
        self.host = host
        self.addresses: tuple[str, ...] = ()
        """The last good answer."""
        self.error: str | None = None
        """Why the last look-up failed; None when it did not."""
        self.due = 0.0
        """When it is to be looked up again."""
        self.slow = False
        """Whether the last look-up was slow."""
        self.started_at = 0.0
        """When a thread began to look it up."""
        self.waiters: asyncio.Future[None] | None = None
        """Done when the look-up that is under way is over; None when none is."""


class Resolver:
    """The addresses of host names, cached. On the event loop only.

    refresh_s: age at which an answer is looked up again. count: told what became of each look-up: "ok"; "kept": it
    failed, and the last good answer stays in use; "failed": it did, and there is none.
    """

    def __init__(
        self,
        *,
        refresh_s: float = 5.0,
        lookup: Lookup | None = None,
        clock: Callable[[], float] = time.monotonic,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._refresh_s = refresh_s
        self._lookup = lookup or look_up
        self._clock = clock
        self._count = count
        self._names: dict[str, _Name] = {}
        self._quick: deque[_Name] = deque()
        self._slow: deque[_Name] = deque()
        self._threads = 0
        self._slow_threads = 0

    def __repr__(self) -> str:
        waiting = len(self._quick) + len(self._slow)
        return f"Resolver(names={len(self._names)}, threads={self._threads}, waiting={waiting})"

    async def addresses(self, host: str) -> tuple[str, ...]:
        """Return the addresses of a host, one or more, in the order in which to try them.

        It waits only for a name that was never resolved, as long as that takes. Raises OSError.
        """
        if is_address(host):
            return (host,)
        name = self._named(host)
        if name.waiters is None and self._clock() >= name.due:
            self._ask(name)
        if not name.addresses and name.waiters is not None:
            await asyncio.shield(name.waiters)
        if not name.addresses:
            raise OSError(f"the name {host} cannot be resolved: {name.error}")
        return name.addresses

    def prefer(self, host: str, address: str) -> None:
        """Try an address of a host first from now on: it has taken a connection."""
        name = self._names.get(host)
        if name is not None and address in name.addresses:
            name.addresses = _first(address, name.addresses)

    def doubt(self, host: str) -> None:
        """Look a name up again at once: no connection could be made."""
        name = self._names.get(host)
        if name is None or name.waiters is not None:
            return
        if self._clock() - name.started_at > FAILED_S:
            self._ask(name)

    def _named(self, host: str) -> _Name:
        """Return what is known of a name, and remember that it was asked for."""
        name = self._names.pop(host, None)
        if name is None:
            if len(self._names) >= NAMES_MAX:
                unused = next((other for other in self._names.values() if other.waiters is None), None)
                if unused is None:
                    raise OSError(f"the name {host} cannot be resolved: {NAMES_MAX} others are being looked up")
                del self._names[unused.host]
            name = _Name(host)
        self._names[host] = name
        return name

    def _ask(self, name: _Name) -> None:
        name.waiters = asyncio.get_running_loop().create_future()
        (self._slow if name.slow else self._quick).append(name)
        self._start_threads()

    def _start_threads(self) -> None:
        while self._quick and self._threads < THREADS_MAX:
            self._start(self._quick.popleft())
        while self._slow and self._threads < THREADS_MAX and self._slow_threads < SLOW_THREADS_MAX:
            self._start(self._slow.popleft())

    def _start(self, name: _Name) -> None:
        loop, host = asyncio.get_running_loop(), name.host
        was_slow = name.slow

        def run() -> None:
            addresses: tuple[str, ...] = ()
            try:
                addresses = tuple(dict.fromkeys(self._lookup(host)))[:ADDRESSES_MAX]
                error = None if addresses else "it has no address"
            except (OSError, UnicodeError) as exc:
                error = getattr(exc, "strerror", None) or str(exc)
            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
                loop.call_soon_threadsafe(self._answered, name, addresses, error, was_slow)

        self._threads += 1
        self._slow_threads += was_slow
        name.started_at = self._clock()
        try:
            daemon_thread("gc-dns", run).start()
        except RuntimeError as exc:  # The system has no thread left.
            loop.call_soon(self._answered, name, (), str(exc), was_slow)

    def _answered(self, name: _Name, addresses: tuple[str, ...], error: str | None, was_slow: bool) -> None:
        """Take in the result of a look-up."""
        now = self._clock()
        self._threads -= 1
        self._slow_threads -= was_slow
        name.slow = now - name.started_at > SLOW_S
        if error is not None:
            if name.error is None and name.addresses:
                logger.warning(
                    "the name %s cannot be resolved: %s; its last addresses stay in use: %s",
                    name.host,
                    error,
                    ", ".join(name.addresses),
                )
            self._count("kept" if name.addresses else "failed")
            name.due = now + min(FAILED_S, self._refresh_s)
        else:
            self._count("ok")
            if name.addresses and name.addresses[0] in addresses:
                addresses = _first(name.addresses[0], addresses)
            name.addresses, name.due = addresses, now + self._refresh_s
        name.error = error
        waiters, name.waiters = name.waiters, None
        if waiters is not None and not waiters.done():
            waiters.set_result(None)
        self._start_threads()


def look_up(host: str) -> Sequence[str]:
    """Return the addresses of a name as the system gives them. Raises OSError, UnicodeError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


def is_address(host: str) -> bool:
    """Say whether a host is an IP address already, with or without a zone."""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _first(address: str, addresses: tuple[str, ...]) -> tuple[str, ...]:
    return (address, *(other for other in addresses if other != address))
