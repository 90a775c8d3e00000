"""Ghost locks and sessions, in every coordination store."""

from __future__ import annotations

import os
import threading

from ghostcacher_connector.core.coordination.base import CoordinationStore
from tests.contract.coordination_subjects import SHORT_S, StoreSubject, gone
from tests.support.index_parts import in_time

TTL_S = 60.0


def take(store: CoordinationStore, *keys: bytes, router: str = "router-1", ttl_s: float = TTL_S) -> int | None:
    return store.lock(keys, router=router, worker="w1", ready_at=5.25, ttl_s=ttl_s).token


def test_lock_is_all_or_nothing(routing: StoreSubject) -> None:
    """Of overlapping sets of keys the first gets all; the second gets none, and learns who holds which."""
    store, other = routing.store, routing.client()
    token = take(store, b"a", b"b", b"a")
    grant = other.lock([b"c", b"b"], router="router-2", worker="w2", ready_at=9.5, ttl_s=TTL_S)
    assert token is not None
    assert grant.token is None
    assert [(lock.key, lock.token, lock.router, lock.worker, lock.ready_at) for lock in grant.held] == [
        (b"b", token, "router-1", "w1", 5.25)
    ]
    assert [lock is not None for lock in other.locks([b"c", b"b", b"a"])] == [False, True, True]


def test_released_lock_is_free_and_token_rises(store: CoordinationStore) -> None:
    """Whoever takes a lock later has a greater token."""
    first = take(store, b"a", b"b")
    assert first is not None
    assert store.unlock({b"a": first, b"b": first})
    assert store.locks([b"a", b"b"]) == [None, None]
    second = take(store, b"a")
    assert second is not None
    assert second > first


def test_locks_of_many_tokens_are_released_together(store: CoordinationStore) -> None:
    """Those that are held by others by then stay."""
    one, two, three = take(store, b"a", b"b"), take(store, b"c"), take(store, b"d")
    assert one is not None
    assert two is not None
    assert three is not None
    assert not store.unlock({b"a": one, b"c": two, b"d": two})
    assert [lock is None for lock in store.locks([b"a", b"b", b"c", b"d"])] == [True, False, True, False]
    assert store.unlock({b"b": one, b"d": three})
    assert store.locks([b"b", b"d"]) == [None, None]


def test_tokens_rise_after_all_was_lost(routing: StoreSubject) -> None:
    """A token from before a loss of all data is never handed out again."""
    first = take(routing.store, b"a")
    routing.flush()
    second = take(routing.store, b"a", router="router-2")
    assert first is not None
    assert second is not None
    assert second > first


def test_old_token_can_neither_renew_nor_unlock(routing: StoreSubject) -> None:
    """An owner that was thought dead and comes back cannot touch its successor's lock."""
    store = routing.store
    old = take(store, b"a", ttl_s=SHORT_S)
    assert old is not None
    gone(routing, lambda: store.locks([b"a"]) != [None])
    new = take(store, b"a", router="router-2")
    assert not store.renew_lock([b"a"], old, router="r", worker="w", ready_at=99.0, ttl_s=TTL_S)
    assert not store.unlock({b"a": old})
    (held,) = store.locks([b"a"])
    assert held is not None
    assert (held.token, held.router, held.ready_at) == (new, "router-2", 5.25)


def test_renewed_lock_outlives_its_time_and_says_when(routing: StoreSubject) -> None:
    """Renewing prolongs every key and replaces the forecast."""
    store = routing.store

    def renewed(ttl_s: float) -> bool | None:
        token = take(store, b"a", b"b", ttl_s=ttl_s)
        take(store, b"other", ttl_s=ttl_s)
        assert token is not None
        return store.renew_lock([b"a", b"b"], token, router="router-1", worker="w1", ready_at=7.5, ttl_s=TTL_S) or None

    in_time(renewed)
    gone(routing, lambda: store.locks([b"other"]) != [None])
    assert [lock.ready_at for lock in store.locks([b"a", b"b"]) if lock is not None] == [7.5, 7.5]


def test_renewal_of_a_set_that_is_no_longer_whole_changes_nothing(routing: StoreSubject) -> None:
    """A token that holds only some of the keys renews none; unlocking releases those that it still holds."""
    store = routing.store
    token = take(store, b"a", b"b")
    assert token is not None
    assert store.unlock({b"b": token})
    assert not store.renew_lock([b"a", b"b"], token, router="r", worker="w", ready_at=99.0, ttl_s=TTL_S)
    assert [lock.ready_at for lock in store.locks([b"a"]) if lock is not None] == [5.25]
    assert not store.unlock({b"a": token, b"b": token})
    assert store.locks([b"a"]) == [None]


def test_simultaneous_lockers_one_wins(routing: StoreSubject) -> None:
    """However many routers ask at once, one gets the lock and all others learn of it."""
    clients = [routing.client() for _ in range(8)]
    tokens: list[int | None] = []
    threads = [
        threading.Thread(target=lambda client=client: tokens.append(take(client, b"shared", os.urandom(4))))
        for client in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(tokens) == 8
    assert sum(token is not None for token in tokens) == 1


def test_sessions_are_bound_rebound_and_dropped(routing: StoreSubject) -> None:
    """The last binding counts, on every replica; unknown and dropped sessions have none."""
    store, other = routing.store, routing.client()
    store.put_sessions({b"s1": "w1", b"s2": "w2", b"s3": "w3"}, ttl_s=TTL_S)
    other.put_sessions({b"s2": "w9"}, ttl_s=TTL_S)
    other.drop_sessions([b"s3", b"unknown"])
    assert store.sessions([b"s3", b"s2", b"unknown", b"s1"]) == [None, "w9", None, "w1"]


def test_no_sessions_no_updates_no_locks_are_no_error(store: CoordinationStore) -> None:
    """Nothing asked for is nothing answered."""
    store.put_sessions({}, ttl_s=TTL_S)
    store.drop_sessions([])
    store.append_updates([])
    assert [*store.sessions([]), *store.locks([]), *store.loads([])[1]] == []


def test_session_slides_and_ends(routing: StoreSubject) -> None:
    """Binding again prolongs a session; one that nobody uses ends."""
    store = routing.store
    store.put_sessions({b"used": "w1", b"idle": "w1"}, ttl_s=SHORT_S)
    store.put_sessions({b"used": "w1"}, ttl_s=TTL_S)
    gone(routing, lambda: store.sessions([b"idle"]) != [None])
    assert store.sessions([b"used"]) == ["w1"]
