"""Which worker holds which stored object: bounded here and in the store."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_router.signals import sessions
from ghostcacher_router.signals.stored_objects import PAUSE_S, READS_MAX, StoredObjects
from ghostcacher_simulator.virtual_time import run_virtual, soon

FEW = 4


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the bound reached soon."""
    monkeypatch.setattr(sessions, "SESSIONS_MAX", FEW)


def make(store: MemoryCoordinationStore | None, *, ttl_s: float = 100.0) -> StoredObjects:
    return StoredObjects(store, soon, asyncio.get_running_loop().time, ttl_s=ttl_s)


def test_objects_are_bounded_in_the_store_too() -> None:
    """What one router forgets for want of room leaves the store; what is used stays."""

    async def main() -> None:
        store = MemoryCoordinationStore(clock=asyncio.get_running_loop().time)
        here, there = make(store.client()), make(store.client())
        here.put("used", "w1")
        for number in range(3 * FEW):
            here.put(f"resp_{number}", "w1")
            here.put("used", "w1")
            await here.flush()
        found = []
        for object_id in ["used", *(f"resp_{number}" for number in range(3 * FEW))]:
            await there.fetch(object_id)
            if there.holder(object_id) is not None:
                found.append(object_id)
        assert found == ["used", *(f"resp_{number}" for number in range(3 * FEW - FEW + 1, 3 * FEW))]

    run_virtual(main())


def test_ids_that_nobody_knows_push_nothing_out() -> None:
    """However many a client makes up."""

    async def main() -> None:
        here = make(MemoryCoordinationStore(clock=asyncio.get_running_loop().time))
        here.put("resp_real", "w1")
        for number in range(3 * FEW):
            await here.fetch(f"resp_made_up{number}")
        assert here.holder("resp_real") == "w1"

    run_virtual(main())


def test_id_on_its_way_from_another_router_is_waited_for() -> None:
    """The store is asked again, a bounded number of times."""

    async def main() -> None:
        store, loop = MemoryCoordinationStore(clock=asyncio.get_running_loop().time), asyncio.get_running_loop()
        here, there = make(store.client()), make(store.client())
        here.put("resp_1", "w1")
        fetching = asyncio.create_task(there.fetch("resp_1"))
        await asyncio.sleep(PAUSE_S / 2)
        assert not fetching.done()
        await here.flush()
        await fetching
        assert there.holder("resp_1") == "w1"
        began = loop.time()
        await there.fetch("resp_2")
        assert loop.time() - began == pytest.approx((READS_MAX - 1) * PAUSE_S, rel=0.1)
        assert there.unknown("resp_2")

    run_virtual(main())


def test_without_a_store_nobody_waits() -> None:
    """Nor while it is away."""

    async def main() -> None:
        assert not make(None).unknown("resp_1")
        store = MemoryCoordinationStore()
        here = make(store)
        store.reachable = False
        await here.fetch("resp_1")
        assert not here.unknown("resp_1")

    run_virtual(main())


def test_objects_that_nobody_uses_take_no_room_after_their_time() -> None:
    """They are let go of when another one comes, and leave the store by themselves."""

    async def main() -> None:
        here = make(MemoryCoordinationStore(clock=asyncio.get_running_loop().time), ttl_s=10.0)
        for name in ("resp_1", "resp_2"):
            here.put(name, "w1")
        await asyncio.sleep(6.0)
        here.put("resp_2", "w1")
        assert "sessions=2," in repr(here)
        await asyncio.sleep(6.0)
        here.put("resp_3", "w1")
        assert "sessions=2," in repr(here)
        assert (here.holder("resp_1"), here.holder("resp_2"), here.holder("resp_3")) == (None, "w1", "w1")

    run_virtual(main())


def test_unused_object_is_forgotten_after_its_time() -> None:
    async def main() -> None:
        here = make(None, ttl_s=10.0)
        here.put("resp_1", "w1")
        await asyncio.sleep(9.0)
        here.put("resp_1", "w1")
        await asyncio.sleep(9.0)
        assert here.holder("resp_1") == "w1"
        await asyncio.sleep(2.0)
        assert here.holder("resp_1") is None

    run_virtual(main())
