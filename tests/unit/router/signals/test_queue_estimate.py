"""Own requests in flight: what the next one finds ahead."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ghostcacher_connector.core.coordination.base import LoadReport, StampedLoad
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.signals.engine_rates import DECODE_WEIGHT
from ghostcacher_router.signals.engine_speeds import ANSWER_TOKENS_GUESS, DECODE_TOKENS, PREFILL_TOKENS_PER_S_GUESS
from ghostcacher_router.signals.queue_estimate import (
    ARRIVAL_FIXED_S,
    PROGRESS_MAX_S,
    STALE_S,
    QueueEstimator,
)
from ghostcacher_router.signals.reservation import Reservation
from ghostcacher_router.types import Endpoint
from tests.support.index_parts import FakeClock, make_record

RATE = 1000.0


def make_worker(name: str = "w") -> Worker:
    return Worker(name, Endpoint("h", 1, False, ""), make_record(name), 0.0)


def report(
    worker: Worker,
    now: float,
    waiting_tokens: int = 0,
    *,
    running: int = 0,
    used: int = 0,
    rate: float = RATE,
    age_s: float = 0.0,
    blocks: int = 1000,
) -> None:
    """Let a worker tell its load now. age_s: since it was measured. used, blocks: of its KV cache."""
    load = LoadReport(
        running=running,
        waiting=0,
        waiting_tokens=waiting_tokens,
        kv_blocks_used=used,
        kv_blocks_total=blocks,
        block_tokens=16,
        block_bytes=1 << 14,
        prefill_tokens_per_s=rate,
        pull_bytes_per_s=1e9,
        pull_fixed_s=0.004,
        age_s=age_s,
    )
    worker.load, worker.load_measured_at = StampedLoad(now, load), now - age_s


def queue_ms(queues: QueueEstimator, worker: Worker, now: float) -> float:
    return queues.estimate(worker, now).queue_ms


def test_placement_is_seen_at_once() -> None:
    """The next request waits for what the one before has to compute, before it was even sent."""
    queues, worker = QueueEstimator(), make_worker()
    report(worker, 10.0)
    queues.reserve("w", 500, 400, 10.0)
    assert queue_ms(queues, worker, 10.0) == pytest.approx(400.0)
    assert queue_ms(queues, worker, 10.1) == pytest.approx(300.0)


def test_report_counts_what_was_sent_before_it() -> None:
    """A request that the report has counted is not counted twice; one that was sent after it is."""
    queues, worker = QueueEstimator(), make_worker()
    report(worker, 10.0)
    queues.sent(queues.reserve("w", 400, 400, 10.0), 10.0)
    report(worker, 10.2, waiting_tokens=200)
    assert queue_ms(queues, worker, 10.2) == pytest.approx(200.0)
    queues.sent(queues.reserve("w", 100, 100, 10.2), 10.2)
    assert queue_ms(queues, worker, 10.2) == pytest.approx(300.0)


def test_what_ends_after_a_report_came_is_taken_off_it() -> None:
    """Though no request has asked for the queue between."""
    queues, worker = QueueEstimator(), make_worker()
    counted = queues.reserve("w", 400, 400, 10.0)
    queues.sent(counted, 10.0)
    report(worker, 10.2, running=1)
    queues.take_reports([worker], 10.2)
    queues.ended(counted)
    assert queues.estimate(worker, 10.3).engine.step_ms == 0.0


def test_request_on_its_way_is_not_in_the_report() -> None:
    """A report made just after a request was sent cannot have counted it: it is still being tokenised."""
    queues, worker = QueueEstimator(), make_worker()
    report(worker, 10.0)
    queues.sent(queues.reserve("w", 400, 400, 10.0), 10.0)
    report(worker, 10.0 + ARRIVAL_FIXED_S / 2)
    assert queue_ms(queues, worker, 10.0 + ARRIVAL_FIXED_S / 2) == pytest.approx(400.0)


def test_first_byte_and_end_take_it_off() -> None:
    """What has answered is computed; what has ended is gone."""
    queues, worker = QueueEstimator(), make_worker()
    report(worker, 10.0)
    reservation = queues.reserve("w", 400, 400, 10.0)
    queues.first_byte(reservation)
    assert queue_ms(queues, worker, 10.0) == 0.0
    assert queues.in_flight("w") == 1
    queues.ended(reservation)
    queues.ended(reservation)
    assert queues.in_flight("w") == 0


def test_progress_is_believed_for_a_while_only() -> None:
    """A worker that stopped reporting is not taken for idle after the time that its queue would have taken."""
    queues, worker = QueueEstimator(), make_worker()
    report(worker, 10.0, waiting_tokens=1000)
    assert queue_ms(queues, worker, 10.0 + PROGRESS_MAX_S + 1) == pytest.approx(1000 * (1 - PROGRESS_MAX_S))


def test_stale_report_own_count_only() -> None:
    """Without a fresh report all that was sent and has not answered is ahead, however long ago."""
    queues, worker = QueueEstimator(), make_worker()
    report(worker, 10.0, waiting_tokens=5000)
    queues.sent(queues.reserve("w", 400, 300, 10.0), 10.0)
    found = queues.estimate(worker, 10.0 + STALE_S + 0.1)
    assert not found.reported
    assert found.queue_ms == pytest.approx(300.0)


def test_load_told_again_keeps_what_was_sent_since_it_was_measured() -> None:
    """A stale load with a fresh stamp takes nothing off: the engine had not seen these requests."""
    queues, worker = QueueEstimator(), make_worker()
    report(worker, 10.0)
    for number in range(3):
        queues.sent(queues.reserve("w", 5000, 5000, 10.1), 10.1)
        report(worker, 10.3 + number, waiting_tokens=0, age_s=0.3 + number)
        found = queues.estimate(worker, 10.3 + number)
        assert found.reported
        assert found.queue_ms >= 5000.0 * (number + 1) - PROGRESS_MAX_S * 1e3
        assert found.engine.kv_free_tokens == 1000 * 16 - 5000 * (number + 1)


@pytest.mark.parametrize("idle_s", [0.0, 0.7, 1.9, 60.0])
def test_worker_is_as_fast_after_a_long_rest(idle_s: float) -> None:
    """An idle worker is known to be idle while it tells so, however long ago that was measured."""
    queues, worker = QueueEstimator(), make_worker()
    report(worker, 100.0, age_s=idle_s)
    assert queues.estimate(worker, 100.1).reported
    queues.sent(queues.reserve("w", 400, 400, 100.1), 100.1)
    assert queue_ms(queues, worker, 100.1) == pytest.approx(400.0)
    assert queue_ms(queues, worker, 100.3) == pytest.approx(200.0)
    assert not queues.estimate(worker, 100.0 + STALE_S + 0.1).reported


def test_busy_worker_that_measures_nothing_new_is_not_believed_to_go_on() -> None:
    """Its old load, told again and again, is no sign that it computes; what it was sent meanwhile waits in full."""
    queues, worker = QueueEstimator(), make_worker()
    report(worker, 10.0, waiting_tokens=2000)
    queues.sent(queues.reserve("w", 300, 300, 15.0), 15.0)
    report(worker, 16.0, waiting_tokens=2000, age_s=6.0)
    assert queue_ms(queues, worker, 16.0) == pytest.approx(2000.0 + 300.0 - PROGRESS_MAX_S * 1e3)


def test_worker_that_reports_nothing_is_taken_for_a_typical_one() -> None:
    """It is as fast as the median of those that report, whose rates change and who come and go."""
    queues, plain, others = QueueEstimator(), make_worker("plain"), [make_worker(f"w{number}") for number in range(3)]

    def rate_of_plain() -> float:
        for other in others:
            queues.estimate(other, 10.0)
        return 1e3 / queues.estimate(plain, 10.0).engine.ms_per_token

    assert rate_of_plain() == pytest.approx(PREFILL_TOKENS_PER_S_GUESS)
    for other, rate in zip(others, (500.0, 0.0, 2000.0), strict=True):
        report(other, 10.0, rate=rate)
    assert rate_of_plain() == pytest.approx(800.0)
    assert queues.estimate(others[1], 10.0).engine.ms_per_token > 0.0
    report(others[1], 10.0, rate=1000.0)
    assert rate_of_plain() == pytest.approx(1000.0)
    report(others[1], 10.0, rate=4000.0)
    assert rate_of_plain() == pytest.approx(2000.0)
    others[0].load = others[2].load = None
    assert rate_of_plain() == pytest.approx(4000.0)


def test_rates_of_workers_that_are_gone_are_forgotten() -> None:
    """The typical worker is one of those that are there."""
    queues, plain = QueueEstimator(), make_worker("plain")
    for number in range(100):
        gone = make_worker(f"gone{number}")
        report(gone, 10.0)
        queues.estimate(gone, 10.0)
    queues.keep_only({"plain"})
    assert queues.estimate(plain, 10.0).engine.ms_per_token == 1e3 / PREFILL_TOKENS_PER_S_GUESS


def test_own_requests_take_free_memory() -> None:
    """KV memory that requests on their way will take is not free."""
    queues, worker = QueueEstimator(), make_worker()
    report(worker, 10.0, used=500)
    assert queues.estimate(worker, 10.0).engine.kv_free_tokens == 500 * 16
    queues.reserve("w", 3000, 10, 10.0)
    assert queues.estimate(worker, 10.0).engine.kv_free_tokens == 5000


def batch(queues: QueueEstimator, worker: Worker, now: float) -> int:
    """Return how many requests a worker is taken to have, by what they add to its steps."""
    engine = queues.estimate(worker, now).engine
    assert engine.decode_ms == pytest.approx(DECODE_WEIGHT * ANSWER_TOKENS_GUESS * engine.step_ms)
    return round(engine.step_ms / (DECODE_TOKENS * engine.ms_per_token))


def test_batch_follows_what_is_sent_and_what_ends() -> None:
    """Requests count from their placement to their end, decoding or not, and each once, reported or not."""
    queues, worker = QueueEstimator(), make_worker()
    report(worker, 10.0, running=3)
    assert batch(queues, worker, 10.0) == 3
    reservation = queues.reserve("w", 100, 100, 10.0)
    queues.sent(reservation, 10.0)
    assert batch(queues, worker, 10.0) == 4
    queues.first_byte(reservation)
    assert batch(queues, worker, 10.1) == 4
    report(worker, 10.2, running=4)
    assert batch(queues, worker, 10.2) == 4
    queues.ended(reservation)
    assert batch(queues, worker, 10.3) == 3
    report(worker, 10.4, running=3)
    assert batch(queues, worker, 10.4) == 3


def test_batch_is_never_less_than_what_this_router_has_there() -> None:
    """A report that is behind, or an old one, does not hide requests that have not ended."""
    queues, worker = QueueEstimator(), make_worker()
    report(worker, 10.0)
    kept = [queues.reserve("w", 100, 100, 9.0) for _ in range(5)]
    for one in kept:
        queues.first_byte(one)
    report(worker, 10.2, running=0)
    assert batch(queues, worker, 10.2) == 5
    assert batch(queues, worker, 10.2 + STALE_S + 0.1) == 5


def test_queues_of_gone_workers_are_dropped() -> None:
    """Names that come and go do not fill the memory; a request in flight keeps its worker's queue."""
    queues = QueueEstimator()
    kept = queues.reserve("kept", 1, 1, 0.0)
    for number in range(500):
        queues.ended(queues.reserve(f"w{number}", 1, 1, 0.0))
        queues.keep_only({"w"})
    assert len(queues._queues) <= 66
    queues.ended(kept)


