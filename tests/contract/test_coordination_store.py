"""What every coordination store must do: in memory, in one Redis, in a Redis Cluster."""

from __future__ import annotations

import threading

import msgspec
import pytest

from ghostcacher_connector.core.coordination.base import (
    STREAM_START,
    Batch,
    CoordinationStore,
    Cursor,
    DrainOrder,
    Flush,
    WorkerEvents,
)
from ghostcacher_connector.core.errors import IndexUnavailable
from tests.contract.coordination_subjects import SHORT_S, StoreSubject, gone
from tests.support.coordination_parts import make_chain, make_load, make_ref, make_update
from tests.support.index_parts import NAMESPACE, in_time, make_record

TTL_S = 60.0
BEGINNING = Cursor(STREAM_START, STREAM_START)


def read_all(store: CoordinationStore, after: Cursor = BEGINNING, *, count: int = 1000) -> Batch:
    return store.read(after, count=count, block_s=0)


# -- workers and routers -----------------------------------------------------------------------------------------------


def test_load_comes_back_with_its_time_for_the_same_life_only(store: CoordinationStore) -> None:
    """A load is found, in order of the question, stamped by the store; not for another life, worker or namespace."""
    ref, restarted, foreign = make_ref(), make_ref(), make_ref(namespace="other")
    before, _ = store.loads([])
    store.publish(ref, make_load(7), [], [], ttl_s=TTL_S)
    now, (none, found, other) = store.loads([restarted, ref, foreign])
    assert (none, other) == (None, None)
    assert found is not None
    assert found.load == make_load(7)
    assert before <= found.at <= now


def test_load_published_again_replaces_and_none_leaves_it(store: CoordinationStore) -> None:
    """The last load counts; events alone do not touch it."""
    ref = make_ref()
    for load in (make_load(1), make_load(2), None):
        store.publish(ref, load, [make_chain()], [], ttl_s=TTL_S)
    _, (found,) = store.loads([ref])
    assert found is not None
    assert found.load.running == 2


def test_loads_of_more_workers_than_one_script_takes(store: CoordinationStore) -> None:
    """Any number of workers can be asked for."""
    refs = [make_ref(f"w{n}") for n in range(1201)]
    store.publish(refs[-1], make_load(), [], [], ttl_s=TTL_S)
    _, found = store.loads(refs)
    assert [one is not None for one in found] == [False] * 1200 + [True]


def test_load_of_a_silent_worker_is_gone(routing: StoreSubject) -> None:
    """A load lives as long as was asked for."""
    ref, store = make_ref(), routing.store
    store.publish(ref, make_load(), [], [], ttl_s=SHORT_S)
    gone(routing, lambda: store.loads([ref])[1] != [None])


def test_publish_says_whether_a_router_listens(store: CoordinationStore) -> None:
    """A router listens from its first heartbeat until it deregisters; events published while none does are not kept."""
    ref = make_ref()
    assert not store.publish(ref, None, [make_chain("early")], [], ttl_s=TTL_S)
    store.heartbeat("router-1", ttl_s=TTL_S)
    assert store.publish(ref, None, [make_chain("heard")], ["done"], ttl_s=TTL_S)
    store.deregister("router-1")
    assert not store.publish(ref, None, [make_chain("late")], [], ttl_s=TTL_S)
    assert read_all(store).events == (WorkerEvents(*ref, (make_chain("heard"),), ("done",)),)


def test_silent_router_no_longer_listens(routing: StoreSubject) -> None:
    """A router that died without a bye is forgotten when its time is over; one that lives on is not."""
    routing.store.heartbeat("dead", ttl_s=TTL_S)
    assert routing.store.heartbeat("alive", ttl_s=TTL_S).routers == 2
    routing.store.heartbeat("dead", ttl_s=SHORT_S)
    gone(routing, lambda: routing.store.heartbeat("alive", ttl_s=TTL_S).routers == 2)
    assert routing.store.publish(make_ref(), None, [], [], ttl_s=TTL_S)
    routing.store.deregister("alive")
    assert not routing.store.publish(make_ref(), None, [], [], ttl_s=TTL_S)


