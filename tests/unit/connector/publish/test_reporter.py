"""The reporter, driven step by step over a coordination store in memory."""

from __future__ import annotations

import pytest

from ghostcacher_connector.core.coordination.base import Cursor, WorkerEvents
from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.publish.reporter import (
    BACKOFF_MAX_S,
    BACKOFF_MIN_S,
    GATHER_S,
    LISTENING_S,
    QUEUE_MAX,
    UNAPPLIED_S_MAX,
    Reporter,
)
from ghostcacher_connector.pull.forecast import PrefillRate
from tests.support.coordination_parts import make_chain, make_load, make_ref
from tests.support.index_parts import FakeClock, wait_until

INTERVAL_S = 0.2


class Bench:
    """A reporter, its store and their clock. held: until when the index has applied what was published."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryCoordinationStore(clock=self.clock)
        self.recorder = Recorder()
        self.ref = make_ref()
        self.held = float("inf")
        self.name_taken = False
        self.reporter = Reporter(
            self.store,
            self.ref,
            self.recorder,
            interval_s=INTERVAL_S,
            applied=lambda before: before <= self.held,
            name_taken=lambda: self.name_taken,
            clock=self.clock,
        )
        self.cursor = Cursor("0-0", "0-0")

    def listen(self) -> None:
        """Let a router listen, and the reporter know it."""
        self.store.heartbeat("router-1", ttl_s=1e6)
        self.reporter.step()
        assert self.reporter.listening

    def heard(self) -> list[WorkerEvents]:
        batch = self.store.read(self.cursor, count=1000, block_s=0)
        self.cursor = batch.cursor
        return list(batch.events)

    def published(self) -> int | None:
        _, (load,) = self.store.loads([self.ref])
        return None if load is None else load.load.running

    def published_age(self) -> float:
        """Return how old the load was when it was published, in s."""
        _, (load,) = self.store.loads([self.ref])
        assert load is not None
        return load.load.age_s

    def counted(self, name: str) -> float:
        value = self.recorder.drain().get(name, {}).get("", 0.0)
        assert isinstance(value, float)
        return value

    def run(self, seconds: float) -> int:
        """Step for as long as the clock says, waiting as the reporter asks; return the number of steps."""
        until, steps = self.clock.now + seconds, 0
        while self.clock.now < until:
            self.clock.advance(max(0.001, self.reporter.step()))
            steps += 1
        return steps


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_load_is_asked_for_and_published_every_interval(bench: Bench) -> None:
    """The engine is asked once an interval, shortly before the report, and the report has its answer."""
    bench.listen()
    asked = 0
    for _ in range(100):
        bench.clock.advance(0.01)
        bench.reporter.step()
        if bench.reporter.load_wanted:
            asked += 1
            bench.reporter.submit_load(make_load(asked))
            bench.reporter.step()
            assert not bench.reporter.load_wanted
            bench.clock.advance(0.06)
            bench.reporter.step()
            assert bench.published() == asked
    assert asked == pytest.approx((100 * 0.01 + asked * 0.06) / INTERVAL_S, abs=2)


def test_engine_that_answers_late_is_asked_until_it_does(bench: Bench) -> None:
    """Its last load is published meanwhile, with its true age; the wish stands until the engine grants it."""
    bench.listen()
    bench.reporter.submit_load(make_load(1))
    measured_at = bench.clock.now
    bench.run(2 * INTERVAL_S)
    for _ in range(100):
        bench.clock.advance(0.03)
        bench.reporter.step()
        assert bench.reporter.load_wanted
        assert bench.published_age() == pytest.approx(bench.clock.now - measured_at, abs=INTERVAL_S + 0.03)
    bench.reporter.submit_load(make_load(2))
    assert not bench.reporter.load_wanted
    bench.run(2 * INTERVAL_S)
    assert bench.published() == 2
    assert bench.published_age() <= 2 * INTERVAL_S


def test_long_steps_do_not_make_the_load_old(bench: Bench) -> None:
    """What is published is older than a step and two intervals at no time, whatever the engine's rhythm."""
    bench.listen()
    bench.reporter.submit_load(make_load(0))
    bench.run(2 * INTERVAL_S)
    step_s = 0.37
    for tick in range(2000):
        bench.clock.advance(0.01)
        bench.reporter.step()
        assert bench.published_age() <= step_s + 2 * INTERVAL_S
        if tick % 37 == 0 and bench.reporter.load_wanted:
            bench.reporter.submit_load(make_load(tick))


