"""What a worker's scheduler has its ranks write to objects, and read from them. Knows no engine.

    host tier --copied--> waiting --take_stores--> ranks --> objects
    host tier <--reported-- ranks <--take_fetches-- `fetch`, of what the directory says is in objects

Down: what every rank has copied to the host tier is offered to the objects soon after, in runs of consecutive blocks
that are as long as can be: copies come in the order in which the engine gives blocks up, from the end of a prompt.

Up: a fetch is a copy to the host tier whose source are objects. It fills host slots, is reported, held and published
like any copy; whoever wants its blocks waits until they are no longer on their way, and finds what came in the host
tier. The catalogue may be wrong, and the store may fail: then nothing came. After that nothing is fetched for a while.

All methods are called on the scheduler's thread, and none waits for the store.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.core.threads import daemon_thread
from ghostcacher_connector.core.types import BlockHash, SectionType
from ghostcacher_connector.objects.catalogue import KnownObject
from ghostcacher_connector.objects.directory import ObjectDirectory
from ghostcacher_connector.objects.object_flushes import FlushWanted, ObjectsFlushed
from ghostcacher_connector.tiers.candidates import Candidate, Copied
from ghostcacher_connector.tiers.host_tier import HostTier
from ghostcacher_connector.transfer.jobs import CopyResult, FetchJob, StoreJob

WAIT_S = 1.0
"""How long blocks wait for their neighbours while copies are under way."""

WAITING_BYTES_MAX = 64 << 20
"""Of so much the longest waiting run is offered all the same: eight objects."""

STEP_BLOCKS_MAX = 1024
"""Offered with one step at most: sorting them takes about a millisecond."""

UNDER_WAY_MAX = 1 << 16
"""Of so many blocks that were ordered to be stored it is remembered that nobody may know of them yet: 4 GiB of small
ones, far beyond what waits to be written."""

CLOSE_S = 0.5


@dataclass(slots=True)
class Fetched:
    """A fetch that every rank has reported."""

    bytes: int
    """Read by the rank that read the least, to where something was missing."""
    seconds: float
    """The slowest rank's time."""


@dataclass(slots=True)
class _Fetch:
    blocks: int
    reports_due: int
    valid: int
    bytes: int
    seconds: float
    timeout_s: float


