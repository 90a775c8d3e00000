"""The state machine of one worker, and its watch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.fleet.engine_metrics import AdapterUse
from ghostcacher_router.fleet.options import FleetOptions
from ghostcacher_router.fleet.probes import ProbeFailed
from ghostcacher_router.fleet.watch import Watch, WatchDependencies, backoff_s
from ghostcacher_router.fleet.worker import MOVES, Move, Worker
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.types import Endpoint, WorkerState
from tests.support.index_parts import FakeClock, make_record

ENDPOINT = Endpoint("127.0.0.1", 8000, False, "")
MODEL: Mapping[str, object] = {"id": "m"}


class ScriptedProber:
    """Answers as told. during: called while a probe is under way."""

    def __init__(self) -> None:
        self.fails: ProbeFailed | None = None
        self.objects: tuple[Mapping[str, object], ...] = (MODEL,)
        self.during: Any = lambda: None
        self.models_asked = 0

    async def health(self, endpoint: Endpoint) -> None:
        assert endpoint is ENDPOINT
        self.during()
        if self.fails is not None:
            raise self.fails

    async def models(self, endpoint: Endpoint) -> tuple[Mapping[str, object], ...]:
        assert endpoint is ENDPOINT
        self.models_asked += 1
        return self.objects

    async def cache_tokens(self, endpoint: Endpoint) -> int | None:
        raise AssertionError(f"{endpoint}: a watch asks for no metrics")

    async def adapter_use(self, endpoint: Endpoint) -> AdapterUse | None:
        raise AssertionError(f"{endpoint}: a watch asks for no metrics")


class Subject:
    """A watched worker with a clock and a prober that do as they are told."""

    def __init__(self, options: FleetOptions | None = None) -> None:
        self.clock, self.prober, self.changes = FakeClock(), ScriptedProber(), 0
        self.options = options or FleetOptions()
        self.worker = Worker("w", ENDPOINT, None, self.clock())
        self.downs: list[str] = []
        self.ups: list[str] = []
        self.hung: list[float] = []
        self.listed: list[list[str]] = []
        dependencies = WatchDependencies(
            self.prober,
            self.options,
            RouterMetrics(),
            self.clock,
            lambda: 0.5,
            self._changed,
            self.downs.append,
            lambda worker: self.ups.append(worker.name),
            lambda _, since: self.hung.append(since),
            lambda worker: self.listed.append(sorted(worker.models)),
        )
        self.watch = Watch(self.worker, dependencies)

    def _changed(self) -> None:
        self.changes += 1

    def probe(self) -> WorkerState:
        asyncio.run(self.watch.probe())
        return self.worker.state

    def go_down(self) -> None:
        """Let a probe find nobody."""
        self.prober.fails = ProbeFailed("connection refused", certain=True)
        assert self.probe() is WorkerState.DOWN
        self.prober.fails = None

    @property
    def pause_s(self) -> float:
        return round(self.watch._due - self.clock(), 6)


@pytest.fixture
def subject() -> Subject:
    return Subject()


def test_table_names_every_state_and_move() -> None:
    """No move is left to chance in any state."""
    assert set(MOVES) == {(state, move) for state in WorkerState for move in Move}


STEPS = ["ok", "slow", "nobody", "refused", "broke", "answered", "drain", "undrain", "other models", "broke meanwhile"]


@given(st.lists(st.sampled_from(STEPS), max_size=40))
def test_any_story_keeps_invariants(steps: list[str]) -> None:
    """Whatever happens in whatever order: only a probe that nothing contradicts makes a worker READY."""
    subject = Subject()
    for step in steps:
        before = subject.worker.state
        play(subject, step)
        subject.worker.check_invariants()
        after = subject.worker.state
        if step == "nobody":
            assert after in (WorkerState.DOWN, WorkerState.JOINING)
        if step in ("broke", "broke meanwhile"):
            assert after is before
        assert subject.downs.count("w") >= (after is WorkerState.DOWN)
        if before in (WorkerState.DOWN, WorkerState.JOINING) and after is not before and after is not WorkerState.DOWN:
            assert step in ("ok", "other models")
        assert subject.pause_s <= subject.options.health_interval_s * 1.2


def play(subject: Subject, step: str) -> None:
    subject.prober.fails, subject.prober.during = None, lambda: None
    match step:
        case "slow":
            subject.prober.fails = ProbeFailed("slow")
        case "nobody":
            subject.prober.fails = ProbeFailed("gone", certain=True)
        case "broke meanwhile":
            subject.prober.during = lambda: subject.watch.lost(refused=False)
        case "other models":
            subject.clock.advance(60.0)
            subject.prober.objects = ({"id": "n"},)
        case "refused" | "broke":
            return subject.watch.lost(refused=step == "refused")
        case "answered":
            return subject.watch.answered()
        case "drain" | "undrain":
            return subject.watch.drain(step == "drain")
    subject.probe()
    return None


def test_first_answer_makes_ready_with_models(subject: Subject) -> None:
    """A worker joins, says what it serves, and gets requests."""
    assert subject.worker.state is WorkerState.JOINING
    assert subject.probe() is WorkerState.READY
    assert subject.worker.models == {"m"}
    assert subject.changes > 0


def test_nobody_there_is_down_at_once_and_backs_off(subject: Subject) -> None:
    """A probe that finds nobody takes the worker out; pauses double up to their bound; an answer brings it back."""
    subject.probe()
    subject.prober.fails = ProbeFailed("connection refused", certain=True)
    assert (subject.probe(), subject.pause_s, subject.downs) == (WorkerState.DOWN, 0.2, ["w"])
    pauses = []
    for _ in range(6):
        subject.probe()
        pauses.append(subject.pause_s)
    assert pauses == [0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    subject.prober.fails = None
    assert subject.probe() is WorkerState.READY
    assert (subject.worker.failures, subject.downs) == (0, ["w"])


def test_coming_up_is_told_once_each_time(subject: Subject) -> None:
    """With the first probe that is answered, and with the first one after it was DOWN; a failure between is none."""
    subject.prober.fails = ProbeFailed("it loads")
    subject.probe()
    assert subject.ups == []
    subject.prober.fails = None
    subject.probe()
    subject.probe()
    subject.prober.fails = ProbeFailed("slow")
    subject.probe()
    subject.prober.fails = None
    subject.probe()
    assert subject.ups == ["w"]
    subject.go_down()
    assert subject.ups == ["w"]
    subject.probe()
    subject.probe()
    assert subject.ups == ["w", "w"]


def test_worker_that_is_known_to_be_well_comes_up_with_its_first_probe(subject: Subject) -> None:
    """One that takes over from another name of the same server is READY from the beginning."""
    subject.worker.serves((MODEL,), subject.clock())
    subject.worker.move(Move.ANSWERED, subject.clock())
    subject.probe()
    assert subject.ups == ["w"]


def test_worker_that_never_answers_is_named_once(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """An engine that loads is no news; one that is still not there after a minute may have a wrong URL."""
    subject.prober.fails = ProbeFailed("/health: connection refused", certain=True)
    assert subject.probe() is WorkerState.JOINING
    subject.clock.advance(subject.options.joining_said_s - 1.0)
    subject.probe()
    assert not caplog.messages
    subject.clock.advance(1.0)
    for _ in range(3):
        subject.probe()
    assert caplog.messages == [
        "worker w: still joining after 60 s, and gets no requests: /health: connection refused; "
        f"does it still load, is {ENDPOINT.url} right?"
    ]


@pytest.mark.parametrize("refused", [True, False])
def test_one_lost_request_is_no_verdict_but_has_the_worker_probed_at_once(subject: Subject, refused: bool) -> None:
    """It may be the request's own doing, or a busy worker's; what the probe says counts."""
    subject.probe()
    subject.clock.advance(1.0)
    subject.watch.lost(refused=refused)
    assert (subject.worker.state, subject.pause_s, subject.worker.refusals) == (WorkerState.READY, 0.0, 1)
    assert subject.probe() is WorkerState.READY
    assert subject.worker.failures == 0


def test_lost_requests_have_a_worker_probed_no_more_often_than_with_backoff(subject: Subject) -> None:
    """However many there are."""
    subject.probe()
    for _ in range(100):
        subject.watch.lost(refused=False)
    assert (subject.worker.state, subject.pause_s) == (WorkerState.READY, subject.options.backoff_first_s)


def test_connections_that_cannot_be_made_take_a_worker_out_after_some_in_a_row(subject: Subject) -> None:
    """Also while a probe still waits for its answer; one that is answered in between begins the count anew."""
    subject.probe()
    for state in [WorkerState.READY] * 2:
        subject.watch.lost(refused=True)
        assert subject.worker.state is state
    subject.watch.answered()
    for state in [WorkerState.READY, WorkerState.READY, WorkerState.DOWN]:
        subject.watch.lost(refused=True)
        assert subject.worker.state is state


def test_answer_older_than_what_went_wrong_does_not_count(subject: Subject) -> None:
    """A probe that was under way meanwhile forgives nothing: another one follows."""
    subject.probe()
    subject.clock.advance(1.0)
    subject.prober.during = lambda: subject.watch.lost(refused=True)
    assert [subject.probe() for _ in range(3)] == [WorkerState.READY, WorkerState.READY, WorkerState.DOWN]
    assert [subject.probe(), subject.pause_s] == [WorkerState.DOWN, 0.2]


def test_slow_answers_are_forgiven_some_times(subject: Subject) -> None:
    """One slow probe is no reason; three in a row are, unless a request got its answer in between."""
    subject.probe()
    subject.prober.fails = ProbeFailed("no answer within 3 s")
    assert [subject.probe() for _ in range(2)] == [WorkerState.READY] * 2
    subject.watch.answered()
    assert [subject.probe() for _ in range(3)] == [WorkerState.READY, WorkerState.READY, WorkerState.DOWN]


def test_late_answer_does_not_revive(subject: Subject) -> None:
    """An answer that was still under way says nothing about new connections."""
    subject.probe()
    subject.go_down()
    subject.watch.answered()
    assert subject.worker.state is WorkerState.DOWN
    assert subject.worker.failures == 1


def test_drain_is_remembered_while_down(subject: Subject) -> None:
    """A drained worker that fails and answers again is the same incarnation: it still gets nothing."""
    subject.probe()
    subject.watch.drain(True)
    assert subject.worker.state is WorkerState.DRAINING
    subject.go_down()
    assert subject.probe() is WorkerState.DRAINING
    subject.watch.drain(False)
    assert subject.worker.state is WorkerState.READY


def test_models_are_asked_again_when_due_or_after_failure(subject: Subject) -> None:
    """A worker that is well is asked now and then; one that comes back, at once: it may be another engine."""
    subject.probe()
    subject.probe()
    assert subject.prober.models_asked == 1
    subject.clock.advance(subject.options.models_interval_s)
    subject.prober.objects = ({"id": "other"},)
    subject.probe()
    assert subject.worker.models == {"other"}
    subject.go_down()
    subject.probe()
    assert subject.prober.models_asked == 3


def test_joining_worker_is_asked_often(subject: Subject) -> None:
    """An engine that loads for minutes stays JOINING, says why, and is asked every second at least."""
    subject.prober.fails = ProbeFailed("connection refused", certain=True)
    for _ in range(10):
        assert subject.probe() is WorkerState.JOINING
    assert subject.pause_s == subject.options.joining_max_s
    assert subject.worker.error == "connection refused"


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_is_bounded(failures: int, jitter: float) -> None:
    """However often it failed, a pause is within a tenth of its bounds."""
    pause_s = backoff_s(failures, first_s=0.2, max_s=5.0, jitter=lambda: jitter)
    assert 0.2 * 0.9 <= pause_s <= 5.0 * 1.1


def test_drain_id_is_of_one_incarnation() -> None:
    """Two incarnations of a worker are drained apart; a plain engine goes by its name."""
    first, second = (Worker("w", ENDPOINT, make_record("w"), 0.0) for _ in range(2))
    assert first.drain_id != second.drain_id
    assert Worker("h:1", ENDPOINT, None, 0.0).drain_id == "h:1"


SILENT = ProbeFailed("no answer", silent=True)


def test_worker_that_answers_no_probe_hangs_once_it_is_down(subject: Subject) -> None:
    """It is told each time, with the time since which nothing came."""
    subject.probe()
    subject.prober.fails = SILENT
    began = []
    for _ in range(5):
        subject.clock.advance(10.0)
        began.append(subject.clock())
        subject.probe()
    assert subject.downs == ["w"]
    assert subject.hung == began[:3]


@pytest.mark.parametrize("sign", ["answer", "ok", "refusal", "wrong"])
def test_sign_of_life_begins_the_count_anew(subject: Subject, sign: str) -> None:
    """A worker that refuses, or answers wrongly, may end what it has; one that hangs does not."""
    subject.probe()
    for round_ in range(4):
        subject.prober.fails = SILENT
        subject.probe()
        subject.probe()
        subject.prober.fails = {"refusal": ProbeFailed("x", certain=True), "wrong": ProbeFailed("500")}.get(sign)
        if sign == "answer":
            subject.watch.answered()
        else:
            subject.probe()
        assert subject.hung == [], round_


def test_worker_that_is_down_for_another_reason_is_found_to_hang(subject: Subject) -> None:
    """Connections to it may have failed before its probes did."""
    subject.probe()
    subject.prober.fails = ProbeFailed("503", certain=True)
    subject.probe()
    subject.prober.fails = SILENT
    assert [(subject.probe(), len(subject.hung)) for _ in range(3)] == [(WorkerState.DOWN, n) for n in (0, 0, 1)]


@pytest.mark.parametrize(("fails", "probes"), [(SILENT, 3), (ProbeFailed("refused", certain=True), 1)])
def test_worker_that_left_is_looked_after_until_its_end_is_clear(
    subject: Subject, fails: ProbeFailed, probes: int
) -> None:
    """It hangs, or nobody listens any more."""
    subject.probe()
    subject.clock.advance(60.0)
    subject.prober.fails = fails
    asked = []

    def again() -> None:
        asked.append(1)
        subject.clock.advance(60.0)  # So that no probe has to wait.

    subject.prober.during = again
    asyncio.run(subject.watch.look_after(3600.0))
    assert (len(asked), len(subject.hung)) == (probes, 1 if fails is SILENT else 0)


def test_worker_that_left_and_answers_is_looked_after_for_a_while() -> None:
    """Its requests go on as long as they like."""
    subject = Subject(FleetOptions(health_interval_s=0.01))
    subject.probe()
    subject.prober.during = lambda: subject.clock.advance(60.0)
    subject.clock.advance(60.0)
    asyncio.run(subject.watch.look_after(600.0))
    assert (subject.worker.state, subject.hung) == (WorkerState.READY, [])
