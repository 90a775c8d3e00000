"""Carries out orders to flush in the object tier, for all ranks of one namespace.

Every worker hears of an order, and does the same, on the thread of its directory:

1. `add`, on the scheduler's thread: from now on nothing is found in objects here, until it is known what is meant;
2. `decide`: the notes that there are by then were read; what is meant is forgotten, and notes say so: of objects that
   are known, and of blocks that this worker has ordered to be stored and nobody has told of yet;
3. `carry_out`: the notes are written, so that everybody hears of it who did not hear of the order. Then the first
   worker claims the order in the store, with a list of what it deletes; others delete what only they know to be meant.

From 2 on no object is found whose writing was decided on before, whenever it is told of: by its own worker, which knows
what it has under way, and for `GRACE_S` by each worker as far as it can tell what is meant. What comes late in spite of
all is deleted as it comes. So deleting is about room and secrecy, and an answer needs none of it.

A store that fails is tried again for `RETRY_S`; the first failure is reported.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from ghostcacher_connector.objects.catalogue import KnownObject
from ghostcacher_connector.objects.layout import OBJECTS, SWEEPS, digest_of, folder_of
from ghostcacher_connector.objects.object_format import BLOCKS_MAX, NAME_BYTES
from ghostcacher_connector.objects.object_notes import Note
from ghostcacher_connector.objects.rank_objects import RankObjects
from ghostcacher_connector.objects.stores.base import ObjectStore, StoreError

logger = logging.getLogger(__name__)

GRACE_S = 30.0
"""What was written before an order may be told of by so much later: notes are written and read every few seconds."""

RETRY_S = 3600.0
FLUSHES_MAX = 64
"""Orders that wait for the store; of more the oldest are given up."""

DELETE_BATCH = 256
LISTED_MAX = 1 << 20
CLAIM_BYTES_MAX = 64 << 20


class ObjectsFlushed(NamedTuple):
    """How an order was carried out here."""

    blocks: int = 0
    """Blocks of the objects that this worker has deleted; a block of all ranks counts once."""
    bytes: int = 0
    """The size of these objects, of all ranks."""
    error: str | None = None
    """Why it is not done yet. It is tried again."""


class FlushWanted(NamedTuple):
    """An order to flush, as far as objects go."""

    order: bytes
    """Names it in the fleet."""
    doomed: Callable[[Iterable[KnownObject]], set[bytes]] | None
    """Returns the blocks that are meant, of those in these objects and of those under way; None: all. Called on the
    directory's thread, several times."""
    under_way: frozenset[bytes]
    """Blocks that may become objects, of which no note is known: this worker's alone."""
    done: Callable[[ObjectsFlushed], None]
    """Called when it is carried out, or when that has failed for now."""


class _Gone(NamedTuple):
    """An object that is to be deleted."""

    digest: bytes
    bytes: int
    blocks: int
    """None on all ranks but the first, so that a block of all ranks counts once."""


@dataclass(slots=True)
class _Flush:
    wanted: FlushWanted
    at: float
    """When it was ordered, by the wall clock."""
    until: float
    """Until when notes may come of what was written before, on the monotonic clock."""
    retry_until: float
    decided: bool = False
    token: bytes = field(default_factory=lambda: secrets.token_bytes(NAME_BYTES))
    """Begins this worker's claim: a claim that seems to have failed may be there all the same."""
    claimed: bool = False
    """Whether it is known who deletes what."""
    mine: bool = False
    carried_out: bool = False
    reported: bool = False
    gone: dict[str, _Gone] = field(default_factory=dict)
    """The objects that are to be deleted, by name."""
    blocks: int = 0
    bytes: int = 0