class ObjectOrders:
    """See the module's docstring."""

    def __init__(
        self,
        tier: HostTier,
        open_directory: Callable[[str], ObjectDirectory],
        *,
        namespace: str,
        ranks: int,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """open_directory: opens that of a namespace. tier: the host tier; told here of its copies from now on."""
        self._tier = tier
        self._open_directory = open_directory
        self._ranks = ranks
        self._clock, self._wall = clock, wall
        self.directory = open_directory(namespace)
        """Of the present namespace."""
        self._waiting: dict[BlockHash, Copied] = {}
        self._waiting_since = 0.0
        self._fetches: dict[int, _Fetch] = {}
        self._ordered: list[FetchJob] = []
        self._backoff = Backoff()
        self._stored: dict[BlockHash, None] = {}
        self._waiting_max = max(1, WAITING_BYTES_MAX // tier.block_bytes)
        tier.on_copied, tier.on_cleared = self._copied, self._cleared

    def __repr__(self) -> str:
        return f"ObjectOrders(waiting={len(self._waiting)}, fetches={len(self._fetches)}, {self.directory!r})"

    # -- down ----------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether there are blocks to be offered with one of the next steps."""
        return bool(self._waiting)

    def take_stores(self) -> list[StoreJob]:
        """Return what the ranks are to offer to the objects with the next step."""
        if not self._waiting:
            return []
        full = len(self._waiting) >= self._waiting_max
        if self._tier.busy and not full and self._clock() < self._waiting_since + WAIT_S:
            return []
        offered = [self._waiting.pop(block) for block in list(self._waiting)[:STEP_BLOCKS_MAX]]
        self._waiting_since = self._clock()
        stored = self.directory
        lacking = [each for each in offered if self._is_held(each) and not stored.longest((each.candidate.block,))]
        lacking.sort(key=lambda each: (each.candidate.root, each.candidate.traits.depth))
        self._stored.update(dict.fromkeys(each.candidate.block for each in lacking))
        while len(self._stored) > UNDER_WAY_MAX:
            del self._stored[next(iter(self._stored))]
        now, since = self._wall(), self.directory.since
        return [_store_job(run, now, since) for run in _runs(lacking, self._waiting_max)]

    def _copied(self, copy_id: int, copied: Sequence[Copied]) -> None:
        """Blocks are held in host slots from now on."""
        if copy_id in self._fetches:
            return
        if not self._waiting:
            self._waiting_since = self._clock()
        self._waiting.update((each.candidate.block, each) for each in copied)

    def _is_held(self, copied: Copied) -> bool:
        held = self._tier.ledger.prefix((copied.candidate.block,), 0)
        return bool(held) and (held[0].slot, held[0].generation) == (copied.slot, copied.generation)

    # -- up ------------------------------------------------------------------------------------------------------

    def longest(self, blocks: Sequence[BlockHash]) -> int:
        """Return how many leading blocks can be fetched, as far as is known; none while fetches fail."""
        return self.directory.longest(blocks) if self._backoff.ready(self._clock()) else 0

    def fetch(self, candidates: Sequence[Candidate], timeout_s: float) -> None:
        """Order a fetch of blocks that the host tier does not know, as far as it has room for them."""
        copy_id, slots = self._tier.ledger.begin(candidates)
        taken = [(each.block, slot) for each, slot in zip(candidates, slots, strict=True) if slot is not None]
        if not taken:
            return
        hashes, host_slots = zip(*taken, strict=True)
        written_at = self.directory.times(hashes)
        written_at += [math.inf] * (
            len(hashes) - len(written_at)
        )  # of those it is not known any more that they are there
        self._fetches[copy_id] = _Fetch(len(taken), self._ranks, len(taken), 0, 0.0, timeout_s)
        self._ordered.append(
            FetchJob(copy_id, hashes, np.asarray(host_slots, dtype=np.int64), timeout_s, tuple(written_at))
        )

    def take_fetches(self) -> list[FetchJob]:
        """Return what the ranks are to read with the next step.

        A fetch that was given up since it was ordered is not carried out: a copy of that very step, which the ranks
        carry out before, may have its slots.
        """
        ordered, self._ordered = self._ordered, []
        for job in ordered:
            if not self._tier.ledger.is_under_way(job.copy_id):
                del self._fetches[job.copy_id]
        return [job for job in ordered if job.copy_id in self._fetches]

    def reported(self, result: CopyResult) -> Fetched | None:
        """Take one rank's report of a copy or a fetch; return how the fetch went once every rank has reported it."""
        fetch = self._fetches.get(result.copy_id)
        if fetch is None:
            return None
        right = int(result.valid.sum())
        if right <= fetch.valid:
            fetch.valid, fetch.bytes = right, result.bytes
        fetch.seconds = max(fetch.seconds, result.seconds)
        fetch.reports_due -= 1
        if fetch.reports_due:
            return None
        del self._fetches[result.copy_id]
        if fetch.valid == 0 or (fetch.valid < fetch.blocks and fetch.seconds >= fetch.timeout_s):
            self._backoff.failed(self._clock())
        else:
            self._backoff.succeeded()
        return Fetched(fetch.bytes, fetch.seconds)

    # -- flushing ------------------------------------------------------------------------------------------------

    def flush(
        self,
        order: bytes,
        doomed: Callable[[Iterable[KnownObject]], set[bytes]] | None,
        under_way: frozenset[BlockHash],
        done: Callable[[ObjectsFlushed], None],
    ) -> None:
        """Have objects deleted, and nothing of them found any more from now on; see `FlushWanted`. Waits for nothing.

        What is held, or on its way to the host tier, the caller drops before: so nothing of it is ordered to be stored.
        """
        self.directory.flush(FlushWanted(order, doomed, under_way, done))

    def under_way(self) -> frozenset[BlockHash]:
        """Return the blocks that were ordered to be stored, and of which it is not known that they are."""
        self._stored = {block: None for block in self._stored if not self.directory.longest((block,))}
        return frozenset(self._stored)

    # -- beginning anew ------------------------------------------------------------------------------------------

    def move(self, namespace: str) -> None:
        """Go on in another namespace."""
        self.close()
        self._stored.clear()
        self.directory = self._open_directory(namespace)

    def close(self) -> None:
        """End the directory, without waiting for it."""
        daemon_thread("gc-obj-close", partial(self.directory.close, CLOSE_S)).start()

    def _cleared(self) -> None:
        """The host tier was emptied: nothing of it may be stored, and nothing that was ordered is waited for."""
        self._waiting.clear()
        self._ordered.clear()
        self._fetches.clear()


def _runs(copied: Sequence[Copied], blocks_max: int) -> list[list[Copied]]:
    """Cut sorted blocks into runs of consecutive ones of one prefix, of which the same is known."""
    runs: list[list[Copied]] = []
    for each in copied:
        last = runs[-1][-1].candidate if runs else None
        if (
            last is not None
            and each.candidate.parent == last.block
            and _kind_of(each.candidate) == _kind_of(last)
            and len(runs[-1]) < blocks_max
        ):
            runs[-1].append(each)
        else:
            runs.append([each])
    return runs


def _kind_of(candidate: Candidate) -> tuple[SectionType, bytes | None, bool]:
    return candidate.traits.section, candidate.session, candidate.after_tools


def _store_job(run: Sequence[Copied], now: float, since: float) -> StoreJob:
    first = run[0].candidate
    return StoreJob(
        tuple(each.candidate.block for each in run),
        np.asarray([each.slot for each in run], dtype=np.int64),
        np.asarray([each.generation for each in run], dtype=np.uint64),
        first.traits.depth,
        int(first.traits.section),
        first.parent or b"",
        first.session or b"",
        first.after_tools,
        now,
        since,
    )
