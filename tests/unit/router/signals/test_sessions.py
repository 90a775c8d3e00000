"""Sessions: which worker a client's session is at, in this router and in the store."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_router.signals.sessions import REREAD_S, SessionAffinity, session_key
from ghostcacher_simulator.virtual_time import run_virtual, soon
from tests.support.index_parts import FakeClock


def test_sessions_is_shared_behind_the_requests() -> None:
    """A binding is seen here at once, and by another router after the next write."""

    async def main() -> None:
        clock, store = asyncio.get_running_loop().time, MemoryCoordinationStore(clock=asyncio.get_running_loop().time)
        here, there = (SessionAffinity(store.client(), soon, clock) for _ in range(2))
        key = session_key("m", "somebody")
        here.bind(key, "w1")
        assert here.get(key) == "w1"
        assert not there.known(key)
        await here.write()
        await there.fetch(key)
        assert (there.known(key), there.get(key)) == (True, "w1")

    run_virtual(main())


def test_sessions_replicas_come_to_agree() -> None:
    """A session that two replicas bound apart is soon where the last write says, for both, while both use it."""

    async def main() -> None:
        clock, store = asyncio.get_running_loop().time, MemoryCoordinationStore(clock=asyncio.get_running_loop().time)
        here, there = replicas = [SessionAffinity(store.client(), soon, clock) for _ in range(2)]
        here.bind(b"k", "w1")
        there.bind(b"k", "w2")
        for replica in replicas:
            await replica.write()
        await asyncio.sleep(REREAD_S + 0.1)
        assert (here.get(b"k"), there.get(b"k")) == ("w1", "w2")
        await asyncio.sleep(0.1)
        assert (here.get(b"k"), there.get(b"k")) == ("w2", "w2")
        here.bind(b"k", "w2")
        await here.write()
        assert store.sessions([b"k"]) == ["w2"]

    run_virtual(main())


@pytest.mark.parametrize("asked_first", [True, False])
def test_sessions_answer_does_not_undo_what_was_bound_here_since(asked_first: bool) -> None:
    """Nor one that knows nothing: the store may have lost it."""

    async def main() -> None:
        store = MemoryCoordinationStore()
        affinity = SessionAffinity(store, soon, asyncio.get_running_loop().time)
        affinity.bind(b"k", "w1")
        await affinity.write()
        await asyncio.sleep(REREAD_S + 0.1)
        if asked_first:
            assert affinity.get(b"k") == "w1"
            affinity.bind(b"k", "w3")
            store.put_sessions({b"k": "w2"}, ttl_s=60)
        else:
            store.drop_sessions([b"k"])
            assert affinity.get(b"k") == "w1"
        await asyncio.sleep(0.1)
        assert affinity.get(b"k") == ("w3" if asked_first else "w1")

    run_virtual(main())


def test_sessions_writes_moves_at_once_and_touches_seldom() -> None:
    """A session that stays is written again only so often that it does not expire."""
    clock, written = FakeClock(), []

    class Store(MemoryCoordinationStore):
        def put_sessions(self, sessions, *, ttl_s):  # type: ignore[no-untyped-def]
            assert ttl_s == 80.0
            written.append(dict(sessions))

    async def main() -> None:
        affinity = SessionAffinity(Store(), soon, clock, ttl_s=80.0)
        for worker, passed in (("w1", 0), ("w1", 5), ("w2", 1), ("w2", 5), ("w2", 6)):
            clock.advance(passed)
            affinity.bind(b"k", worker)
            await affinity.write()
        assert written == [{b"k": "w1"}, {b"k": "w2"}, {b"k": "w2"}]

    run_virtual(main())


def test_sessions_expires_after_its_last_use() -> None:
    """The time to live slides: it counts from the last request."""
    clock = FakeClock()
    affinity = SessionAffinity(None, soon, clock, ttl_s=60.0)
    affinity.bind(b"k", "w")
    clock.advance(7)
    affinity.bind(b"k", "w")
    clock.advance(59)
    assert affinity.get(b"k") == "w"
    clock.advance(2)
    assert affinity.get(b"k") is None


def test_sessions_flush_reaches_the_store() -> None:
    """A session that is dropped is gone for every router; one that is bound again meanwhile is not."""

    async def main() -> None:
        store = MemoryCoordinationStore()
        affinity = SessionAffinity(store, soon, asyncio.get_running_loop().time)
        affinity.bind(b"one", "w")
        affinity.bind(b"two", "w")
        await affinity.write()
        affinity.clear()
        affinity.bind(b"two", "v")
        await affinity.write()
        assert store.sessions([b"one", b"two"]) == [None, "v"]

    run_virtual(main())


def test_sessions_store_away_writes_are_kept() -> None:
    """Bindings that could not be written are written later; nobody waits for a store that has just failed."""

    async def main() -> None:
        store = MemoryCoordinationStore()
        affinity = SessionAffinity(store, soon, asyncio.get_running_loop().time)
        store.reachable = False
        affinity.bind(b"k", "w")
        await affinity.write()
        await affinity.fetch(b"other")
        assert affinity.known(b"other")
        store.reachable = True
        await affinity.write()
        assert store.sessions([b"k"]) == ["w"]

    run_virtual(main())


def test_session_key_hides_the_session() -> None:
    """A key is a digest, its own for each model, and takes any text."""
    keys = [session_key(model, name) for model in ("a", "b", None) for name in ("x", "\ud800", "y" * 9999)]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {32}
    assert all(one != two for one, two in pairwise(keys))
