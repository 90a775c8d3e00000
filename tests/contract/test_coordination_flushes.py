"""Orders to drop blocks, and what workers answer, in every coordination store."""

from __future__ import annotations

import msgspec
import pytest

from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_connector.core.coordination.flushes import (
    FLUSHED_BLOCKS_MAX,
    ORDER_BYTES,
    FlushOrder,
    FlushReport,
    TierDropped,
)
from ghostcacher_connector.core.types import Tier
from tests.contract.coordination_subjects import StoreSubject

REPORT = FlushReport(
    (
        TierDropped(Tier.DEVICE, 3, 300),
        TierDropped(Tier.HOST, 1 << 33, 1 << 50),
        TierDropped(Tier.OBJECT, 0, 0, complete=False, error="the store is away"),
    )
)


def order(number: int, *, blocks: int = 0, router: str = "router-1") -> FlushOrder:
    hashes = tuple(block.to_bytes(32, "little") for block in range(blocks))
    return FlushOrder(number.to_bytes(ORDER_BYTES, "little"), "doc", hashes, b"", router)


def test_worker_hears_of_orders_from_now_on_once_and_in_order(store: CoordinationStore) -> None:
    """One that has just started holds nothing that an older order could mean."""
    store.append_flush(order(1))
    cursor, found = store.flush_orders(None)
    assert found == ()
    sent = (order(2, blocks=FLUSHED_BLOCKS_MAX), order(3, router="router-2"), order(4))
    for each in sent:
        store.append_flush(each)
    after, found = store.flush_orders(cursor)
    assert found[-3:] == sent
    assert store.flush_orders(after) == (after, ())
    store.append_flush(order(5))
    assert store.flush_orders(after)[1] == (order(5),)


def test_report_is_one_workers_of_one_order(store: CoordinationStore) -> None:
    """The latest counts."""
    one, two = bytes([1]) * ORDER_BYTES, bytes([2]) * ORDER_BYTES
    store.put_flush_report(one, "w1", FlushReport(()))
    store.put_flush_report(one, "w1", REPORT)
    store.put_flush_report(two, "w2", FlushReport(()))
    assert store.flush_reports(one, ["w1", "w2", "w3"]) == [REPORT, None, None]
    assert store.flush_reports(two, ["w1", "w2"]) == [None, FlushReport(())]
    assert store.flush_reports(one, []) == []


@pytest.mark.parametrize(
    "value",
    [b"", b"x", b"\x90", msgspec.msgpack.encode(order(1, blocks=FLUSHED_BLOCKS_MAX + 1)), b"\xc1" * 100],
)
def test_malformed_orders_are_left_out_and_counted(routing: StoreSubject, value: bytes) -> None:
    """Anybody may have written them."""
    cursor, _ = routing.store.flush_orders(None)
    routing.put_entry("flushes", value)
    routing.store.append_flush(order(2))
    assert routing.store.flush_orders(cursor)[1] == (order(2),)
    assert routing.store.malformed_entries == 1


def test_report_of_a_worker_of_before_is_complete_and_without_an_error() -> None:
    """It knows neither field."""
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode([[[0, 1, 10]]]), type=FlushReport)
    assert decoded == FlushReport((TierDropped(Tier.DEVICE, 1, 10, complete=True, error=None),))


def test_malformed_report_is_none_and_counted(routing: StoreSubject) -> None:
    """A tier that there is not, for instance."""
    place = bytes(ORDER_BYTES), "w1"
    routing.poke("flush report", place, msgspec.msgpack.encode([[[7, 1, 1]]]))
    assert routing.store.flush_reports(place[0], ["w1"]) == [None]
    assert routing.store.malformed_entries == 1


@pytest.mark.parametrize("key", [b"", b"another secret"], ids=["no key", "another key"])
def test_orders_of_another_key_drop_nothing(keyed: StoreSubject, key: bytes) -> None:
    """A stranger with write access to Redis empties nobody's cache."""
    store, stranger = keyed.store, keyed.client(key)
    cursor, _ = store.flush_orders(None)
    stranger.append_flush(order(1))
    store.append_flush(order(2))
    assert store.flush_orders(cursor)[1] == (order(2),)
    assert store.refusals() == {"flush: not authentic": 1}


def test_order_that_is_appended_again_is_left_out(keyed: StoreSubject) -> None:
    """An order is carried out once, however often a stranger repeats it."""
    store = keyed.store
    cursor, _ = store.flush_orders(None)
    store.append_flush(order(1))
    store.append_flush(order(2))
    cursor, found = store.flush_orders(cursor)
    assert found == (order(1), order(2))
    for value in keyed.entries("flushes"):
        keyed.put_entry("flushes", value)
    assert store.flush_orders(cursor)[1] == ()
    assert store.refusals() == {"flush: too old": 2}
