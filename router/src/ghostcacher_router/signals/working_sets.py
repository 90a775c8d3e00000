"""Keeps the caches of workers from being crowded while there is room in the fleet: the *working set* of each worker.

Every text that is likely to be asked for again has a home: the worker that was sent it last. What has its home at a
worker is that worker's working set. A cache that has no room for its working set is *crowded*: each prompt evicts what
the next one needs, so it computes anew again and again, and its queue only grows. Nothing in the queues leads out of
that state, since they make it: what is evicted at home looks as good anywhere else, and takes the same state there.

So as long as all working sets together fit into the fleet's caches, a prompt that would crowd a worker, or is at home
in a crowded one, costs others there what it takes to compute all of it. It goes where there is room, unless much is
waiting there, and from then on that is its home. Where they do not fit, some worker is crowded whatever is done: then
the price is the average regret.

How much of what was asked for once is asked for again is measured: questions are no part of a working set for long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from ghostcacher_connector.core.types import Tier
from ghostcacher_router.ports import WorkerPort

ROOM_SHARE = 0.9
"""The share of a cache that a working set can fill. Running requests need the rest, for questions and answers."""

LARGE_SHARE = 0.125
"""Only prompts that take more of a cache than this crowd it. A cache whose working set is one prompt too large misses
about as often as that prompt is a share of it: a slow request now and then where prompts are small, and where they are
large more work than an engine can do."""

CROWDED = 10.0
"""What crowding a cache costs others, as a multiple of computing the prompt. It is chosen, not derived: twelve
documents that just fill three engines took, in two replays with four sets of questions each, a mean TTFT of 2.0 and
2.6 s with 1, 0.7 and 4.4 s with 10, and 0.7 and 5.8 s with 100. While caches fill homes do not last, and a high price
keeps requests from short queues for their sake; once they last, a low one lets a queue undo them."""


class Home(NamedTuple):
    """Where a text was sent last."""

    worker: str
    repeated: bool
    """Whether it was asked for more than once."""


class Displacement(NamedTuple):
    """What a prompt costs others in the cache of one worker, as multiples of computing a token."""

    brought: float
    """For each token that is brought into the cache."""
    kept: float = 0.0
    """For each token of the prompt, whether it is there already or not."""


FREE = Displacement(0.0)


class Displacements(dict[str, Displacement]):
    """What a prompt costs others in the cache of each worker: as `usual` says, where the mapping says nothing else."""

    def __init__(self, usual: Displacement, others: Mapping[str, Displacement] = MappingProxyType({})) -> None:
        if others:
            self.update(others)
        self.usual = usual

    def __missing__(self, worker: str) -> Displacement:
        return self.usual


class Room(NamedTuple):
    """One worker's cache, in tokens."""

    worker: str
    capacity: float
    """All that it holds."""
    working_set: float
    own: float
    """The part of the prompt that is in the working set."""