def test_a_short_heartbeat_does_not_cut_a_long_one(routing: StoreSubject) -> None:
    """Each router is alive for its own time."""
    routing.store.heartbeat("long", ttl_s=TTL_S)
    routing.store.heartbeat("short", ttl_s=SHORT_S)
    gone(routing, lambda: routing.store.heartbeat("long", ttl_s=TTL_S).routers == 2)
    assert routing.store.heartbeat("long", ttl_s=TTL_S).routers == 1


def test_routers_agree_on_the_seed(routing: StoreSubject) -> None:
    """Every router gets the seed of the first, for as long as any lives, and also after all data was lost."""
    other = routing.client()
    seed = routing.store.heartbeat("router-1", ttl_s=TTL_S).seed
    assert 0 <= seed < 1 << 64
    assert other.heartbeat("router-2", ttl_s=TTL_S).seed == seed
    routing.flush()
    assert other.heartbeat("router-2", ttl_s=TTL_S).seed == seed
    assert routing.store.heartbeat("router-1", ttl_s=TTL_S).seed == seed


def test_drain_orders_are_shared_and_expire(routing: StoreSubject) -> None:
    """An order is seen by every replica, replaces the one before, and ends when its time is over."""
    store, other = routing.store, routing.client()
    now, found = store.drains(["w1"])
    assert found == [None]
    first, third = (DrainOrder(worker, True, now, now + TTL_S) for worker in ("w1", "w3"))
    store.put_drains([first, third, DrainOrder("w2", False, now, now - 1.0)])
    assert other.drains(["w2", "w1", "w3"])[1] == [None, first, third]
    back = DrainOrder("w1", False, now + 1.0, now + TTL_S)
    other.put_drains([back])
    assert store.drains(["w1"])[1] == [back]

    def shortened(ttl_s: float) -> bool | None:
        now, _ = store.drains([])
        short = DrainOrder("w3", True, now, now + ttl_s)
        store.put_drains([short])
        return store.drains(["w3"])[1] == [short] or None

    in_time(shortened)
    gone(routing, lambda: other.drains(["w3"])[1] != [None])
    assert other.drains(["w1"])[1] == [back]


# -- streams -----------------------------------------------------------------------------------------------------------


def test_new_router_reads_all_updates_and_events_from_now(routing: StoreSubject) -> None:
    """A router that starts is warm, and does not hear of requests that it never sent."""
    store, other = routing.store, routing.client()
    store.heartbeat("router-1", ttl_s=TTL_S)
    store.append_updates([make_update(seed=1), Flush("all", b"", "router-1")])
    store.publish(make_ref(), None, [make_chain("before")], [], ttl_s=TTL_S)
    cursor = other.start_cursor()
    store.publish(make_ref("w2"), None, [make_chain("after")], [], ttl_s=TTL_S)
    batch = read_all(other, cursor)
    assert batch.updates == (make_update(seed=1), Flush("all", b"", "router-1"))
    assert [chain.request for events in batch.events for chain in events.chains] == ["after"]
    assert read_all(other, batch.cursor) == Batch(batch.cursor, (), ())


def test_pages_give_everything_once_in_order(store: CoordinationStore) -> None:
    """Reading on from each cursor gives every item once; both stores that read so see the same."""
    updates = [make_update(seed=n) for n in range(300)]
    store.append_updates(updates)
    cursor, found = store.start_cursor(), list[object]()
    while (batch := store.read(cursor, count=64, block_s=0)).updates:
        cursor = batch.cursor
        found += batch.updates
    assert found == updates


