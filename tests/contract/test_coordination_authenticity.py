"""What a coordination store with a key must not believe: other keys, other places, and what is too old."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from ghostcacher_connector.core.coordination.base import STREAM_START, CoordinationStore, Cursor, DrainOrder, Flush
from ghostcacher_connector.core.coordination.flushes import ORDER_BYTES, FlushReport, TierDropped
from ghostcacher_connector.core.types import Tier
from tests.contract.coordination_subjects import FOREVER_S, StoreSubject, gone
from tests.support.coordination_parts import make_chain, make_load, make_ref, make_update
from tests.support.index_parts import in_time

TTL_S = 60.0
BEGINNING = Cursor(STREAM_START, STREAM_START)
STRANGERS = pytest.mark.parametrize("key", [b"", b"another secret"], ids=["no key", "another key"])
ORDER = bytes(ORDER_BYTES)
REF, OTHER_REF = make_ref("w1"), make_ref("w2")


class Kind(NamedTuple):
    """One kind of value that has a place of its own."""

    name: str
    places: tuple[Any, Any]
    """Two places for such values."""
    put: Callable[[CoordinationStore, Any, float], object]
    """Stores a value at a place, to count for so many seconds."""
    get: Callable[[CoordinationStore, Any], object]
    """Returns what is believed of a place; None for nothing."""


def put_drain(store: CoordinationStore, worker: str, ttl_s: float) -> None:
    now, _ = store.drains([])
    store.put_drains([DrainOrder(worker, True, now, now + ttl_s)])


KINDS = [
    Kind(
        "load",
        (REF, OTHER_REF),
        lambda store, ref, ttl_s: store.publish(ref, make_load(), [], [], ttl_s=ttl_s),
        lambda store, ref: store.loads([ref])[1][0],
    ),
    Kind(
        "session",
        (b"s1", b"s2"),
        lambda store, key, ttl_s: store.put_sessions({key: "w1"}, ttl_s=ttl_s),
        lambda store, key: store.sessions([key])[0],
    ),
    Kind(
        "flush report",
        ((ORDER, "w1"), (ORDER, "w2")),
        lambda store, place, ttl_s: store.put_flush_report(
            *place, FlushReport((TierDropped(Tier.HOST, 1, 2),)), ttl_s=ttl_s
        ),
        lambda store, place: store.flush_reports(place[0], [place[1]])[0],
    ),
    Kind("drain", ("w1", "w2"), put_drain, lambda store, worker: store.drains([worker])[1][0]),
]
EACH_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@EACH_KIND
@STRANGERS
def test_value_of_another_key_is_not_believed(keyed: StoreSubject, kind: Kind, key: bytes) -> None:
    """In both directions: those of two keys, or of one and none, do not see each other's values, and count them."""
    store, stranger = keyed.store, keyed.client(key)
    place, _ = kind.places
    for writer, reader in ((stranger, store), (store, stranger)):
        kind.put(writer, place, TTL_S)
        assert kind.get(writer, place) is not None
        assert kind.get(reader, place) is None
        assert reader.malformed_entries == 1
    assert store.refusals() == {f"{kind.name}: not authentic": 1}


@EACH_KIND
def test_value_that_was_moved_is_not_believed(keyed: StoreSubject, kind: Kind) -> None:
    """An authentic value of one place says nothing of another one."""
    place, other = kind.places
    kind.put(keyed.store, place, TTL_S)
    keyed.poke(kind.name, other, keyed.peek(kind.name, place))
    if kind.name == "load":
        keyed.poke("load", OTHER_REF, OTHER_REF.incarnation + keyed.peek("load", REF)[16:])
    assert kind.get(keyed.store, other) is None
    assert kind.get(keyed.store, place) is not None
    assert keyed.store.refusals() == {f"{kind.name}: not authentic": 1}


@EACH_KIND
def test_value_with_a_flipped_bit_is_not_believed(keyed: StoreSubject, kind: Kind) -> None:
    """Not in any of its bytes, its time included."""
    place, _ = kind.places
    kind.put(keyed.store, place, TTL_S)
    value = keyed.peek(kind.name, place)
    for at in range(len(value)):
        keyed.poke(kind.name, place, value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :])
        found = kind.get(keyed.store, place)
        in_times_of_the_script = kind.name == "load" and 16 <= at < 32
        assert found is None or in_times_of_the_script
    keyed.poke(kind.name, place, value)
    assert kind.get(keyed.store, place) is not None


@EACH_KIND
def test_value_that_is_put_back_after_its_time_is_not_believed(keyed: StoreSubject, kind: Kind) -> None:
    """Whatever its time to live in the store says."""
    place, _ = kind.places

    def stored(ttl_s: float) -> bytes | None:
        kind.put(keyed.store, place, ttl_s)
        return keyed.peek(kind.name, place)

    value = in_time(stored)
    gone(keyed, lambda: kind.get(keyed.store, place) is not None)
    assert keyed.store.refusals() == {}
    keyed.poke(kind.name, place, value)
    gone(keyed, lambda: kind.get(keyed.store, place) is not None)
    assert keyed.store.refusals().keys() == {f"{kind.name}: too old"}


