"""Own requests in flight: what the next one finds ahead."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ghostcacher_connector.index.routing import LoadReport, StampedLoad
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.routing.ledger import ARRIVAL_FIXED_S, PROGRESS_MAX_S, STALE_S, Entry, Ledger
from ghostcacher_router.types import Endpoint
from tests.support.index_parts import FakeClock, make_record

RATE = 1000.0


def make_worker(name: str = "w") -> Worker:
    return Worker(name, Endpoint("h", 1, False, ""), make_record(name), 0.0)


def report(worker: Worker, now: float, waiting_tokens: int = 0, *, used: int = 0) -> None:
    load = LoadReport(
        running=0,
        waiting=0,
        waiting_tokens=waiting_tokens,
        kv_blocks_used=used,
        kv_blocks_total=1000,
        block_tokens=16,
        block_bytes=1 << 14,
        prefill_tokens_per_s=RATE,
        pull_bytes_per_s=1e9,
        pull_fixed_s=0.004,
    )
    worker.load, worker.load_received_at = StampedLoad(now, load), now


def queue_ms(ledger: Ledger, worker: Worker, now: float) -> float:
    return ledger.ahead(worker, now).queue_ms


def test_placement_is_seen_at_once() -> None:
    """The next request waits for what the one before has to compute, before it was even sent."""
    ledger, worker = Ledger(), make_worker()
    report(worker, 10.0)
    ledger.reserve("w", 500, 400, 10.0)
    assert queue_ms(ledger, worker, 10.0) == pytest.approx(400.0)
    assert queue_ms(ledger, worker, 10.1) == pytest.approx(300.0)


def test_report_counts_what_was_sent_before_it() -> None:
    """A request that the report has counted is not counted twice; one that was sent after it is."""
    ledger, worker = Ledger(), make_worker()
    report(worker, 10.0)
    ledger.sent(ledger.reserve("w", 400, 400, 10.0), 10.0)
    report(worker, 10.2, waiting_tokens=200)
    assert queue_ms(ledger, worker, 10.2) == pytest.approx(200.0)
    ledger.sent(ledger.reserve("w", 100, 100, 10.2), 10.2)
    assert queue_ms(ledger, worker, 10.2) == pytest.approx(300.0)


def test_request_on_its_way_is_not_in_the_report() -> None:
    """A report made just after a request was sent cannot have counted it: it is still being tokenised."""
    ledger, worker = Ledger(), make_worker()
    report(worker, 10.0)
    ledger.sent(ledger.reserve("w", 400, 400, 10.0), 10.0)
    report(worker, 10.0 + ARRIVAL_FIXED_S / 2)
    assert queue_ms(ledger, worker, 10.0 + ARRIVAL_FIXED_S / 2) == pytest.approx(400.0)


def test_first_byte_and_end_take_it_off() -> None:
    """What has answered is computed; what has ended is gone."""
    ledger, worker = Ledger(), make_worker()
    report(worker, 10.0)
    entry = ledger.reserve("w", 400, 400, 10.0)
    ledger.first_byte(entry)
    assert queue_ms(ledger, worker, 10.0) == 0.0
    assert ledger.in_flight("w") == 1
    ledger.ended(entry)
    ledger.ended(entry)
    assert ledger.in_flight("w") == 0


def test_progress_is_believed_for_a_while_only() -> None:
    """A worker that stopped reporting is not taken for idle after the time that its queue would have taken."""
    ledger, worker = Ledger(), make_worker()
    report(worker, 10.0, waiting_tokens=1000)
    assert queue_ms(ledger, worker, 10.0 + PROGRESS_MAX_S + 1) == pytest.approx(1000 * (1 - PROGRESS_MAX_S))


def test_stale_report_own_count_only() -> None:
    """Without a fresh report all that was sent and has not answered is ahead, however long ago."""
    ledger, worker = Ledger(), make_worker()
    report(worker, 10.0, waiting_tokens=5000)
    ledger.sent(ledger.reserve("w", 400, 300, 10.0), 10.0)
    found = ledger.ahead(worker, 10.0 + STALE_S + 0.1)
    assert not found.reported
    assert found.queue_ms == pytest.approx(300.0)


def test_own_requests_take_free_memory() -> None:
    """KV memory that requests on their way will take is not free."""
    ledger, worker = Ledger(), make_worker()
    report(worker, 10.0, used=500)
    assert ledger.ahead(worker, 10.0).engine.kv_free_tokens == 500 * 16
    ledger.reserve("w", 3000, 10, 10.0)
    assert ledger.ahead(worker, 10.0).engine.kv_free_tokens == 5000


def test_books_of_gone_workers_are_dropped() -> None:
    """Names that come and go do not fill the memory; a request in flight keeps its worker's book."""
    ledger = Ledger()
    kept = ledger.reserve("kept", 1, 1, 0.0)
    for number in range(500):
        ledger.ended(ledger.reserve(f"w{number}", 1, 1, 0.0))
        ledger.keep_only({"w"})
    assert len(ledger._books) <= 66
    ledger.ended(kept)


class LedgerMachine(RuleBasedStateMachine):
    """Requests that are placed, sent, answered and ended in any order, among reports."""

    @initialize()
    def begin(self) -> None:
        self.ledger, self.clock = Ledger(), FakeClock()
        self.workers = [make_worker(f"w{number}") for number in range(3)]
        self.entries: list[Entry] = []

    @rule(worker=st.integers(0, 2), computed=st.integers(0, 5000))
    def reserve(self, worker: int, computed: int) -> None:
        self.entries.append(self.ledger.reserve(f"w{worker}", computed + 7, computed, self.clock()))

    @rule(number=st.integers(0, 99), step=st.sampled_from(["sent", "first_byte", "ended"]))
    def happen(self, number: int, step: str) -> None:
        if self.entries:
            entry = self.entries[number % len(self.entries)]
            if step == "sent":
                self.ledger.sent(entry, self.clock())
            else:
                getattr(self.ledger, step)(entry)

    @rule(worker=st.integers(0, 2), waiting=st.integers(0, 10_000))
    def report(self, worker: int, waiting: int) -> None:
        report(self.workers[worker], self.clock(), waiting)

    @rule(seconds=st.floats(0, 3))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.ledger.check_invariants()
        for worker in self.workers:
            found = self.ledger.ahead(worker, self.clock())
            assert found.queue_ms >= 0.0
            assert found.engine.kv_free_tokens is None or found.engine.kv_free_tokens >= 0


LedgerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
test_ledger_machine = LedgerMachine.TestCase