class WorkingSets:
    """Counts homes. On the event loop only."""

    def __init__(self) -> None:
        self._once: dict[str, int] = {}
        self._repeated: dict[str, int] = {}
        self._totals = [0, 0]
        """Of all workers: what was asked for once, and more than once."""
        self._asked_again = self._forgotten = 0.0
        """Of what was asked for once."""

    def __repr__(self) -> str:
        return f"WorkingSets(once={self._once}, repeated={self._repeated}, once_share={self.once_share:.2f})"

    @property
    def once_share(self) -> float:
        """Return which share of what was asked for once will be asked for again. 1 before anything was forgotten."""
        ended = self._asked_again + self._forgotten
        return self._asked_again / ended if ended else 1.0

    @property
    def total(self) -> float:
        """Return how many boundaries are in the working sets of all workers."""
        once, repeated = self._totals
        return repeated + self.once_share * once

    def size(self, worker: str) -> float:
        """Return how many boundaries are in a worker's working set."""
        return self._repeated.get(worker, 0) + self.once_share * self._once.get(worker, 0)

    def weight(self, home: Home) -> float:
        """Return how likely a text is asked for again."""
        return 1.0 if home.repeated else self.once_share

    def move(self, before: Home | None, worker: str) -> Home:
        """Note that a text was sent to a worker; return its home. before: None when it had none."""
        if before is not None:
            self._count(before, -1)
            if not before.repeated:
                self._asked_again += 1.0
        home = Home(worker, before is not None)
        self._count(home, 1)
        return home

    def forget(self, home: Home) -> None:
        """Note that a text was not asked for again in a long time."""
        self._count(home, -1)
        if not home.repeated:
            self._forgotten += 1.0

    def fade(self) -> None:
        """Let what was measured count half."""
        self._asked_again /= 2.0
        self._forgotten /= 2.0

    def clear(self) -> None:
        """Forget all homes."""
        self._once.clear()
        self._repeated.clear()
        self._totals = [0, 0]

    def _count(self, home: Home, by: int) -> None:
        counts = self._repeated if home.repeated else self._once
        self._totals[home.repeated] += by
        left = counts.get(home.worker, 0) + by
        if left:
            counts[home.worker] = left
        else:
            counts.pop(home.worker, None)


def capacity_tokens(worker: WorkerPort) -> int:
    """Return how many tokens a worker's caches hold, its engine's and its host tier's; 0 when it does not say."""
    if worker.load is None:
        return worker.cache_tokens or 0
    load = worker.load.load
    host_blocks = sum([tier.blocks_max for tier in load.tiers if tier.tier is Tier.HOST])
    return (load.kv_blocks_total + host_blocks) * load.block_tokens


def reported_capacity(worker: WorkerPort) -> int:
    """Return the same of a worker that reports its load, 0 of a plain one."""
    return 0 if worker.load is None else capacity_tokens(worker)


def is_large(tokens: int, capacity_min: float) -> bool:
    """Return whether a prompt is large enough to crowd a worker. capacity_min: of the smallest cache, in tokens."""
    return tokens > LARGE_SHARE * capacity_min


def may_crowd(rooms: Sequence[Room], tokens: int) -> bool:
    """Return whether a prompt of so many tokens could crowd a worker while others have room. `own` does not matter."""
    fits = sum([room.working_set for room in rooms]) <= ROOM_SHARE * sum([room.capacity for room in rooms])
    large = is_large(tokens, min([room.capacity for room in rooms]))
    return large and fits and any(room.working_set + tokens > ROOM_SHARE * room.capacity for room in rooms)


def displacements(rooms: Sequence[Room], tokens: int, regret: float) -> Displacements:
    """Return what a prompt costs others at each worker.

    tokens: of the prompt; what of it has a home counts, if anything has.
    regret: what each token that is brought into a cache costs on average, as a multiple of computing a token.
    """
    at_home = sum([room.own for room in rooms])
    needed = at_home or tokens
    total = sum([room.working_set for room in rooms]) - at_home + needed
    crowded = {room.worker for room in rooms if room.working_set - room.own + needed > ROOM_SHARE * room.capacity}
    if total > ROOM_SHARE * sum([room.capacity for room in rooms]) or len(crowded) == len(rooms):
        crowded = set()
    return Displacements(Displacement(regret), dict.fromkeys(crowded, Displacement(0.0, CROWDED + regret)))


def older_copies(used: Mapping[str, int], regret: float, held: int) -> dict[str, Displacement]:
    """Return what a prompt costs others at each worker with a copy of it that was used before another one was.

    Using such a copy keeps it for as much longer as it was not used since the other one was. The one that was used last
    stays in any case.

    used: when each worker's copy was used last: boundaries that had sunk then (`EvictionRegret.sunk`).
    regret: what each token costs that is brought into a cache, which keeps it until as many have sunk as caches hold.
    held: how many that is.
    """
    latest = max(used.values(), default=0)
    kept = {worker: regret * min(1.0, (latest - at) / held) for worker, at in used.items() if at < latest}
    return {worker: Displacement(regret - cost, cost) for worker, cost in kept.items()}
