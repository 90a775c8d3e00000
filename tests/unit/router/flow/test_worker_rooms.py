"""Which workers have room: each limit alone, an idle worker always, several routers, steps that are apart."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.flow.worker_rooms import RoomLimits, room_in
from ghostcacher_router.signals.standing import Standing
from ghostcacher_router.types import Outcome
from ghostcacher_simulator.replay.stores import Stores
from ghostcacher_simulator.virtual_time import virtual
from tests.unit.router.flow.support import Controlled, report, settled

LIMITS = RoomLimits(requests=10, waiting=4, work_ms=1000.0, kv_share=0.9)
BUSY = Standing(own=1, requests=6, waiting=0, on_the_way=0, work_ms=0.0, kv_share=0.5, reported=True)


@pytest.mark.parametrize(
    ("changed", "room"),
    [
        ({}, 4),
        ({"requests": 9}, 1),
        ({"requests": 10}, 0),
        ({"waiting": 3}, 1),
        ({"waiting": 5}, 0),
        ({"on_the_way": 3}, 1),
        ({"waiting": 2, "on_the_way": 2}, 0),
        ({"work_ms": 999.0}, 4),
        ({"work_ms": 1000.0}, 0),
        ({"kv_share": 0.9}, 0),
        ({"reported": False, "own": 6}, 4),
        ({"reported": False, "own": 11}, 0),
    ],
)
def test_each_limit_counts(changed: dict[str, float], room: int) -> None:
    assert room_in(BUSY._replace(**changed), LIMITS, 1) == room


@pytest.mark.parametrize("reported", [True, False])
def test_worker_that_has_nothing_to_do_has_room(reported: bool) -> None:
    """Whatever it reports: nothing would ever end there, and make room."""
    idle = Standing(0, 0, 0, 0, 5000.0, 1.0, reported)
    assert room_in(idle, RoomLimits(1, 1, 1.0, 0.1), 50) == 1


def test_routers_share_what_may_be_on_its_way() -> None:
    """Three routers with the same report send two each, which is less than twice what may wait."""
    assert room_in(BUSY, LIMITS, 3) == 2
    assert room_in(BUSY._replace(reported=False, own=2), LIMITS, 3) == 1


@virtual
async def test_report_counts_what_others_have_sent_and_what_came_and_went_since() -> None:
    """Of eight requests with two waiting, one that this router had there has ended, and two were sent since."""
    rig = Controlled(1, stores=Stores(pulls=False), worker_requests_max=100, worker_waiting_max=3)
    worker, queues = rig.workers[0], rig.router.routing.state.queues
    ended = (await rig.send(rig.ask("before"))).result()
    now = asyncio.get_running_loop().time() + 1.0
    await asyncio.sleep(1.0)
    report(worker, now, running=6, waiting=2, kv_blocks_used=900)
    queues.standing(worker.worker, now)
    ended.ended(Outcome.DONE, 200)
    rig.running.clear()
    for name in "ab":
        await rig.send(rig.ask(name, tokens=160))
    found = queues.standing(worker.worker, now)
    assert (found.own, found.requests, found.waiting, found.on_the_way) == (2, 9, 1, 2)
    assert found.kv_share == pytest.approx(0.92)
    assert rig.flow.report().saturated == ("w0",)
    rig.running["a"].first_byte()
    assert queues.standing(worker.worker, now).on_the_way == 1
    await rig.finish()


@virtual
async def test_both_steps_need_room_where_prompts_are_computed_apart() -> None:
    """A prompt that is computed early only lies there while those that answer are full."""
    rig = Controlled(3)
    rig.workers[0].worker.pd_role = PdRole.PREFILL
    for worker in rig.workers[1:]:
        worker.worker.pd_role = PdRole.DECODE
    rooms = rig.flow._rooms
    assert rooms.has_room("m")
    rooms.saturated = {"w0"}
    assert not rooms.has_room("m")
    rooms.saturated = {"w1"}
    assert rooms.has_room("m")
    rooms.saturated = {"w1", "w2"}
    assert not rooms.has_room("m")
    await settled()


@virtual
async def test_returning_worker_has_no_more_room_than_it_may_be_sent() -> None:
    """It was ejected, and starts slowly."""
    rig = Controlled(2, worker_requests_max=50)
    for _ in range(5):
        rig.router.fleet.failed("w0", "500", "status 500", sure=True)
    assert [worker.name for worker in rig.router.fleet.serving("m")] == ["w1"]
    await asyncio.sleep(1.01)
    assert len(rig.router.fleet.serving("m")) == 2
    assert rig.flow._rooms.room(rig.workers[0].worker) == 1
    await settled()