class ObjectFlushes:
    """See the module's docstring. `add` and `undecided` are for any thread, all else for the directory's."""

    def __init__(
        self,
        store: ObjectStore,
        ranks: Sequence[RankObjects],
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._ranks = store, ranks
        self._wall, self._clock = wall, clock
        self._flushes: deque[_Flush] = deque(maxlen=FLUSHES_MAX)
        self._looking = False

    @property
    def undecided(self) -> bool:
        """Whether it is not known yet which objects are meant."""
        return self._looking or any(not flush.decided for flush in tuple(self._flushes))

    def add(self, wanted: FlushWanted) -> None:
        """Take an order."""
        now = self._clock()
        self._flushes.append(_Flush(wanted, self._wall(), now + GRACE_S, now + RETRY_S))

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Read notes within: nothing is found until `decide` where an order may mean what they tell of."""
        self._looking = bool(self._flushes)
        yield

    def decide(self) -> None:
        """Forget what is meant of what is known by now."""
        for flush in tuple(self._flushes):
            self._decide(flush)
            flush.decided = True
        self._looking = False

    def carry_out(self, *, late: bool) -> None:
        """Delete what is to be deleted, and tell of it. late: notes of what was flushed mean that it is there still.

        Raises StoreError; what is left is done with the next call.
        """
        for flush in tuple(self._flushes):
            self._carry_out(flush)
            if flush.carried_out and self._clock() >= flush.until:
                self._flushes.remove(flush)
        for rank in self._ranks:
            found = [digest for digest in rank.catalogue.take_late() if rank.catalogue.look(digest) is None]
            if late and found:
                self._store.delete([rank.name_of(digest) for digest in found])

    def failed(self, error: StoreError) -> None:
        """Report to whoever waits that the store has failed, and give up what has been tried for too long."""
        for flush in tuple(self._flushes):
            if flush.decided and not flush.carried_out:
                self._report(flush, f"{error} ({error.fault.value}); it is tried again for an hour")
            if self._clock() >= flush.retry_until:
                self._flushes.remove(flush)
                if not flush.carried_out:
                    logger.error("object tier: %d objects that were flushed are still in the store", len(flush.gone))

    def _decide(self, flush: _Flush) -> None:
        wanted, fresh = flush.wanted, not flush.decided
        known = [(rank, rank.catalogue.objects()) for rank in self._ranks]
        blocks: set[bytes] | None = None
        if wanted.doomed is not None:
            blocks = wanted.doomed({one.hashes: one for _, objects in known for one in objects}.values())
        for rank, objects in known:
            for one in objects:
                # Behind the first look only what was written before is meant: since then there may be new ones.
                if (fresh or one.changed_at <= flush.at) and (blocks is None or not blocks.isdisjoint(one.hashes)):
                    rank.note(Note("dropped", one.digest, max(flush.at, one.changed_at)))
                    count = len(one.hashes) if rank is self._ranks[0] else 0
                    flush.gone[rank.name_of(one.digest)] = _Gone(one.digest, one.stored_bytes, count)
                    flush.carried_out = False
            if fresh:
                for note in _notes_of(blocks, wanted.under_way, flush.at):
                    rank.note(note)

    def _carry_out(self, flush: _Flush) -> None:
        if flush.carried_out:
            return
        for rank in self._ranks:
            rank.notes.flush_all()
        if not flush.claimed:
            self._claim(flush)
        if flush.mine and flush.wanted.doomed is None:
            self._list_all(flush)
        while flush.gone:
            batch = dict(islice(flush.gone.items(), DELETE_BATCH))
            self._store.delete(list(batch))
            for name, gone in batch.items():
                del flush.gone[name]
                flush.bytes += gone.bytes
                flush.blocks += gone.blocks
            self._ranks[0].recorder.inc("gc_object_deleted_total", len(batch), reason="flushed")
        flush.carried_out = True
        self._report(flush, None)

    def _claim(self, flush: _Flush) -> None:
        """Become the one who deletes what is meant, or leave to who that is what it deletes."""
        name = f"{SWEEPS}flush-{flush.wanted.order.hex()}-{self._ranks[0].identity.namespace.hex()[:16]}"
        claim = flush.token + b"".join(one.digest for one in flush.gone.values())
        theirs = b"" if self._store.create(name, memoryview(claim)) else bytes(self._store.read(name, CLAIM_BYTES_MAX))
        flush.mine = theirs[:NAME_BYTES] in (b"", flush.token)
        if not flush.mine:
            digests = {theirs[at : at + NAME_BYTES] for at in range(0, len(theirs), NAME_BYTES)}
            everything = flush.wanted.doomed is None
            flush.gone = {} if everything else {n: one for n, one in flush.gone.items() if one.digest not in digests}
        flush.claimed = True

    def _list_all(self, flush: _Flush) -> None:
        """Have all objects of this namespace deleted, those as well of which nobody knows."""
        for rank in self._ranks:
            for one in self._store.walk(OBJECTS + folder_of(rank.identity), LISTED_MAX):
                if one.name not in flush.gone and (digest := digest_of(one.name)) is not None:
                    flush.gone[one.name] = _Gone(digest, one.size_bytes, 0)

    def _report(self, flush: _Flush, error: str | None) -> None:
        if error is None or not flush.reported:
            flush.wanted.done(ObjectsFlushed(flush.blocks, flush.bytes, error))
        flush.reported = True


def _notes_of(blocks: set[bytes] | None, under_way: frozenset[bytes], at: float) -> Iterator[Note]:
    """Yield notes that nothing is to be found of these blocks, None: of any, that was decided on until then."""
    if blocks is None:
        yield Note("cleared", secrets.token_bytes(NAME_BYTES), at)
        return
    meant = sorted(blocks & under_way)
    for first in range(0, max(1, len(meant)), BLOCKS_MAX):
        some = meant[first : first + BLOCKS_MAX]
        yield Note(
            "flushed",
            secrets.token_bytes(NAME_BYTES),
            at,
            hash_bytes=len(some[0]) if some else 0,
            hashes=b"".join(some),
        )
