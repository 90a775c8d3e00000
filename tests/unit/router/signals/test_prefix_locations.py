"""Who holds how much of a prefix: what the index says, how long that counts, and what is known before it says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from ghostcacher_connector.core.index.base import DEPTHS_MAX, WorkerRef, ref_of
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.prefix_map import KnownBoundary
from ghostcacher_router.signals.prefix_locations import (
    CHAIN_MAX,
    FRESH_S,
    OLD_S,
    REFRESH_S,
    HeldPrefix,
    PrefixLocations,
)
from ghostcacher_router.types import Endpoint
from ghostcacher_simulator.virtual_time import run_virtual, soon
from tests.support.index_parts import chain, entries, make_record
from tests.support.routing_sim import all_of


class OneWorkerFleet:
    """Workers, and nothing that can be done with them."""

    def __init__(self, *workers: Worker) -> None:
        self.workers = {worker.name: worker for worker in workers}


class StrictIndex(MemoryIndex):
    """Answers as Redis does: nothing for chains beyond the bound."""

    def depths(self, candidates: Sequence[WorkerRef], chains: Sequence[Sequence[bytes]]) -> list[list[int]]:
        asked = chains[: DEPTHS_MAX // max(1, len(candidates))]
        left_out = [[0] * len(candidates) for _ in chains[len(asked) :]]
        return super().depths(candidates, asked) + left_out


BLOCKS = chain(40)
KNOWN = [KnownBoundary(number, count, BLOCKS[count - 1]) for number, count in enumerate((8, 16, 32))]


class Shelf:
    """An index with one worker that holds 20 blocks, and the prefix locations over it."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = asyncio.get_running_loop().time
        self.index = MemoryIndex(clock=self.clock)
        record = make_record("w")
        self.namespace = record.namespace
        self.incarnation = record.incarnation
        self.index.join(record, lease_ttl_s=1e6)
        self.ref = ref_of(record)
        self.index.apply(self.ref, entries(BLOCKS[:20]), [], lease_ttl_s=1e6)
        self.seconds: list[float] = []
        fleet = OneWorkerFleet(Worker("w", Endpoint("h", 1, False, ""), record, 0.0))
        self.locations = PrefixLocations(self.index, fleet, soon, self.clock, observe=self.seconds.append)


def test_locations_is_asked_for_once_then_refreshed_beside() -> None:
    """An unknown text must be waited for; a known one is answered at once, and asked for again when it grows old."""

    async def main() -> None:
        shelf = Shelf()
        assert shelf.locations.get(shelf.namespace, KNOWN[-1]) is None
        await shelf.locations.fetch(shelf.namespace, KNOWN)
        assert shelf.locations.get(shelf.namespace, KNOWN[-1]) == {"w": HeldPrefix(shelf.incarnation, 16)}
        shelf.index.apply(shelf.ref, entries(BLOCKS), [], lease_ttl_s=1e6)
        await asyncio.sleep(REFRESH_S + 0.01)
        assert shelf.locations.get(shelf.namespace, KNOWN[-1]) == {"w": HeldPrefix(shelf.incarnation, 16)}
        await asyncio.sleep(0.01)
        assert shelf.locations.get(shelf.namespace, KNOWN[-1]) == {"w": HeldPrefix(shelf.incarnation, 32)}
        assert len(shelf.seconds) == 2

    run_virtual(main())


def test_locations_are_the_same_object_while_the_index_says_the_same() -> None:
    """So that what was made of them need not be made again; whoever has an older one keeps what it has seen."""

    async def main() -> None:
        shelf = Shelf()
        await shelf.locations.fetch(shelf.namespace, KNOWN)
        before = shelf.locations.get(shelf.namespace, KNOWN[-1])
        await asyncio.sleep(0.1)
        await shelf.locations.fetch(shelf.namespace, KNOWN)
        assert shelf.locations.get(shelf.namespace, KNOWN[-1]) is before
        shelf.index.apply(shelf.ref, entries(BLOCKS), [], lease_ttl_s=1e6)
        await shelf.locations.fetch(shelf.namespace, KNOWN)
        assert before == {"w": HeldPrefix(shelf.incarnation, 16)}
        assert shelf.locations.get(shelf.namespace, KNOWN[-1]) == {"w": HeldPrefix(shelf.incarnation, 32)}

    run_virtual(main())