class QueueMachine(RuleBasedStateMachine):
    """Requests that are placed, sent, answered and ended in any order, among reports."""

    @initialize()
    def begin(self) -> None:
        self.queues, self.clock = QueueEstimator(), FakeClock()
        self.workers = [make_worker(f"w{number}") for number in range(3)]
        self.reservations: list[Reservation] = []

    @rule(worker=st.integers(0, 2), computed=st.integers(0, 5000))
    def reserve(self, worker: int, computed: int) -> None:
        self.reservations.append(self.queues.reserve(f"w{worker}", computed + 7, computed, self.clock()))

    @rule(number=st.integers(0, 99), step=st.sampled_from(["sent", "first_byte", "ended"]))
    def happen(self, number: int, step: str) -> None:
        if self.reservations:
            reservation = self.reservations[number % len(self.reservations)]
            if step == "sent":
                self.queues.sent(reservation, self.clock())
            else:
                getattr(self.queues, step)(reservation)

    @rule(worker=st.integers(0, 2), waiting=st.integers(0, 10_000))
    def report(self, worker: int, waiting: int) -> None:
        report(self.workers[worker], self.clock(), waiting)

    @rule(seconds=st.floats(0, 3))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "queues"):
            return
        self.queues.check_invariants()
        for worker in self.workers:
            found = self.queues.estimate(worker, self.clock())
            assert found.queue_ms >= 0.0
            assert found.engine.kv_free_tokens is None or found.engine.kv_free_tokens >= 0


QueueMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
test_queue_machine = QueueMachine.TestCase


def plain_worker(name: str = "p") -> Worker:
    return Worker(name, Endpoint("h", 1, False, ""), None, 0.0)


def test_worker_that_reports_nothing_makes_progress_with_its_first_prompt_only() -> None:
    """What has passed since it began is taken off, at most one prompt: the next one has begun when this is answered."""
    queues, worker = QueueEstimator(), plain_worker()
    ms = 1e3 / PREFILL_TOKENS_PER_S_GUESS
    first = queues.reserve("p", 2000, 2000, 10.0)
    queues.reserve("p", 1000, 1000, 10.0)
    assert queue_ms(queues, worker, 10.0) == pytest.approx(3000 * ms)
    assert queue_ms(queues, worker, 10.1) == pytest.approx(3000 * ms - 100.0)
    assert queue_ms(queues, worker, 99.0) == pytest.approx(1000 * ms)
    queues.first_byte(first)
    queues.ended(first)
    queues.check_invariants()


def test_time_until_an_answer_bounds_what_a_plain_worker_has_computed() -> None:
    """Ten tokens a millisecond; of a worker that reports, or a prompt that is known to be computed, nothing is told."""
    queues, reporting = QueueEstimator(), make_worker("w")
    first, second = (queues.reserve("p", 5000, 100, 10.0) for _ in range(2))
    queues.sent(second, 10.1)
    assert (first.alone, second.alone) == (True, False)
    assert queues.computed_max(first, 10.2) == pytest.approx(2000, abs=1)
    assert queues.computed_max(second, 10.2) == pytest.approx(1000, abs=1)
    queues.answer_began(first, 10.2)
    assert queues.computed_max(first, 10.3) is None
    queues.answer_began(second, 10.2)
    assert queues.reserve("p", 5000, 100, 11.0).alone
    told = queues.reserve("w", 5000, 100, 11.0)
    report(reporting, 11.0)
    queues.estimate(reporting, 11.0)
    assert queues.computed_max(told, 12.0) is None


def test_prompt_that_its_worker_may_still_have_says_nothing_of_the_rate() -> None:
    queues, worker = QueueEstimator(), plain_worker()
    for at, is_new in ((1.0, True), (2.0, False)):
        queues.answer_began(queues.reserve("p", 1000, 1000, at), at + (1.0 if is_new else 0.01), is_new=is_new)
    assert 1e3 / queues.estimate(worker, 3.0).engine.ms_per_token == pytest.approx(1000.0)


def test_rate_of_workers_that_report_nothing_is_learned_from_their_answers() -> None:
    """A thousand tokens a second, told by the time between answers; how long the first ones waited says nothing."""
    queues, worker = QueueEstimator(), plain_worker()
    placed = [queues.reserve("p", 1000, 1000, 0.0) for _ in range(5)]
    for number, one in enumerate(placed[:4]):
        queues.answer_began(one, number + 1.0)
    assert queue_ms(queues, worker, 4.0) == pytest.approx(1000.0)
    assert queues.estimate(worker, 4.0).prefilling == 1
