"""Requests that get no turn, and when: bounds, deadlines, what nobody may ask for. What they are told."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_router.types import NoWorker
from ghostcacher_simulator.virtual_time import virtual
from tests.unit.router.flow.support import Controlled, header, refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"headers": {b"x-gc-priority": b"-1"}}, "x-gc-priority: expected an int from 0 to 100, got '-1'"),
        ({"headers": {b"x-gc-priority": b"soon"}}, "x-gc-priority: expected an int from 0 to 100, got 'soon'"),
        ({"priority": 101}, "priority: expected an int from 0 to 100, got '101'"),
        (
            {"headers": {b"x-gc-deadline-ms": b"1.5"}},
            "x-gc-deadline-ms: expected a whole number of ms from 0 to 999999999, got '1.5'",
        ),
        (
            {"headers": {b"x-gc-deadline-ms": b"1000000000"}},
            "x-gc-deadline-ms: expected a whole number of ms from 0 to 999999999, got '1000000000'",
        ),
    ],
)
def test_what_nobody_may_ask_for_is_refused(given: dict[str, object], message: str) -> None:
    @virtual
    async def run() -> None:
        rig = Controlled(priorities="client", deadlines=True)
        with pytest.raises(NoWorker) as caught:
            rig.flow.place_now(rig.ask("a", **given))
        assert (caught.value.status, caught.value.message) == (400, message)
        rig.check_idle()

    run()


@virtual
async def test_full_queue_says_when_to_come_back() -> None:
    """By the turns that it has given lately: one in 10 s here, and three wait."""
    rig = Controlled(queue_max=3, queue_timeout_s=600.0)
    for name in "abcd":
        await rig.send(rig.ask(name))
    for ends, comes in zip("abc", "efg", strict=True):
        await asyncio.sleep(10)
        await rig.end(ends)
        await rig.send(rig.ask(comes))
    error = await refused(await rig.send(rig.ask("h")))
    assert (error.status, error.kind, error.retry_after_s) == (429, "queue_full", 30)
    assert error.message == "All workers are busy, and 3 requests wait for them already. Please try again later."
    assert rig.refusals() == {"full": 1}
    await rig.finish()


@virtual
async def test_displaced_request_is_told_at_once() -> None:
    """The last one of a tenant that fills the queue alone gives way."""
    rig = Controlled(queue_max=3, tenants="cache_salt")
    await rig.send(rig.ask("runs"))
    flood = [await rig.send(rig.ask(f"flood{number}", cache_salt="flood")) for number in range(3)]
    await rig.send(rig.ask("small", cache_salt="small"))
    assert [task.done() for task in flood] == [False, False, True]
    assert (await refused(flood[2])).status == 429
    assert rig.refusals() == {"displaced": 1}
    await rig.finish()
    assert rig.order == ["runs", "flood0", "small", "flood1"]


@virtual
async def test_bytes_that_wait_are_bounded() -> None:
    rig = Controlled(queue_bytes_max=100)
    await rig.send(rig.ask("runs"))
    await rig.send(rig.ask("fits", size=80))
    assert (await refused(await rig.send(rig.ask("large", size=30)))).status == 429
    assert rig.flow.report().bytes == 80
    await rig.finish()


@virtual
async def test_urgent_long_request_takes_the_places_of_several() -> None:
    """Each of them is told at once that it lost its place."""
    rig = Controlled(queue_bytes_max=100, priorities="client")
    await rig.send(rig.ask("runs"))
    low = [await rig.send(rig.ask(f"low{number}", size=30, priority=5)) for number in range(3)]
    urgent = await rig.send(rig.ask("urgent", size=60, priority=1))
    assert [task.done() for task in low] == [False, True, True]
    assert [(await refused(task)).kind for task in low[1:]] == ["queue_full", "queue_full"]
    assert not urgent.done()
    await rig.finish()


@virtual
async def test_wait_ends_with_its_bound() -> None:
    rig = Controlled(queue_timeout_s=5.0)
    await rig.send(rig.ask("runs"))
    began = asyncio.get_running_loop().time()
    error = await refused(await rig.send(rig.ask("waits")))
    assert (error.status, error.kind) == (503, "queue_timeout")
    assert error.retry_after_s is not None
    assert asyncio.get_running_loop().time() - began == pytest.approx(5.0)
    await rig.finish()


@virtual
async def test_deadline_ends_a_wait_at_once() -> None:
    """It counts from when the router had the request, and not from when it began to wait."""
    rig = Controlled(deadlines=True)
    await rig.send(rig.ask("runs"))
    ask = rig.ask("waits", header(b"x-gc-deadline-ms", 1500))
    await asyncio.sleep(1)
    began = asyncio.get_running_loop().time()
    error = await refused(await rig.send(ask))
    assert (error.status, error.kind) == (504, "deadline_passed")
    assert error.message == "The deadline of the request passed while it waited for a worker, after 1500 ms."
    assert asyncio.get_running_loop().time() - began == pytest.approx(0.5)
    late = rig.ask("late", header(b"x-gc-deadline-ms", 0))
    assert (await refused(await rig.send(late))).status == 504
    assert rig.refusals() == {"deadline": 2}
    await rig.finish()


@pytest.mark.interpreted
@virtual
async def test_deadline_counts_without_a_queue() -> None:
    """It bounds what the picker waits for, such as the store that is to say where a session is."""
    rig = Controlled(queue_max=0, deadlines=True)

    async def never(_: object) -> None:
        await asyncio.sleep(100)

    rig.flow._picker.place_now = lambda _: None  # type: ignore[method-assign]
    rig.flow._picker.place = never  # type: ignore[method-assign, assignment]
    began = asyncio.get_running_loop().time()
    error = await refused(await rig.send(rig.ask("a", header(b"x-gc-deadline-ms", 200))))
    assert (error.status, asyncio.get_running_loop().time() - began) == (504, pytest.approx(0.2))
    rig.check_idle()


@virtual
async def test_request_whose_first_step_gets_no_turn_gets_none() -> None:
    """Whoever makes two steps of it would have it placed as a whole then: it is told the same, and counted once."""
    rig = Controlled(queue_max=1, queue_timeout_s=5.0)
    await rig.send(rig.ask("runs"))
    await rig.send(rig.ask("waits"))
    for ask in (rig.ask("full"), rig.ask("still full")):
        errors = [await refused(await rig.send(ask)) for _ in range(2)]
        assert [error.status for error in errors] == [429, 429]
    late = rig.ask("late")
    await rig.end("runs")
    await rig.send(late)
    error = await refused(rig.tasks["late"])
    assert (await refused(await rig.send(late))) is error
    assert rig.refusals() == {"full": 2, "timeout": 1}
    await rig.finish()
