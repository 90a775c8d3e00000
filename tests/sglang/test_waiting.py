"""Which requests wait in SGLang's queue, and what makes pulls unwanted, as one rank's scheduler sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ghostcacher_connector.engines.common.pull_state import Phase
from tests.sglang.test_flushing import Rig as FlushRig
from tests.sglang.test_sections import request
from tests.sglang.test_weights import Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.lookups.stop()


def asked(rig: Rig, answers: list[int | None]) -> list[str]:
    """Have a request in the queue, of which the matcher says these things in turn; return the names of its pages."""
    rig.scheduling.queued(SimpleNamespace(), request("r"))  # type: ignore[arg-type]
    tracked = rig.scheduling._tracked["r"]
    rig.scheduling._matcher.match = lambda *_: answers.pop(0)  # type: ignore[method-assign]
    return [block.hex() for block in tracked.chain]


def test_request_waits_while_the_index_has_not_answered(rig: Rig) -> None:
    """It is looked at again in every pass, and no longer than that."""
    keys = asked(rig, [None, None, 3])
    rig.scheduling.begin_pass()
    assert rig.scheduling.match("r", keys) == 0
    assert rig.scheduling.waits("r")
    rig.scheduling.begin_pass()
    assert not rig.scheduling.waits("r")
    assert rig.scheduling.match("r", keys) == 0
    assert rig.scheduling.waits("r")
    rig.scheduling.begin_pass()
    assert rig.scheduling.match("r", keys) == 3
    assert not rig.scheduling.waits("r")


def test_answer_within_the_same_pass_ends_the_wait(rig: Rig) -> None:
    """SGLang looks for a prefix once to order its queue, and once more to build the batch."""
    keys = asked(rig, [None, 3])
    assert rig.scheduling.match("r", keys) == 0
    assert rig.scheduling.match("r", keys) == 3
    assert not rig.scheduling.waits("r")


@pytest.mark.parametrize("own", [None, 3])
def test_request_waits_for_the_slowest_rank(rig: Rig, own: int | None) -> None:
    """Whatever this rank knows: they build the same batches."""
    keys = asked(rig, [own])
    rig.scheduling._engine.ranks = SimpleNamespace(least=lambda value: min(value, False))  # type: ignore[assignment]
    assert rig.scheduling.match("r", keys) == 0
    assert rig.scheduling.waits("r")


def changed_weights(rig: Any) -> None:
    rig.change()
    rig.scheduling.begin_pass()


def order_to_flush(rig: Any) -> None:
    rig.busy = True
    rig.order("all")
    rig.passes()


@pytest.mark.parametrize(
    ("make", "event"),
    [
        (Rig, changed_weights),
        (Rig, lambda rig: rig.flush()),
        (Rig, lambda rig: rig.scheduling.ended("r")),
        (FlushRig, order_to_flush),
    ],
    ids=["weights", "flush", "end", "order"],
)
def test_pull_of_before_is_not_wanted_any_more(make: Callable[[], Any], event: Callable[[Any], None]) -> None:
    """It would enter what was computed with other weights, or what somebody wants to be gone; or nobody asks for it."""
    rig = make()
    try:
        rig.scheduling.queued(SimpleNamespace(), request("r"))
        tracked = rig.scheduling._tracked["r"]
        load = SimpleNamespace(tracked=tracked, submitted=False, plan=None, job_id="load-1", result=None, began=0.0)
        load.pages = np.arange(2, dtype=np.int64)
        loader = rig.scheduling._loader
        loader._records = SimpleNamespace(ended=lambda *_, **__: None)
        loader._puller = SimpleNamespace(poll=lambda **_: [])
        loader._loads.append(load)
        loader._waits["r"] = load
        event(rig)
        assert loader._loads == []
        assert tracked.phase is Phase.SETTLED
        assert not rig.scheduling.waits("r")
    finally:
        rig.lookups.stop()
        if isinstance(rig, FlushRig):
            rig.desk.stop(5)
