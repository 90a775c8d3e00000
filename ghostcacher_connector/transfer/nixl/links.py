"""Which peers the NIXL agent is connected to, and how many READs each connection carries.

A connection is only torn down when nothing is in flight on it (a quarantined READ counts): NIXL promises nothing about
READs from a peer that was removed. States of a link:

    NEW --connect and prove--> UP --failed--> BROKEN --idle, backoff over--> (connect again)
                                '--forget---> GONE   --idle--> removed
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.core.errors import PeerUnreachable, TransferError
from ghostcacher_connector.core.types import RankEndpoint
from ghostcacher_connector.transfer.nixl.agent import NixlAgent

logger = logging.getLogger(__name__)


class Link:
    """The connection to one agent of a peer. Its fields are guarded by `lock`."""

    def __init__(self, name: str) -> None:
        self.name = name
        """The name of the peer's agent."""
        self.lock = threading.RLock()
        self.backoff = Backoff()
        self.metadata: bytes | None = None
        """What was last connected with; None before the first try."""
        self.loaded = False
        """Whether the agent knows the peer, and must be told to forget it."""
        self.up = False
        """Whether the connection was proven to carry READs and none has failed since."""
        self.gone = False
        """Whether the peer was forgotten: the last use takes the connection down."""
        self.in_flight = 0
        """How many pulls use the connection, and READs that were given up."""
        self.last_error = ""


class PeerLinks:
    """All links of one agent. Thread-safe; a peer that does not answer holds up only those who want it."""

    def __init__(
        self,
        agent: NixlAgent,
        prove: Callable[[Link, RankEndpoint], None],
        clock: Callable[[], float],
        connect_s: float,
    ) -> None:
        """prove: shows that a new connection carries READs, or raises TransferError. connect_s: bound of connecting."""
        self._agent = agent
        self._prove = prove
        self._clock = clock
        self._connect_s = connect_s
        self._lock = threading.Lock()
        self._links: dict[str, Link] = {}

    @contextlib.contextmanager
    def use(self, peer: RankEndpoint) -> Iterator[Link]:
        """Hold a peer's connection, connecting first if need be. Raises PeerUnreachable."""
        link = self._acquire(peer)
        try:
            yield link
        finally:
            self.release(link)

    def hold(self, link: Link) -> None:
        """Count one more READ in flight on a link that is held already; undone by `release`."""
        with link.lock:
            link.in_flight += 1

    def release(self, link: Link) -> None:
        """Count one use less; the last one takes a forgotten link down."""
        with link.lock:
            link.in_flight -= 1
            self._unload_if_idle(link)

    def failed(self, link: Link, error: str) -> None:
        """Back off from a peer after a failure: it is connected to anew, once idle and after a pause."""
        with link.lock:
            if link.up:
                link.backoff.failed(self._clock())
            link.up = False
            link.last_error = error

    def forget(self, peer: RankEndpoint) -> None:
        """Drop a peer's link, at once or when it becomes idle."""
        with self._lock:
            link = self._links.pop(peer.agent_name, None)
        if link is None:
            return
        with link.lock:
            link.gone = True
            link.up = False
            self._unload_if_idle(link)

    def close(self) -> None:
        """Forget every peer."""
        with self._lock:
            links, self._links = list(self._links.values()), {}
        for link in links:
            with link.lock:
                link.gone = True
                self._unload_if_idle(link)

    def _unload_if_idle(self, link: Link) -> None:
        if link.gone and link.in_flight == 0 and link.loaded:
            link.loaded = False
            self._agent.disconnect(link.name)

    def _acquire(self, peer: RankEndpoint) -> Link:
        with self._lock:
            link = self._links.setdefault(peer.agent_name, Link(peer.agent_name))
        if not link.lock.acquire(timeout=self._connect_s):
            raise PeerUnreachable(f"{peer.agent_name}: still connecting after {self._connect_s} s")
        try:
            if not link.up or link.metadata != peer.agent_metadata:
                self._bring_up(link, peer)
            link.in_flight += 1
        finally:
            link.lock.release()
        return link

    def _bring_up(self, link: Link, peer: RankEndpoint) -> None:
        if link.in_flight:
            raise PeerUnreachable(f"{link.name}: {link.in_flight} READs still in flight on the broken connection")
        if link.metadata != peer.agent_metadata:
            link.backoff.succeeded()  # another incarnation: the failures of the one before say nothing about it
        elif not link.backoff.ready(self._clock()):
            failures = link.backoff.failures
            raise PeerUnreachable(f"{link.name}: backed off from after {failures} failures: {link.last_error}")
        link.up = False
        link.metadata = peer.agent_metadata
        try:
            if link.loaded:
                link.loaded = False
                self._agent.disconnect(link.name)
            self._agent.connect(link.name, peer.agent_metadata)
            link.loaded = True
            self._prove(link, peer)
        except TransferError as exc:
            link.backoff.failed(self._clock())
            link.last_error = str(exc)
            raise PeerUnreachable(f"{link.name}: {exc}") from exc
        link.backoff.succeeded()
        link.up = True
        logger.info("connected to %s", link.name)
