"""What a child is told by its supervisor, and its share of what the settings give the router as a whole."""

from __future__ import annotations

import math
from pathlib import PurePath

import msgspec

from ghostcacher_router.config import RouterSettings

PROBERS_MAX = 4
"""A worker is probed at most so many times in each `health_interval_s`, however many processes there are: beyond, each
of them waits longer. What requests meet has a worker probed at once, as in any router."""
INTERVAL_S_MAX = 600.0
"""The longest interval that the setting allows."""

CONTROL_BYTES_MAX = 16 << 20
"""Of the message that tells a child its seat and its settings: lists of workers can be long."""


class Seat(msgspec.Struct, frozen=True):
    """The place of one child among the others."""

    slot: int
    """Which socket is its own."""
    generation: int
    """How many children have been started before: no two have the same."""
    processes: int
    """How many slots there are."""
    router: str
    """The name of this run of the router, the same in all processes."""
    folder: str
    """Where each child has a unix socket for its siblings, by `name`."""
    sockets: tuple[tuple[int, ...], ...]
    """File numbers of the listening sockets, by slot."""

    replaces: bool = False
    """Whether another child serves until this one does."""
    feed: str = ""
    """Where the feed has its unix socket; none for "" (no Redis)."""
    locks: int | None = None
    """File number of the memory of all processes' ghost locks (`ghostcacher_router.ghostlock.sibling_locks`)."""

    @property
    def name(self) -> str:
        """The child's name: of its unix socket, and the label of its metrics."""
        return f"{self.slot}.{self.generation}"


class Start(msgspec.Struct, frozen=True):
    """The first message to a child."""

    seat: Seat
    settings: RouterSettings
    """Of the router as a whole. They hold secrets, and so are neither on a command line nor in an environment."""

    @property
    def name(self) -> str:
        """The child's name."""
        return self.seat.name

    @property
    def files(self) -> list[int]:
        """Numbers of the files that it is to have."""
        locks = [] if self.seat.locks is None else [self.seat.locks]
        return locks + [number for slot in self.seat.sockets for number in slot]


class FeedStart(msgspec.Struct, frozen=True):
    """The first message to a feed (`ghostcacher_router.feed`)."""

    path: str
    """Of its unix socket."""
    settings: RouterSettings

    @property
    def name(self) -> str:
        """For people: the socket's name."""
        return PurePath(self.path).name

    @property
    def files(self) -> list[int]:
        """Numbers of the files that it is to have."""
        return []


def share_of(settings: RouterSettings) -> RouterSettings:
    """Return the settings of one process: with its share of what bounds memory and connections of the router.

    The kernel spreads connections by their addresses, so that a few more may come to one process than to another.
    """
    count = settings.processes
    per_address = settings.connections_per_address_max
    return msgspec.structs.replace(
        settings,
        buffered_bytes_max=max(settings.body_bytes_max, math.ceil(settings.buffered_bytes_max / count)),
        connections_max=math.ceil(settings.connections_max / count),
        connections_per_address_max=None if per_address is None else math.ceil(per_address / count),
        flow_queue_max=math.ceil(settings.flow_queue_max / count),  # 0 stays 0: no queue.
        flow_queue_bytes_max=max(settings.body_bytes_max, math.ceil(settings.flow_queue_bytes_max / count)),
        replicas=min(settings.replicas * count, 10_000),
        health_interval_s=min(INTERVAL_S_MAX, settings.health_interval_s * max(1.0, count / PROBERS_MAX)),
    )