def test_earlier_load_that_is_put_back_is_not_believed_by_who_knows_the_later(keyed: StoreSubject) -> None:
    """Within its time, too; the later one counts again when it is there."""
    keyed.store.publish(REF, make_load(1), [], [], ttl_s=TTL_S)
    earlier = keyed.peek("load", REF)
    keyed.store.publish(REF, make_load(2), [], [], ttl_s=TTL_S)
    later, reader = keyed.peek("load", REF), keyed.client()
    for value, running in ((earlier, 1), (later, 2), (later, 2), (earlier, None), (later, 2)):
        keyed.poke("load", REF, value)
        (found,) = reader.loads([REF])[1]
        assert (None if found is None else found.load.running) == running
    assert reader.refusals() == {"load: too old": 1}


@STRANGERS
def test_entries_of_another_key_are_left_out(keyed: StoreSubject, key: bytes) -> None:
    """Neither prompts nor the prefix map nor an order to forget is taken from a stranger; what is ours gets through."""
    store, stranger = keyed.store, keyed.client(key)
    store.heartbeat("router-1", ttl_s=TTL_S)
    for writer, seed in ((stranger, 1), (store, 2), (stranger, 3)):
        writer.append_updates([make_update(seed=seed), Flush("all", b"", f"router-{seed}")])
        writer.publish(REF, None, [make_chain(f"r{seed}")], ["done"], ttl_s=TTL_S)
    batch = store.read(BEGINNING, count=100, block_s=0)
    assert batch.updates == (make_update(seed=2), Flush("all", b"", "router-2"))
    assert [chain.request for events in batch.events for chain in events.chains] == ["r2"]
    assert store.refusals() == {"map update: not authentic": 4, "events: not authentic": 2}


def test_entries_that_are_appended_again_are_left_out(keyed: StoreSubject) -> None:
    """An order to forget is obeyed once, however often a stranger repeats it; so are events, in whichever order."""
    store = keyed.store
    store.heartbeat("router-1", ttl_s=TTL_S)
    reader = keyed.client()
    store.append_updates([Flush("all", b"", "router-1"), make_update("router-2"), make_update("router-1", seed=5)])
    for number in range(3):
        store.publish(REF, None, [], [f"r{number}"], ttl_s=TTL_S)
    first = reader.read(BEGINNING, count=100, block_s=0)
    assert (len(first.updates), len(first.events)) == (3, 3)
    for stream in ("texts", "news"):
        for value in (*keyed.entries(stream), *reversed(keyed.entries(stream))):
            keyed.put_entry(stream, value)
    again = reader.read(first.cursor, count=100, block_s=0)
    assert (again.updates, again.events) == ((), ())
    assert reader.refusals() == {"map update: too old": 6, "events: too old": 6}
    store.append_updates([make_update(seed=9)])
    store.publish(REF, None, [], ["r9"], ttl_s=TTL_S)
    last = reader.read(again.cursor, count=100, block_s=0)
    assert (len(last.updates), len(last.events)) == (1, 1)


def test_entry_of_one_stream_says_nothing_in_the_other(keyed: StoreSubject) -> None:
    """Each kind has stamps of its own."""
    store = keyed.store
    store.heartbeat("router-1", ttl_s=TTL_S)
    store.append_updates([make_update()])
    store.publish(REF, None, [], ["r1"], ttl_s=TTL_S)
    for stream, other in (("texts", "news"), ("news", "texts")):
        keyed.put_entry(other, keyed.entries(stream)[0])
    batch = store.read(BEGINNING, count=100, block_s=0)
    assert (len(batch.updates), len(batch.events)) == (1, 1)


@STRANGERS
def test_lock_of_another_key_holds_nobody_up(keyed: StoreSubject, key: bytes) -> None:
    """It is put out of the way by whoever has the key; without it, nobody sees ours."""
    store, stranger = keyed.store, keyed.client(key)
    assert stranger.lock([b"a", b"b"], router="r", worker="w9", ready_at=1.0, ttl_s=FOREVER_S).token is not None
    assert store.locks([b"a"]) == [None]
    token = store.lock([b"b", b"c"], router="router-1", worker="w1", ready_at=2.0, ttl_s=TTL_S).token
    assert token is not None
    assert store.renew_lock([b"b", b"c"], token, router="router-1", worker="w1", ready_at=3.0, ttl_s=TTL_S)
    (held,) = store.locks([b"b"])
    assert held is not None
    assert (held.token, held.worker, held.ready_at) == (token, "w1", 3.0)
    grant = keyed.client().lock([b"b"], router="router-2", worker="w2", ready_at=1.0, ttl_s=TTL_S)
    assert (grant.token, [lock.worker for lock in grant.held]) == (None, ["w1"])


@STRANGERS
def test_routers_of_another_key_do_not_count(keyed: StoreSubject, key: bytes) -> None:
    """Nor do names that a stranger enters, nor the same router twice."""
    store, stranger = keyed.store, keyed.client(key)
    stranger.heartbeat("r9", ttl_s=TTL_S)
    keyed.put_router(b"r8")
    for _ in range(2):
        assert store.heartbeat("router-1", ttl_s=TTL_S).routers == 1
    assert keyed.client().heartbeat("router-2", ttl_s=TTL_S).routers == 2
    store.deregister("router-1")
    assert keyed.client().heartbeat("router-3", ttl_s=TTL_S).routers == 2


@STRANGERS
def test_seed_follows_from_the_key(keyed: StoreSubject, key: bytes) -> None:
    """All who have the key agree on it, whatever a stranger leaves in the store and whoever is first."""
    seed = keyed.client(key).heartbeat("r9", ttl_s=TTL_S).seed
    ours = {keyed.client().heartbeat(f"router-{number}", ttl_s=TTL_S).seed for number in range(3)}
    assert len(ours) == 1
    assert ours != {seed}