def test_locations_too_old_is_waited_for() -> None:
    """What nobody has used for a second is asked for again before it is believed, unless anything will do."""

    async def main() -> None:
        shelf = Shelf()
        await shelf.locations.fetch(shelf.namespace, KNOWN)
        await asyncio.sleep(FRESH_S + 0.1)
        assert shelf.locations.get(shelf.namespace, KNOWN[-1]) is None
        assert shelf.locations.get(shelf.namespace, KNOWN[-1], old=True) == {"w": HeldPrefix(shelf.incarnation, 16)}
        now = shelf.clock()
        await shelf.locations.fetch(shelf.namespace, KNOWN)
        assert shelf.locations.get(shelf.namespace, KNOWN[-1], newer_than=now) is not None
        assert shelf.locations.get(shelf.namespace, KNOWN[-1], newer_than=shelf.clock()) is None

    run_virtual(main())


def test_locations_index_away_last_word_counts_for_a_while() -> None:
    """While the index does not answer, nobody waits for it, and what it said last is believed until it is too old."""

    async def main() -> None:
        shelf = Shelf()
        await shelf.locations.fetch(shelf.namespace, KNOWN)
        shelf.index.reachable = False
        await asyncio.sleep(FRESH_S + 0.1)
        await shelf.locations.fetch(shelf.namespace, KNOWN)
        assert not shelf.locations.available
        assert shelf.locations.get(shelf.namespace, KNOWN[-1]) == {"w": HeldPrefix(shelf.incarnation, 16)}
        await asyncio.sleep(OLD_S)
        await shelf.locations.fetch(shelf.namespace, KNOWN)
        assert shelf.locations.get(shelf.namespace, KNOWN[-1]) == {}

    run_virtual(main())


def test_locations_seed_is_used_and_then_checked() -> None:
    """What a worker has just computed is known before the index says so, and the index has the last word."""

    async def main() -> None:
        shelf = Shelf()
        shelf.locations.seed(shelf.namespace, KNOWN, "w", HeldPrefix(shelf.incarnation, 32))
        await asyncio.sleep(0.001)
        assert shelf.locations.get(shelf.namespace, KNOWN[-1]) == {"w": HeldPrefix(shelf.incarnation, 32)}
        await asyncio.sleep(0.01)
        assert shelf.locations.get(shelf.namespace, KNOWN[-1]) == {"w": HeldPrefix(shelf.incarnation, 16)}

    run_virtual(main())


