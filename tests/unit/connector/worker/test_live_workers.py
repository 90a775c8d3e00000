"""The snapshot of live workers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import msgspec

from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.core.types import Role, WorkerRecord
from ghostcacher_connector.worker.live_workers import LiveWorkers
from tests.support.index_parts import NAMESPACE, FakeClock, make_record, wait_until

LEASE_S = 10.0
WAIT_S = 60.0


def test_refresh_shows_live_workers_of_the_namespace() -> None:
    """Records come in order of name; other namespaces stay out unless all are asked for."""
    index = MemoryIndex()
    b, a, other = make_record("b"), make_record("a"), make_record("c", namespace="other")
    for record in (b, a, other):
        index.join(record, lease_ttl_s=LEASE_S)
    live, everyone = LiveWorkers(index, NAMESPACE), LiveWorkers(index, None)
    live.refresh()
    everyone.refresh()
    assert live.records() == [a, b]
    assert (live.get("a"), live.get("c")) == (a, None)
    assert everyone.records() == [a, b, other]
    assert everyone.get("c") == other


def test_snapshot_is_another_one_when_anybody_has_changed() -> None:
    """Who comes, changes or goes is noticed by comparing identities; while nobody does, nothing is to be done."""
    index, clock = MemoryIndex(), FakeClock()
    live = LiveWorkers(index, NAMESPACE, lease_ttl_s=LEASE_S, clock=clock)
    nobody = live.snapshot
    index.join(make_record("a"), lease_ttl_s=LEASE_S)
    live.refresh()
    first = live.snapshot
    live.refresh()
    assert live.snapshot is first is not nobody
    index.join(make_record("a"), lease_ttl_s=LEASE_S)
    live.refresh()
    second = live.snapshot
    assert second is not first
    clock.advance(LEASE_S)
    assert live.snapshot is not second
    assert live.snapshot is live.snapshot
    assert not live.snapshot


def test_candidates_leave_out_oneself_and_mere_consumers() -> None:
    """Nobody asks itself, nor those who publish nothing."""
    index = MemoryIndex()
    me, peer = make_record("me"), make_record("peer")
    consumer = msgspec.structs.replace(make_record("consumer"), role=Role.CONSUMER)
    for record in (me, peer, consumer):
        index.join(record, lease_ttl_s=LEASE_S)
    live = LiveWorkers(index, NAMESPACE)
    live.refresh()
    assert live.candidates("me") == [ref_of(peer)]
    assert live.candidates() == [ref_of(me), ref_of(peer)]


def test_readers_ask_holders_in_different_orders() -> None:
    """Of eight equal holders none is asked first by more than a third of many readers; each reader keeps its order."""
    index = MemoryIndex()
    for number in range(8):
        index.join(make_record(f"holder{number}"), lease_ttl_s=LEASE_S)
    live = LiveWorkers(index, NAMESPACE)
    live.refresh()
    first = Counter(live.candidates(f"reader{number}")[0].worker for number in range(64))
    assert len(first) == 8
    assert max(first.values()) <= 64 / 3
    orders = [live.candidates("reader") for _ in range(2)]
    assert orders[0] == orders[1]
    assert {ref.worker for ref in orders[0]} == {f"holder{number}" for number in range(8)}
    index.join(make_record("another"), lease_ttl_s=LEASE_S)
    live.refresh()
    assert [ref for ref in live.candidates("reader") if ref.worker != "another"] == orders[0]


def test_change_is_passed_on_and_no_change_is_not() -> None:
    """`on_change` hears of joins, changes and departures, once each."""
    index, seen = MemoryIndex(), []
    live = LiveWorkers(index, NAMESPACE, on_change=lambda records: seen.append(list(records)))
    record, later = make_record("a"), make_record("a")
    live.refresh()
    for step in (record, later):
        index.join(step, lease_ttl_s=LEASE_S)
        live.refresh()
        live.refresh()
    index.leave(ref_of(later))
    live.refresh()
    assert seen == [[record], [later], []]


def test_unreachable_index_leaves_snapshot_for_one_lease() -> None:
    """The last snapshot stays in force while the workers in it may still live, and no longer."""
    clock, seen = FakeClock(), []

    def on_change(records: Sequence[WorkerRecord]) -> None:
        seen.append(len(records))

    index = MemoryIndex(clock=clock)
    live = LiveWorkers(index, NAMESPACE, on_change=on_change, lease_ttl_s=LEASE_S, clock=clock)
    index.join(make_record("a"), lease_ttl_s=LEASE_S)
    live.refresh()
    index.reachable = False
    clock.advance(LEASE_S - 0.1)
    live.refresh()
    assert [record.worker for record in live.records()] == ["a"]
    assert not live.available
    clock.advance(0.1)
    assert live.records() == []
    live.refresh()
    assert seen == [1, 0]


def test_thread_refreshes_by_itself() -> None:
    """A worker that joins later appears without anybody asking."""
    index = MemoryIndex()
    live = LiveWorkers(index, NAMESPACE, interval_s=0.01)
    live.start()
    record = make_record("a")
    index.join(record, lease_ttl_s=LEASE_S)
    wait_until(lambda: live.records() == [record])
    live.stop()


def test_what_is_passed_on_last_is_what_is_known() -> None:
    """Two threads that refresh at once pass their changes on one after the other, in the order of the snapshots."""
    index, seen = MemoryIndex(), list[Sequence[WorkerRecord]]()
    record, later = make_record("a"), make_record("a")
    begun, second_waits = threading.Event(), threading.Event()

    def on_change(records: Sequence[WorkerRecord]) -> None:
        if list(records) == [record]:
            begun.set()
            second_waits.wait(0.2)  # another thread has the time to overtake, and must not
        seen.append(list(records))
        second_waits.set()

    live = LiveWorkers(index, NAMESPACE, on_change=on_change)
    index.join(record, lease_ttl_s=LEASE_S)
    first = threading.Thread(target=live.refresh)
    first.start()
    assert begun.wait(WAIT_S)
    index.join(later, lease_ttl_s=LEASE_S)
    live.refresh()
    first.join(WAIT_S)
    assert seen == [[record], [later]]
    assert live.records() == [later]


def test_move_follows_another_namespace() -> None:
    """Nobody of the old one is known any more, at once; those of the new one with the next look."""
    index, seen = MemoryIndex(), []
    live = LiveWorkers(index, NAMESPACE, on_change=lambda records: seen.append(list(records)))
    old, new = make_record("a"), make_record("b", namespace="other")
    for record in (old, new):
        index.join(record, lease_ttl_s=LEASE_S)
    live.refresh()
    live.move("other")
    assert live.records() == []
    assert live.candidates() == []
    live.refresh()
    assert live.records() == [new]
    assert live.get("b") == new
    assert seen == [[old], [new]]


def test_answer_that_was_asked_for_before_a_move_is_dropped() -> None:
    """The index may take its time: its answer of the old namespace shows nobody in the new one."""
    seen: list[Sequence[WorkerRecord]] = []

    class Slow(MemoryIndex):
        def workers(self, namespace: str | None = None) -> list[WorkerRecord]:
            found = super().workers(namespace)
            if namespace == NAMESPACE:
                live.move("other")
            return found

    index = Slow()
    index.join(make_record("a"), lease_ttl_s=LEASE_S)
    live = LiveWorkers(index, NAMESPACE, on_change=seen.append)
    live.refresh()
    assert live.records() == []
    assert seen == []
