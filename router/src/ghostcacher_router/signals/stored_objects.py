"""Which worker holds which stored object: an answer, a file or a batch, shared by all routers through the store.

Engines keep these in the memory of one process, so a request that names one has to go there. Ids are bound to workers
as sessions are, under keys of their own, but for three things. A router that does not know an id asks the store and
waits for the answer, since any other worker would say that there is no such object. A new id is written at once, since
the client may use it at another router next. And what one router forgets for want of room leaves the store, too, so
that both are bounded.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256

from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_router.ports import Clock, Offload
from ghostcacher_router.signals.sessions import SessionAffinity

TTL_S = 4 * 3600.0
READS_MAX = 3
READ_S = 0.25
PAUSE_S = 0.03
"""A new id may be on its way from the router that saw it: it is asked for so often, after such pauses, and each time
waited for at most `READ_S`. Only ids that no router knows take all of it."""
WRITE_S = 0.5
"""What could not be written is tried again so often."""


class StoredObjects:
    """Id of a stored object -> the name of its worker. On the event loop only; the store is asked in threads."""

    def __init__(
        self, store: CoordinationStore | None, offload: Offload, clock: Clock, *, ttl_s: float = TTL_S
    ) -> None:
        self._homes = SessionAffinity(store, offload, clock, ttl_s=ttl_s, forget_evicted=True)
        self._has_unwritten = asyncio.Event()

    def __repr__(self) -> str:
        return f"StoredObjects({self._homes!r})"

    def unknown(self, object_id: str) -> bool:
        """Return whether the store has to be asked: the id is not known here, and there is a store that answers."""
        key = _key(object_id)
        return self._homes.get(key) is None and self._homes.askable

    def holder(self, object_id: str) -> str | None:
        """Return the worker that holds an object, as far as it is known here."""
        return self._homes.get(_key(object_id))

    async def fetch(self, object_id: str) -> None:
        """Read an id from the store. Bounded by `READS_MAX` reads."""
        key = _key(object_id)
        for number in range(READS_MAX):
            if number:
                await asyncio.sleep(PAUSE_S)
            if not await self._homes.fetch(key, READ_S) or self._homes.get(key) is not None:
                return

    def put(self, object_id: str, worker: str) -> None:
        """Note that a worker holds an object, or that it was used there."""
        self._homes.bind(_key(object_id), worker)
        self._has_unwritten.set()

    async def write(self) -> None:
        """Wait for something new, at most `WRITE_S`, and write it to the store."""
        try:
            async with asyncio.timeout(WRITE_S):
                await self._has_unwritten.wait()
        except TimeoutError:
            pass
        await self.flush()

    async def flush(self) -> None:
        """Write what is new to the store. Bounded by the store's time-out."""
        self._has_unwritten.clear()
        await self._homes.write()

    def stop(self) -> None:
        """Read nothing more."""
        self._homes.stop()


def _key(object_id: str) -> bytes:
    """Return the key of an object, which is never that of a session: no model's name contains this byte."""
    return sha256(b"\xffstored\0" + object_id.encode(errors="surrogatepass")).digest()
