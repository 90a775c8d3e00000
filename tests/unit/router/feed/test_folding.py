"""What a feed makes of what it has read: less to do for every process, and the same knowledge."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.coordination.base import (
    BOUNDARIES_MAX,
    Batch,
    Cursor,
    Flush,
    PrefixMapUpdate,
    PromptChain,
    WorkerEvents,
)
from ghostcacher_router.feed import folding
from ghostcacher_router.feed.folding import ENTRIES_MAX, Folding
from ghostcacher_router.feed.messages import Folded, MapPart, decode_folded, encode, has_reached
from ghostcacher_router.prefix_map import PrefixMap
from ghostcacher_router.signals.received_blocks import HASHES_MAX, RECEIVED_S, ReceivedBlocks
from ghostcacher_simulator.virtual_time import virtual
from tests.support.coordination_parts import make_chain, make_ref, make_update
from tests.support.index_parts import chain as hashes_of
from tests.support.routing_sim import make_sim

BEFORE, AFTER = Cursor("1-0", "2-0"), Cursor("3-0", "4-0")
ALL = b"\xff" * 9


def fold(updates: tuple[Any, ...] = (), events: tuple[WorkerEvents, ...] = (), below: bytes = ALL) -> list[Folded]:
    """Return the messages of a batch, as they arrive."""
    return [
        decode_folded(encode(each)) for each in Folding(lambda: 0.0).fold(Batch(AFTER, events, updates), BEFORE, below)
    ]


def told(messages: list[Folded], text: PrefixMap) -> PrefixMap:
    for part in [part for message in messages for part in message.map]:
        if isinstance(part, MapPart):
            text.put(part.namespace, part.entries, part.bytes_per_token)
        else:
            text.flush(part)
    return text


def entries_in(text: PrefixMap) -> dict[tuple[str, bytes], bytes]:
    cache = text._entries
    return {(space, key): value for space in cache._young for key, value in cache._young[space].items()}


DIGESTS = [bytes([number]) * 16 for number in range(6)]
UPDATES = st.builds(
    lambda space, first, count, value: PrefixMapUpdate(
        space,
        tuple(DIGESTS[first : first + count]),
        (value,) * len(DIGESTS[first : first + count]),
        (bytes([value + 1]),) * len(DIGESTS[first : first + count]),
        1.0 + value,
        "r",
    ),
    st.sampled_from("ab"),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 3),
)
FLUSHES = st.sampled_from([Flush("all", b"", "r"), Flush("doc", DIGESTS[1], "r")])


@given(st.lists(UPDATES | FLUSHES, max_size=12), st.integers(1, 4))
def test_map_is_the_same_as_by_the_updates_in_order(items: list[PrefixMapUpdate | Flush], entries_max: int) -> None:
    """Whatever is merged, split and flushed between."""
    expected = PrefixMap("r", clock=lambda: 0.0)
    for item in items:
        expected.flush(item) if isinstance(item, Flush) else expected.apply(item)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "ENTRIES_MAX", entries_max)
        patch.setattr(folding, "WEIGHT_MAX", 3)
        messages = fold(tuple(items))
    found = told(messages, PrefixMap("r", clock=lambda: 0.0))
    assert entries_in(found) == entries_in(expected)
    assert found._bytes_per_token == expected._bytes_per_token


def test_greatest_updates_are_told_in_pieces() -> None:
    """A cursor comes with the last one only: whoever loses the feed between them reads all of it again."""
    updates = tuple(make_update(seed=seed, count=BOUNDARIES_MAX) for seed in range(2))
    messages = fold(updates)
    assert len(told(messages, PrefixMap("r"))) == 2 * BOUNDARIES_MAX
    sizes = [sum(len(part.entries) for part in message.map if isinstance(part, MapPart)) for message in messages]
    assert max(sizes) <= 2 * ENTRIES_MAX
    assert [message.cursor for message in messages] == [BEFORE] * (len(messages) - 1) + [AFTER]


def test_malformed_update_is_left_out_and_counted() -> None:
    """Nothing of it is told; what comes with it is."""
    bad = make_update(count=3)
    bad = PrefixMapUpdate(bad.namespace, bad.digests, (1, 3, 2), bad.hashes, 4.0, "r")
    made = Folding(lambda: 0.0)
    (message,) = made.fold(Batch(AFTER, (), (bad, make_update(seed=1))), BEFORE, ALL)
    assert len(told([message], PrefixMap("r"))) == 2
    assert made.malformed == 1


def test_prompt_has_what_its_worker_received_before_and_the_hashes_that_are_wished_for() -> None:
    """And its whole chain, for whoever has sent it."""
    ref, first, longer = make_ref(), make_chain("one", 3), make_chain("two", 5)
    below = sorted(longer.hashes)[2]
    (message,) = fold(events=(WorkerEvents(*ref, (first, longer), ("one",)),), below=below)
    (events,) = message.events
    one, two = events.prompts
    assert (events.namespace, events.worker, events.incarnation, events.computed) == (*ref, ("one",))
    assert (one.is_computed, two.is_computed) == (True, False)
    assert (one.blocks, two.blocks) == (0, 3)
    assert (two.tokens, two.hashes) == (longer.tokens, 5)
    assert set(two.sampled) == set(sorted(longer.hashes)[:2])
    assert two.unpacked() == longer


@virtual
async def test_process_that_is_told_by_a_feed_forecasts_as_one_that_reads() -> None:
    """Prompts of other routers: in several messages, at several workers, computed at once, later and never."""
    sim = await make_sim(2, routers=2, kv_blocks=100_000)
    sim._reporting.cancel()
    reads, hears = (router.routing for router in sim.routers)
    made = Folding(sim.now)
    refs = [engine.worker.ref for engine in sim.engines.values()]

    def chain(name: str, seed: int, blocks: int) -> PromptChain:
        return PromptChain(name, blocks * 16, tuple(range(1, blocks + 1)), tuple(hashes_of(blocks, seed)))

    rounds = [
        [(refs[0], [chain("a", 1, 100), chain("b", 1, 150)], ["a"])],
        [(refs[1], [chain("c", 2, 90)], []), (refs[0], [chain("d", 2, 90)], ["b"])],
        [(refs[1], [chain("e", 2, 200)], ["c"])],
    ]
    for news in rounds:
        all_events = tuple(
            WorkerEvents(*ref, tuple(chains), tuple(ids)) for ref, chains, ids in news if ref is not None
        )
        for message in made.fold(Batch(AFTER, all_events, ()), BEFORE, hears.state.regret.looked_at_below):
            for folded in decode_folded(encode(message)).events:
                hears.tracker.on_folded_events(folded)
        for events in all_events:
            reads.tracker.on_worker_events(events)
        for engine in sim.engines.values():
            one, other = (each.state.queues.estimate(engine.worker, sim.now()) for each in (reads, hears))
            assert (one.prefilling, one.queue_ms) == (other.prefilling, other.queue_ms)
        assert repr(reads.state.regret) == repr(hears.state.regret)
        assert reads.state.regret._boundaries == hears.state.regret._boundaries
        assert reads.state.regret.looked_at_below == hears.state.regret.looked_at_below
    assert hears.state.regret.looked_at_below < ALL
    assert sum(hears.state.queues.estimate(engine.worker, sim.now()).prefilling for engine in sim.engines.values()) == 2


def test_received_blocks_are_bounded_and_grow_old() -> None:
    """What came last is known."""
    received, ref = ReceivedBlocks(), make_ref()
    for seed in range(3 * HASHES_MAX // 64):
        received.remember(ref, PromptChain("r", 64, tuple(range(1, 65)), tuple(hashes_of(64, seed))), 5.0)
    assert received._aside_count == sum(len(one.hashes) for one in received._aside) <= HASHES_MAX // 2
    last = PromptChain("r", 64, tuple(range(1, 65)), tuple(hashes_of(64, seed)))
    assert received.blocks(ref, last, 5.0 + RECEIVED_S) == 64
    assert not received._aside
    assert sum(len(of) for each in (received._young, received._old) for of in each.values()) <= HASHES_MAX
    received.remember(ref, PromptChain("short", 3, (), ()), 5.0)
    assert not received._aside, "what says nothing takes no room"
    assert received.blocks(ref, last, 5.0 + RECEIVED_S + 0.1) == 0
    assert received.blocks(ref._replace(incarnation=b"another"), last, 5.0) == 0
    hashes = tuple(hashes_of(128, seed + 1))
    received.remember(ref, PromptChain("long", 128, tuple(range(1, 129)), hashes), 5.0)
    assert received.blocks(ref, PromptChain("r", 15, tuple(range(1, 16)), hashes[:15]), 5.0) == 8


def test_cursor_is_reached_in_both_streams() -> None:
    """Ids are compared as numbers."""
    assert has_reached(Cursor("10-2", "7-0"), Cursor("9-11", "7-0"))
    assert not has_reached(Cursor("10-2", "7-0"), Cursor("10-10", "7-0"))
    assert not has_reached(Cursor("10-2", "7-0"), Cursor("10-2", "7-1"))