def test_idle_engine_is_reported_again_and_again(bench: Bench) -> None:
    """An engine that takes no steps hands nothing over; its last load stays in force all the same."""
    bench.listen()
    bench.reporter.submit_load(make_load(0))
    bench.run(60.0)
    assert bench.published() == 0


def test_idle_engine_is_published_with_the_rate_of_now(bench: Bench) -> None:
    """What an idle engine is held to may change, though it hands nothing over."""
    rates = iter([PrefillRate(5.0, False), PrefillRate(7.0, True)])
    reporter = Reporter(
        bench.store,
        bench.ref,
        bench.recorder,
        interval_s=INTERVAL_S,
        applied=lambda _: True,
        prefill_rate=lambda: next(rates),
        clock=bench.clock,
    )
    reporter.submit_load(make_load())
    for rate in ((5.0, False), (7.0, True)):
        reporter.step()
        _, (load,) = bench.store.loads([bench.ref])
        assert load is not None
        assert (load.load.prefill_tokens_per_s, load.load.prefill_rate_stale) == rate
        bench.clock.advance(1.0)


def test_load_of_a_dead_worker_is_gone(bench: Bench) -> None:
    """What is not repeated expires."""
    bench.listen()
    bench.reporter.submit_load(make_load(1))
    bench.run(1.0)
    bench.clock.advance(10.0)
    assert bench.published() is None


def test_chains_and_computed_are_published_with_the_next_step(bench: Bench) -> None:
    """Events do not wait for the load's turn."""
    bench.listen()
    bench.reporter.chain(make_chain("r1"))
    bench.reporter.computed("r0")
    bench.reporter.step()
    assert bench.heard() == [WorkerEvents(*bench.ref, (make_chain("r1"),), ("r0",))]
    assert bench.counted("gc_prompt_reports_total") == 1


@pytest.mark.parametrize("before_due_s", [0.15, 0.04, 0.02])
def test_computed_waits_for_the_index_in_small_pauses(bench: Bench, before_due_s: float) -> None:
    """What could not be published yet is tried again some milliseconds later, also shortly before the load's turn."""
    bench.listen()
    bench.clock.advance(INTERVAL_S - before_due_s)
    bench.held = bench.clock.now - 1.0
    bench.reporter.computed("r1")
    assert bench.reporter.step() == pytest.approx(GATHER_S)


def test_under_a_name_that_another_engine_has_nothing_is_said(bench: Bench) -> None:
    """Routers would take its load for the other's; once the name is free it reports as ever."""
    bench.listen()
    bench.name_taken = True
    bench.reporter.submit_load(make_load(1))
    bench.run(10 * INTERVAL_S)
    bench.reporter.chain(make_chain("r"))
    bench.run(10 * INTERVAL_S)
    assert (bench.published(), bench.heard(), bench.reporter.listening) == (None, [], False)
    bench.name_taken = False
    bench.reporter.submit_load(make_load(2))
    bench.run(2.0)
    assert bench.published() == 2


def test_nobody_listens_nothing_is_queued(bench: Bench) -> None:
    """Without a router chains are forgotten at once and the store is asked once a second."""
    bench.reporter.submit_load(make_load())
    for number in range(10):
        bench.reporter.chain(make_chain(f"r{number}"))
        bench.reporter.computed(f"r{number}")
    assert bench.run(10.0) <= 25
    bench.listen()
    bench.run(1.0)
    assert bench.heard() == []


def test_router_that_begins_is_noticed(bench: Bench) -> None:
    """Within a second of a router's first heartbeat, chains are published."""
    bench.run(3.0)
    bench.store.heartbeat("router-1", ttl_s=60)
    bench.run(1.1)
    bench.reporter.chain(make_chain("r1"))
    bench.run(0.01)
    assert len(bench.heard()) == 1