def test_locations_asks_within_what_the_index_answers() -> None:
    """Many texts of a large fleet are asked for in several calls: the index leaves out what is too much for one."""

    async def main() -> None:
        clock, index = asyncio.get_running_loop().time, StrictIndex()
        records = [make_record(f"w{number}") for number in range(DEPTHS_MAX // 10)]
        for record in records:
            index.join(record, lease_ttl_s=1e6)
        index.apply(ref_of(records[7]), entries(BLOCKS), [], lease_ttl_s=1e6)
        workers = [Worker(record.worker, Endpoint("h", 1, False, ""), record, 0.0) for record in records]
        locations = PrefixLocations(index, OneWorkerFleet(*workers), soon, clock, observe=lambda _: None)
        texts = [[KnownBoundary(0, count, BLOCKS[count - 1])] for count in range(1, 25)]
        await all_of([locations.fetch(records[0].namespace, text) for text in texts])
        assert [set(locations.get(records[0].namespace, text[-1]) or {}) for text in texts] == [{"w7"}] * 24

    run_virtual(main())


def test_locations_answer_counts_for_the_text_that_was_asked_for() -> None:
    """One that was forgotten meanwhile and came back may know other depths: it is asked for anew."""

    async def main() -> None:
        shelf, others = Shelf(), [KnownBoundary(0, 4, BLOCKS[3]), KnownBoundary(1, 24, BLOCKS[23]), KNOWN[2]]
        asking = asyncio.ensure_future(shelf.locations.fetch(shelf.namespace, KNOWN))
        await asyncio.sleep(0.0005)
        shelf.locations.clear()
        shelf.locations.seed(shelf.namespace, others, "w", HeldPrefix(shelf.incarnation, 32))
        await asking
        assert shelf.locations.get(shelf.namespace, others[-1], old=True) == {"w": HeldPrefix(shelf.incarnation, 32)}
        await shelf.locations.fetch(shelf.namespace, others)
        assert shelf.locations.get(shelf.namespace, others[-1]) == {"w": HeldPrefix(shelf.incarnation, 4)}

    run_virtual(main())


LONG = [KnownBoundary(number, number + 1, hash_) for number, hash_ in enumerate(chain(300))]


class SizeIndex(MemoryIndex):
    """Remembers the chains that it was asked for."""

    asked: Sequence[Sequence[bytes]] = ()

    def depths(self, candidates: Sequence[WorkerRef], chains: Sequence[Sequence[bytes]]) -> list[list[int]]:
        self.asked = chains
        return super().depths(candidates, chains)


def test_locations_asks_for_a_long_text_at_few_depths() -> None:
    """Evenly spread, the deepest among them: a holder of all is seen to hold all."""

    async def main() -> None:
        shelf, index, record = Shelf(), SizeIndex(), make_record("w")
        index.join(record, lease_ttl_s=1e6)
        index.apply(ref_of(record), entries([one.block_hash for one in LONG]), [], lease_ttl_s=1e6)
        fleet = OneWorkerFleet(Worker("w", Endpoint("h", 1, False, ""), record, 0.0))
        locations = PrefixLocations(index, fleet, soon, shelf.clock, observe=lambda _: None)
        await locations.fetch(record.namespace, LONG)
        assert locations.get(record.namespace, LONG[-1]) == {"w": HeldPrefix(record.incarnation, 300)}
        places = [[one.block_hash for one in LONG].index(asked) for asked in index.asked[0]]
        assert (len(places), places[-1]) == (CHAIN_MAX, 299)
        assert {after - before for before, after in pairwise([-1, *places])} == {4, 5}

    run_virtual(main())


@pytest.mark.parametrize(("hashes_max", "kept"), [(9, 2), (12, 3), (1000, 4)])
def test_locations_is_bounded_in_texts_and_hashes(hashes_max: int, kept: int) -> None:
    """The least recently used are forgotten; few long texts weigh as much as many short ones."""

    async def main() -> None:
        locations = PrefixLocations(
            None, OneWorkerFleet(), soon, lambda: 0.0, observe=lambda _: None, prefixes_max=4, hashes_max=hashes_max
        )
        texts = [[KnownBoundary(at, at + 1, h) for at, h in enumerate(chain(4, seed))] for seed in range(8)]
        for text in texts:
            await locations.fetch("n", text)
            await locations.fetch("n", text)
        assert repr(locations) == f"PrefixLocations(prefixes={kept}, hashes={4 * kept}, available=False)"
        locations.clear()
        await locations.fetch("n", texts[0])
        assert repr(locations) == "PrefixLocations(prefixes=1, hashes=4, available=False)"

    run_virtual(main())


def test_locations_seed_keeps_who_holds_the_beginning() -> None:
    """A longer text begins with a shorter one: who holds this is a holder of that, too."""

    async def main() -> None:
        shelf = Shelf()
        await shelf.locations.fetch(shelf.namespace, KNOWN[:2])
        shelf.locations.seed(shelf.namespace, KNOWN, "other", HeldPrefix(b"o" * 16, 32))
        held = shelf.locations.get(shelf.namespace, KNOWN[-1], old=True)
        assert held == {"w": HeldPrefix(shelf.incarnation, 16), "other": HeldPrefix(b"o" * 16, 32)}

    run_virtual(main())
