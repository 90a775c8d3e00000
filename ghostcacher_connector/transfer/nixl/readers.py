"""The reading agent of a rank, and its replacement by force: what ends a READ that does not end by itself.

A rank has two NIXL agents. The *serving* one registers what peers read, and lives as long as the rank. The *reading*
one is private: it READs from peers, and nobody outside knows it. So it can be destroyed, with everything that it has in
flight, and no peer notices; the next pull makes a new one (15 ms and 10 MB here, and the registration of the memory).

    CURRENT --a READ overdue, or failed in part--> RETIRED --its other pulls are over--> destroyed: quarantines end

Why by force: NIXL promises nothing of a READ that was given up. Releasing its handle or removing its peer leaves it
able to land later (measured). Destroying the agent ends the UCX workers, and with them the queue pairs of RDMA and
whoever would copy what an emulated READ brings; on a GPU the device is waited for after that.

What bounds a quarantine. A READ into the engine's slots is given `OVERDUE_GRACE_S` after its deadline, then its reader
is retired. The other pulls of that reader go on to their own deadlines, with the same grace, so that it is idle one
pull's timeout and grace later at the latest; then it is destroyed, which takes a fraction of a second. Meanwhile new
pulls use a new reader. The engine's request waits so long: an engine can neither swap the slots of a pull that it waits
for, nor be told to compute them while something may land in them. If the library does not let go of an agent, that is
tried again and again: the slots stay with their request, the only one that suffers, and `gc_quarantined_reads` stays
above zero. After `RETIRED_MAX` such agents this transport stops pulling, and the others (the relay, computing) go on.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.core.errors import GhostCacherError, PeerUnreachable
from ghostcacher_connector.core.types import RankEndpoint
from ghostcacher_connector.transfer.nixl.reader import NixlReader

logger = logging.getLogger(__name__)

OVERDUE_GRACE_S = 2.0
"""How long a READ may be overdue before its reader is taken down, which costs the connections to all peers."""

RETIRED_MAX = 2
"""Readers that wait to be destroyed, at most: each keeps its connections and registrations until then."""

SPARE_BUFFERS = 2
"""Bounce buffers beyond one a pulling thread. A reader of which as many are quarantined is taken down: with more of
them, pulls from healthy peers would find none."""

RENEW_WAIT_S = 2.0
"""How long a pull waits while another thread makes a new reader."""

DESTROY_PAUSE_S = 0.05
DESTROY_PAUSE_MAX_S = 5.0


class Lent:
    """A reader and its users. Guarded by the lock of `Readers`."""

    def __init__(self, reader: NixlReader) -> None:
        self.reader = reader
        self.users = 0
        """Pulls and probes that are inside it."""
        self.unfinished = 0
        """READs into the engine's slots that it has left unfinished."""
        self.over = threading.Event()
        """Set once the reader is destroyed, and nothing that it read can land any more."""


class Readers:
    """The current reader of a rank, and the retired ones that are being taken down. Thread-safe."""

    def __init__(self, make: Callable[[], NixlReader], clock: Callable[[], float]) -> None:
        """make: returns a new reader, with an agent of its own. Raises what `make` raises."""
        self._make = make
        self._clock = clock
        self._idle = threading.Condition()
        self._making = threading.Lock()
        self._backoff = Backoff()
        self._current: Lent | None = Lent(make())
        self._retired: list[Lent] = []
        self._closed = False

    def __repr__(self) -> str:
        return f"Readers({self._current.reader if self._current else None}, {len(self._retired)} retired)"

    @property
    def quarantined_count(self) -> int:
        """How many READs were given up, or failed in part, and may still land."""
        with self._idle:
            retired = sum(lent.unfinished + lent.reader.buffers.quarantined_count() for lent in self._retired)
        with self._present() as lent:
            return retired + (lent.reader.buffers.reap() if lent is not None else 0)

    @contextlib.contextmanager
    def use(self) -> Iterator[Lent]:
        """Lend the current reader; it is not destroyed meanwhile. Raises PeerUnreachable when there is none."""
        lent = self._borrow()
        try:
            yield lent
        finally:
            self._give_back(lent)
            if lent.reader.buffers.quarantined_count() >= SPARE_BUFFERS:
                self.retire(lent, "too many of its READs were given up")

    def retire(self, lent: Lent, why: str, *, unfinished: int = 0) -> threading.Event:
        """Take a reader down; return what is set once nothing that it read can land any more. Never waits.

        unfinished: READs into the engine's slots because of which it is taken down.
        """
        with self._idle:
            lent.unfinished += unfinished
            if lent is self._current:
                self._current = None
                self._retired.append(lent)
                logger.warning("taking down %s: %s", lent.reader, why)
                threading.Thread(target=self._take_down, args=(lent,), name="gc-take-down", daemon=True).start()
        return lent.over

    def forget(self, peer: RankEndpoint) -> None:
        """Drop the connection to a peer."""
        with self._present() as lent:
            if lent is not None:
                lent.reader.links.forget(peer)

    def close(self) -> None:
        """Close the current reader, in which nothing must be in flight; retired ones end by themselves. Idempotent."""
        with self._idle:
            current, self._current, self._closed = self._current, None, True
        if current is not None:
            current.reader.close()

    @contextlib.contextmanager
    def _present(self) -> Iterator[Lent | None]:
        """Lend the current reader if there is one; never makes one."""
        lent = self._borrow_present()
        try:
            yield lent
        finally:
            if lent is not None:
                self._give_back(lent)

    def _borrow_present(self) -> Lent | None:
        with self._idle:
            if self._current is not None:
                self._current.users += 1
            return self._current

    def _give_back(self, lent: Lent) -> None:
        with self._idle:
            lent.users -= 1
            self._idle.notify_all()

    def _borrow(self) -> Lent:
        if (present := self._borrow_present()) is not None:
            return present
        if not self._making.acquire(timeout=RENEW_WAIT_S):
            raise PeerUnreachable("the reading agent is still being replaced")
        try:
            self._renew()
        finally:
            self._making.release()
        if (present := self._borrow_present()) is None:
            raise PeerUnreachable("the reading agent was replaced, and failed again")
        return present

    def _renew(self) -> None:
        """Make a new reader, unless another thread has. Raises PeerUnreachable."""
        with self._idle:
            if self._current is not None:
                return
            if self._closed:
                raise PeerUnreachable("the transport is closed")
            if len(self._retired) >= RETIRED_MAX or not self._backoff.ready(self._clock()):
                raise PeerUnreachable(f"no reading agent: {len(self._retired)} wait to be destroyed")
        try:
            made = Lent(self._make())
        except GhostCacherError as exc:
            self._backoff.failed(self._clock())
            logger.warning("a new reading agent does not start: %s", exc)
            raise PeerUnreachable(f"a new reading agent does not start: {exc}") from exc
        with self._idle:
            self._backoff.succeeded()
            closed = self._closed
            self._current = None if closed else made
        if closed:
            made.reader.close()
            raise PeerUnreachable("the transport is closed")

    def _take_down(self, lent: Lent) -> None:
        with self._idle:
            self._idle.wait_for(lambda: lent.users == 0)  # each of them ends by its deadline and the grace
        pause_s = DESTROY_PAUSE_S
        while not lent.reader.destroy():
            logger.warning("%s is not gone yet; its slots stay in quarantine", lent.reader)
            time.sleep(pause_s)
            pause_s = min(DESTROY_PAUSE_MAX_S, 2 * pause_s)
        with self._idle:
            self._retired.remove(lent)
        lent.over.set()
        logger.info("%s is gone: nothing that it read can land any more", lent.reader)