def test_computed_waits_for_the_index(bench: Bench) -> None:
    """A prompt counts as computed when the index holds its blocks, in order; one that never does, after a bound."""
    bench.listen()
    bench.held = bench.clock.now
    bench.reporter.computed("early")
    bench.clock.advance(0.01)
    bench.reporter.computed("late")
    bench.reporter.step()
    assert [events.computed for events in bench.heard()] == [("early",)]
    bench.run(UNAPPLIED_S_MAX / 2)
    assert bench.heard() == []
    bench.run(UNAPPLIED_S_MAX)
    assert [events.computed for events in bench.heard()] == [("late",)]


def test_store_away_pauses_grow_and_events_are_kept(bench: Bench) -> None:
    """A store that is away costs one try every two seconds; what came before, or meanwhile, arrives when it is back."""
    bench.listen()
    bench.reporter.chain(make_chain("before"))
    bench.store.reachable = False
    pauses = [bench.reporter.step() for _ in range(8)]
    assert (pauses[0], pauses[-1]) == (BACKOFF_MIN_S, BACKOFF_MAX_S)
    bench.reporter.chain(make_chain("meanwhile"))
    assert bench.counted("gc_report_errors_total") == 8
    bench.store.reachable = True
    bench.run(0.01)
    assert [chain.request for events in bench.heard() for chain in events.chains] == ["before", "meanwhile"]
    assert bench.reporter.listening


def test_store_away_for_long_nobody_is_held_to_listen(bench: Bench) -> None:
    """Events are queued for a few seconds after the last answer, no longer, and published when the store is back."""
    bench.listen()
    bench.run(2 * LISTENING_S)
    bench.store.reachable = False
    bench.run(LISTENING_S - BACKOFF_MAX_S)
    bench.reporter.chain(make_chain("soon"))
    assert bench.reporter.listening
    bench.run(LISTENING_S)
    assert not bench.reporter.listening
    bench.reporter.chain(make_chain("late"))
    bench.store.reachable = True
    bench.run(BACKOFF_MAX_S)
    assert [chain.request for events in bench.heard() for chain in events.chains] == ["soon"]
    assert bench.reporter.listening


def test_unexpected_error_nobody_is_held_to_listen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in the store's client must not fill the queues."""
    bench.listen()
    bench.reporter.chain(make_chain("r1"))
    monkeypatch.setattr(bench.store, "publish", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        bench.reporter.step()
    assert not bench.reporter.listening


def test_prompts_wake_the_thread_only_while_the_store_is_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store is away, nothing cuts the pauses between two tries short."""
    woken: list[int] = []
    monkeypatch.setattr(bench.reporter._thread, "wake", lambda: woken.append(1))
    bench.listen()
    bench.reporter.chain(make_chain("r1"))
    bench.reporter.computed("r1")
    assert len(woken) == 2
    bench.store.reachable = False
    bench.reporter.step()
    bench.reporter.chain(make_chain("r2"))
    bench.reporter.computed("r2")
    assert len(woken) == 2


def test_full_queue_drops_and_counts(bench: Bench) -> None:
    """What does not fit is dropped and counted; the rest is published, batch by batch, in order."""
    bench.listen()
    for number in range(QUEUE_MAX + 5):
        bench.reporter.chain(make_chain(f"r{number}"))
    assert bench.counted("gc_prompt_reports_dropped_total") == 5
    bench.run(1.0)
    published = [chain.request for events in bench.heard() for chain in events.chains]
    assert published == [f"r{number}" for number in range(QUEUE_MAX)]


def test_thread_publishes_by_itself_and_ends(bench: Bench) -> None:
    """The thread does by itself what the steps do."""
    store = MemoryCoordinationStore()
    reporter = Reporter(store, bench.ref, bench.recorder, interval_s=0.02, applied=lambda _: True)
    store.heartbeat("router-1", ttl_s=600)
    reporter.submit_load(make_load(3))
    reporter.start()
    wait_until(lambda: reporter.listening)
    reporter.chain(make_chain("r1"))
    reporter.computed("r1")
    batch = store.read(Cursor("0-0", "0-0"), count=10, block_s=20)
    assert batch.events[0].chains == (make_chain("r1"),)
    assert store.loads([bench.ref])[1][0] is not None
    reporter.stop()
    assert not reporter.listening
