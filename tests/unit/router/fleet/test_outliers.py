"""Which workers are ejected, for how long, and how they come back."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.fleet.model_lists import serving_by_model
from ghostcacher_router.fleet.options import FleetOptions
from ghostcacher_router.fleet.outliers import ERRORS_MAX, RETURN_ANSWERS, Outliers, usable
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.types import Endpoint, WorkerState
from tests.support.index_parts import FakeClock

OPTIONS = FleetOptions()


class Subject:
    """Outliers on a clock, and what they told."""

    def __init__(self) -> None:
        self.clock, self.counted, self.changes = FakeClock(), list[tuple[str, str]](), 0
        self.outliers = Outliers(
            OPTIONS, self.clock, count=lambda *labels: self.counted.append(labels), changed=self._changed
        )

    def _changed(self) -> None:
        self.changes += 1

    def fail(self, count: int = 1, worker: str = "w", *, sure: bool = True) -> None:
        for _ in range(count):
            self.outliers.failed(worker, "500", "status 500", sure=sure)

    def answer(self, count: int = 1) -> None:
        for _ in range(count):
            self.outliers.answered("w")

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        if self.outliers.due <= self.clock():
            self.outliers.settle()

    @property
    def is_ejected(self) -> bool:
        assert (self.outliers.why("w") is not None) == ("w" in self.outliers.ejected)
        return "w" in self.outliers.ejected


@pytest.fixture
def subject() -> Subject:
    return Subject()


def test_some_failures_in_a_row_eject_a_worker(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """Not one less; it is logged, counted by what the last one met, and told to people."""
    subject.fail(ERRORS_MAX - 1)
    assert (subject.is_ejected, subject.changes) == (False, 0)
    subject.fail()
    assert (subject.is_ejected, subject.counted, subject.changes) == (True, [("w", "500")], 1)
    assert "ejected for 1 s, 5 requests failed in a row, the last one: status 500" in caplog.text
    assert subject.outliers.why("w") == "ejected for 1.0 s more: its requests fail, the last one: status 500"
    assert subject.outliers.why("other") is None


def test_answer_in_between_begins_the_count_anew(subject: Subject) -> None:
    """Single failures among answers are no outlier."""
    for _ in range(100):
        subject.fail(ERRORS_MAX - 1)
        subject.answer()
    assert not subject.is_ejected


def test_ejection_ends_by_itself_and_grows_up_to_its_bound(subject: Subject) -> None:
    """A worker that fails as soon as it returns is out for longer each time, and never for longer than the bound."""
    subject.fail(ERRORS_MAX)
    for left_out_s in (1.0, 2.0, 3.0, 3.0, 3.0):
        subject.pass_time(left_out_s - 0.001)
        assert subject.is_ejected
        subject.pass_time(0.001)
        assert not subject.is_ejected
        subject.fail()
        assert subject.is_ejected


def test_worker_that_answers_again_is_as_any_other(subject: Subject) -> None:
    """After some answers it takes as many failures to eject it as at first, for as short a time."""
    subject.fail(ERRORS_MAX)
    subject.pass_time(1.0)
    subject.fail()
    subject.pass_time(2.0)
    subject.answer(RETURN_ANSWERS)
    subject.fail(ERRORS_MAX - 1)
    assert not subject.is_ejected
    subject.fail()
    subject.pass_time(OPTIONS.ejection_first_s)
    assert not subject.is_ejected


def test_worker_that_returns_starts_slowly(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """One request in flight, twice as many with each answer, then no limit; nor after a while without failure."""
    caplog.set_level("INFO")
    assert subject.outliers.limits() == {}
    subject.fail(ERRORS_MAX)
    assert subject.outliers.limits() == {}
    subject.pass_time(1.0)
    assert "worker w: no longer ejected" in caplog.text
    limits = []
    for _ in range(RETURN_ANSWERS):
        limits.append(subject.outliers.limits())
        subject.answer()
    assert [limit["w"] for limit in limits] == [1, 2, 4, 8]
    assert subject.outliers.limits() == {}
    subject.fail(ERRORS_MAX)
    subject.pass_time(1.0)
    assert subject.outliers.limits() == {"w": 1}
    subject.pass_time(OPTIONS.return_s)
    assert subject.outliers.limits() == {}
    subject.fail()
    assert subject.is_ejected


def test_what_was_sent_before_an_ejection_says_nothing_more(subject: Subject) -> None:
    """Failures do not make it longer, answers do not end it."""
    subject.fail(ERRORS_MAX)
    subject.fail(100)
    subject.answer(100)
    subject.pass_time(0.999)
    assert subject.is_ejected
    subject.pass_time(0.001)
    assert not subject.is_ejected
    assert len(subject.counted) == 1


def test_failures_that_may_be_the_requests_eject_one_worker_at_a_time(subject: Subject) -> None:
    """Whoever sends what fails everywhere takes one worker out; what another worker answers ejects as many as fail."""
    for worker in ("a", "b", "c"):
        subject.fail(3 * ERRORS_MAX, worker, sure=False)
    assert subject.outliers.ejected == {"a"}
    subject.fail(1, "b")
    subject.fail(ERRORS_MAX, "d")
    assert subject.outliers.ejected == {"a", "b", "d"}
    subject.pass_time(OPTIONS.ejection_first_s)
    subject.fail(1, "b", sure=False)
    subject.fail(1, "c", sure=False)
    assert subject.outliers.ejected == {"b"}


def test_worker_is_in_doubt_from_its_first_failure_on(subject: Subject) -> None:
    """Until it answers, and after an ejection until it is as any other."""
    assert not subject.outliers.doubts("w")
    subject.fail(sure=False)
    assert subject.outliers.doubts("w")
    subject.answer()
    assert not subject.outliers.doubts("w")
    subject.fail(ERRORS_MAX)
    subject.pass_time(OPTIONS.ejection_first_s)
    subject.answer(RETURN_ANSWERS - 1)
    assert subject.outliers.doubts("w")
    subject.answer()
    assert not subject.outliers.doubts("w")


def test_forgotten_worker_is_well(subject: Subject) -> None:
    """One that has gone down, or another incarnation of it, has no past."""
    subject.fail(ERRORS_MAX)
    subject.outliers.forget("w")
    subject.outliers.forget("w")
    assert (subject.is_ejected, subject.changes, subject.outliers.due) == (False, 2, float("inf"))


class Item(NamedTuple):
    name: str


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 12)))
def test_at_most_half_of_the_workers_are_left_out(ready: set[int], ejected: set[int]) -> None:
    """When more are ejected, all are used: then it is likely not the workers' fault."""
    items = [Item(str(number)) for number in sorted(ready)]
    names = {str(number) for number in ejected}
    kept = [item for item in items if item.name not in names]
    used = usable(items, names)
    assert used == (kept if 2 * len(kept) >= len(items) else items)
    assert bool(used) == bool(items)


