"""A request that cannot be placed at once is decided once before it waits."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_router.placement.begun import ABANDONED_S
from ghostcacher_router.placement.picker import Picker
from ghostcacher_router.types import Ask, Outcome, Reason
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import Sim
from tests.support.shared_document import COMPUTE_S, DOC_TOKENS, ENDS, question


class Decisions:
    """Counts the decisions of a picker by request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: list[str] = []
        decide = Picker._decide_once

        def counted(picker: Picker, ask: Ask, *more: object) -> object:
            self.of.append(ask.request_id)
            return decide(picker, ask, *more)  # type: ignore[arg-type]

        monkeypatch.setattr(Picker, "_decide_once", counted)


@pytest.mark.interpreted
@virtual
async def test_cold_prompt_is_decided_once_where_the_store_confirms_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """`place` goes on with what `place_now` has reserved, and the next request sees that meanwhile."""
    sim, decisions = Sim(3, 2), Decisions(monkeypatch)
    await sim.settle()
    router = sim.routers[0]
    ask, next_ask = (router.ask(question(number), ends=ENDS) for number in range(2))
    assert router.picker.place_now(ask) is None
    assert router.routing.state.queues.in_flight_total == 1
    assert router.picker.place_now(next_ask) is None
    placed = await router.picker.place(ask)
    assert decisions.of == [ask.request_id, next_ask.request_id]
    assert placed.lock is not None
    assert placed.lock.token is not None


@virtual
async def test_request_that_nobody_goes_on_with_leaves_nothing() -> None:
    """Its client has left in that very moment: its place in the queue, and its lock, are free again."""
    sim = Sim(3, 2)
    await sim.settle()
    router = sim.routers[0]
    assert router.picker.place_now(router.ask(question(0), ends=ENDS)) is None
    assert len(router.routing.state.locks) == 1
    await asyncio.sleep(ABANDONED_S + 0.01)
    assert router.routing.state.queues.in_flight_total == 0
    assert len(router.routing.state.locks) == 0


@virtual
async def test_another_request_with_its_id_is_decided_for_itself() -> None:
    """Clients choose ids: what was begun for one is not given to another one, and is not held for nobody."""
    sim = Sim(3, 2)
    await sim.settle()
    router = sim.routers[0]
    one = router.ask(question(0), ends=ENDS)
    two = one._replace(shape=router.ask(question(1), ends=ENDS).shape)
    assert router.picker.place_now(one) is None
    placed = await router.picker.place(two)
    assert placed.ask is two
    assert router.routing.state.queues.in_flight_total == 1
    assert (await router.picker.place(one)).ask is one


@pytest.mark.interpreted
@virtual
async def test_request_that_is_asked_for_twice_before_it_waits_is_begun_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As flow control does when its turn has come."""
    sim, decisions = Sim(3, 2), Decisions(monkeypatch)
    await sim.settle()
    router = sim.routers[0]
    ask = router.ask(question(0), ends=ENDS)
    assert router.picker.place_now(ask) is None
    assert router.picker.place_now(ask) is None
    assert router.routing.state.queues.in_flight_total == 1
    placed = await router.picker.place(ask)
    assert decisions.of == [ask.request_id]
    assert placed.lock is not None
    assert placed.lock.token is not None


@pytest.mark.interpreted
@virtual
async def test_request_that_waits_for_a_lock_is_decided_once_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has to wait for is known when `place` is called."""
    sim, decisions = Sim(3, shares_prefill=False), Decisions(monkeypatch)
    await sim.settle()
    router = sim.routers[0]
    first = router.send(question(0), ends=ENDS)
    await asyncio.sleep(0)
    ask = router.ask(question(1), ends=ENDS)
    assert router.picker.place_now(ask) is None
    waiting = asyncio.ensure_future(router.picker.place(ask))
    await sim.settle(0.01)
    assert decisions.of.count(ask.request_id) == 1
    placed = await waiting
    assert (placed.reason, placed.lock_result) == (Reason.FOLLOW, "waited")
    await first


@virtual
async def test_lock_that_is_confirmed_before_the_wait_for_that_is_not_waited_for() -> None:
    """It is followed at once, which is no wait for the lock itself."""
    sim = Sim(3, 2)
    _, *others = sim.engines.values()
    for engine in others:
        engine.extra_tokens = 10 * DOC_TOKENS
    await sim.settle()
    router = sim.routers[0]
    one, two = (router.ask(question(number), ends=ENDS) for number in range(2))
    assert router.picker.place_now(one) is None
    assert router.picker.place_now(two) is None
    first = await router.picker.place(one)
    began = sim.now()
    second = await router.picker.place(two)
    assert sim.now() == began
    assert (second.worker, second.lock_result) == (first.worker, "followed")


@virtual
async def test_lock_that_is_over_before_the_wait_is_not_waited_for() -> None:
    """Who comes next takes one itself."""
    sim = Sim(3, shares_prefill=False)
    await sim.settle()
    router = sim.routers[0]
    first = router.picker.place_now(router.ask(question(0), ends=ENDS))
    assert first is not None
    ask, began = router.ask(question(1), ends=ENDS), sim.now()
    assert router.picker.place_now(ask) is None
    first.ended(Outcome.BROKE, None)
    placed = await router.picker.place(ask)
    assert placed.lock is not None
    assert sim.now() - began < COMPUTE_S / 10