def test_read_that_waits_is_woken_by_either_stream(routing: StoreSubject) -> None:
    """A waiting read ends as soon as there is something, in whichever stream."""
    store, other = routing.store, routing.client()
    store.heartbeat("router-1", ttl_s=TTL_S)
    for send in (
        lambda: store.publish(make_ref(), None, [], ["done"], ttl_s=TTL_S),
        lambda: store.append_updates([make_update()]),
    ):
        batches: list[Batch] = []
        cursor = read_all(other).cursor
        reader = threading.Thread(
            target=lambda cursor=cursor, batches=batches: batches.append(other.read(cursor, count=10, block_s=30))
        )
        reader.start()
        send()
        reader.join(60)
        assert not reader.is_alive()
        assert len(batches[0].events) + len(batches[0].updates) == 1


def test_read_with_nothing_to_come_ends(store: CoordinationStore) -> None:
    """A read that waits in vain comes back with nothing and the same cursor."""
    store.append_updates([make_update()])
    cursor = read_all(store).cursor
    assert store.read(cursor, count=10, block_s=0.05) == Batch(cursor, (), ())


def test_reader_behind_a_trimmed_stream_goes_on(routing: StoreSubject) -> None:
    """A cursor whose entry was trimmed away goes on with the oldest entry that is left."""
    store = routing.store
    store.append_updates([make_update(seed=n) for n in range(10)])
    cursor = store.read(store.start_cursor(), count=2, block_s=0).cursor
    routing.trim("texts", 3)
    assert read_all(store, cursor).updates == tuple(make_update(seed=n) for n in (7, 8, 9))


@pytest.mark.parametrize("value", [b"", b"\xc1", b"garbage", msgspec.msgpack.encode(["text", 1, 2]), b"\x91" * 5000])
def test_malformed_entries_are_left_out_and_counted(routing: StoreSubject, value: bytes) -> None:
    """What is none of ours is skipped, counted, and never met again; the rest comes through."""
    store = routing.store
    store.heartbeat("router-1", ttl_s=TTL_S)
    ref = make_ref()
    for stream in ("news", "texts"):
        routing.put_entry(stream, value)
    store.append_updates([make_update()])
    store.publish(ref, None, [], ["done"], ttl_s=TTL_S)
    batch = read_all(store)
    assert (batch.updates, [events.computed for events in batch.events]) == ((make_update(),), [("done",)])
    assert store.malformed_entries == 2
    assert read_all(store, batch.cursor) == Batch(batch.cursor, (), ())


@pytest.mark.parametrize(
    "fields",
    [
        (NAMESPACE, "w1", b"short", [], []),
        ("a b", "w1", bytes(16), [], []),
        (NAMESPACE, "", bytes(16), [], []),
        (NAMESPACE, "w1", bytes(16), [["r", 10, [2, 1], [b"a", b"b"]]], []),
        (NAMESPACE, "w1", bytes(16), [["r", 10, [1, 2], [b"a"]]], []),
        (NAMESPACE, "w1", bytes(16), [["r", 10, [0], [b"a"]]], []),
        (NAMESPACE, "w1", bytes(16), [["r", -1, [], []]], []),
    ],
)
def test_events_that_make_no_sense_are_malformed(routing: StoreSubject, fields: tuple[object, ...]) -> None:
    """Right types are not enough: names, widths and the order of block counts are checked."""
    routing.put_entry("news", msgspec.msgpack.encode(fields))
    assert read_all(routing.store).events == ()
    assert routing.store.malformed_entries == 1


@pytest.mark.parametrize("field", ["prefill_tokens_per_s", "age_s"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_load_with_an_impossible_number_is_malformed(routing: StoreSubject, field: str, value: float) -> None:
    """A rate or an age that would spoil every forecast is no load."""
    fields = msgspec.structs.asdict(make_load()) | {field: value}
    ref = make_ref()
    routing.put_load(ref, msgspec.msgpack.encode(fields))
    assert routing.store.loads([ref])[1] == [None]
    assert routing.store.malformed_entries == 1


def test_closed_store_is_unavailable(routing: StoreSubject) -> None:
    """After close, and that twice, every call says so."""
    store = routing.client()
    store.close()
    store.close()
    with pytest.raises(IndexUnavailable):
        store.loads([make_ref(make_record().worker)])
    with pytest.raises(IndexUnavailable):
        store.read(BEGINNING, count=1, block_s=1)