def test_share_is_that_of_each_model() -> None:
    """The only worker of a model is used though it is ejected, also when another model has more of them."""
    workers = []
    for name, model in (("a", "x"), ("b", "x"), ("c", "y")):
        worker = Worker(name, Endpoint("h", 1, False, ""), None, 0.0)
        worker.state, worker.models = WorkerState.READY, frozenset({model})
        workers.append(worker)
    found = serving_by_model(workers, {"a", "c"})
    assert {model: [worker.name for worker in each] for model, each in found.items()} == {
        None: ["a", "b", "c"],
        "x": ["b"],
        "y": ["c"],
    }


@given(st.lists(st.sampled_from(["fail", "answer", "wait", "forget"]), max_size=60))
def test_any_story_ends_well(steps: list[str]) -> None:
    """Whatever happened: three seconds later nobody is ejected, one later nobody is limited, and answers clear all."""
    subject = Subject()
    for step in steps:
        match step:
            case "fail":
                subject.fail()
            case "answer":
                subject.answer()
            case "wait":
                subject.pass_time(0.7)
            case "forget":
                subject.outliers.forget("w")
        assert (subject.outliers.due < float("inf")) == subject.is_ejected
        assert not (subject.is_ejected and subject.outliers.limits())
    subject.pass_time(OPTIONS.ejection_max_s)
    assert not subject.is_ejected
    subject.pass_time(OPTIONS.return_s)
    assert subject.outliers.limits() == {}
    subject.answer(RETURN_ANSWERS)
    subject.fail(ERRORS_MAX - 1)
    assert not subject.is_ejected
