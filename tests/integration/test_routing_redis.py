"""The routing store over a real Redis: what only a real one can do. The contract is in tests/contract."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from ghostcacher_connector import schema
from ghostcacher_connector.errors import IndexUnavailable
from ghostcacher_connector.index.routing import Batch, Cursor, Flush
from ghostcacher_connector.index.routing_redis import RedisRoutingStore
from tests.support.index_parts import wait_until
from tests.support.redis_server import Proxy, RedisServer
from tests.support.routing_parts import make_chain, make_load, make_ref, make_text

TTL_S = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def raw(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisRoutingStore]:
    with closing(RedisRoutingStore(server.url, timeout_s=2.0)) as store:
        yield store


def fill(store: RedisRoutingStore) -> None:
    """Make every kind of key."""
    store.hello("router-1", ttl_s=TTL_S)
    store.tell(make_ref(), make_load(), [make_chain()], ["r"], ttl_s=TTL_S)
    store.append([make_text(), Flush("all", b"", "router-1")])
    store.lock([b"a", b"b"], router="router-1", worker="w1", ready_at=1.0, ttl_s=TTL_S)
    store.put_sessions({b"s": "w1"}, ttl_s=TTL_S)
    store.set_drain("w1", True, ttl_s=TTL_S)


def test_every_key_expires_and_lies_on_one_shard(store: RedisRoutingStore, raw: redis.Redis) -> None:
    """Nothing outlives its use, and all that a script may touch has one hash tag."""
    fill(store)
    keys = [key.decode() for key in raw.scan_iter() if isinstance(key, bytes)]
    assert len(keys) == 10
    assert all(raw.ttl(key) > 0 for key in keys)
    assert all(key.startswith("gc1:{router}:") for key in keys)


def test_redis_restarts_empty_reader_goes_on(server: RedisServer, store: RedisRoutingStore) -> None:
    """A reader whose Redis died hears of it, and after the restart of what is new, with its old cursor."""
    store.append([make_text(seed=1)])
    cursor = store.read(store.start(), count=10, block_s=0).cursor
    server.kill()
    with pytest.raises(IndexUnavailable):
        store.read(cursor, count=10, block_s=0)
    server.start()
    store.append([make_text(seed=2)])
    assert store.read(cursor, count=10, block_s=0).texts == (make_text(seed=2),)


def test_server_whose_clock_is_behind_is_heard(store: RedisRoutingStore, raw: redis.Redis) -> None:
    """After a failover to a server whose clock is behind, ids are smaller than the cursor: it starts anew."""
    for stream in ("news", "texts"):
        raw.xadd(schema.router_key(stream), {"d": b""}, id="5-0")
    ahead = Cursor("99999999999999-0", "99999999999999-7")
    cursor = store.read(ahead, count=10, block_s=0).cursor
    assert store.read(cursor, count=10, block_s=0).cursor == Cursor("5-0", "5-0")


def test_redis_that_hangs_costs_the_time_out_only(server: RedisServer) -> None:
    """A call to a Redis that swallows everything ends; so does a waiting read."""
    proxy = Proxy(server.port)
    with proxy, closing(RedisRoutingStore(f"redis://127.0.0.1:{proxy.port}", timeout_s=0.1)) as store:
        cursor = store.start()
        proxy.swallow = True
        with pytest.raises(IndexUnavailable, match="TimeoutError"):
            store.hello("router-1", ttl_s=TTL_S)
        with pytest.raises(IndexUnavailable, match="TimeoutError"):
            store.read(cursor, count=10, block_s=0.2)


def test_wait_may_be_longer_than_the_time_out(server: RedisServer) -> None:
    """A read waits as long as it is asked to, however short the time-out of other calls."""
    with closing(RedisRoutingStore(server.url, timeout_s=0.05)) as store:
        cursor = store.start()
        assert store.read(cursor, count=10, block_s=1.3) == Batch(cursor, (), ())


def test_close_ends_a_waiting_read(store: RedisRoutingStore, raw: redis.Redis) -> None:
    """A reader on another thread comes back when the store is closed."""
    ended = threading.Event()

    def read() -> None:
        with pytest.raises(IndexUnavailable):
            store.read(store.start(), count=10, block_s=600)
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    wait_until(lambda: int(raw.info("clients")["blocked_clients"]) > 0)
    store.close()
    assert ended.wait(20)


def test_round_trips(server: RedisServer) -> None:
    """Telling, asking for loads, locking, and reading what is there: one round trip each."""
    with Proxy(server.port) as proxy, closing(RedisRoutingStore(f"redis://127.0.0.1:{proxy.port}")) as store:
        refs = [make_ref(f"w{n}") for n in range(50)]
        fill(store)
        store.loads(refs)
        before = proxy.round_trips
        store.tell(refs[0], make_load(), [make_chain()], ["r"], ttl_s=TTL_S)
        store.loads(refs)
        store.lock([b"c", b"d"], router="router-1", worker="w1", ready_at=1.0, ttl_s=TTL_S)
        store.read(Cursor("0-0", "0-0"), count=10, block_s=0)
        assert proxy.round_trips - before == 4


def test_streams_are_bounded_in_length_and_age(
    store: RedisRoutingStore, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is appended, a stream keeps about as many entries as it may, and about as old ones."""
    monkeypatch.setattr("ghostcacher_connector.index.routing_redis.TEXTS_ENTRIES_MAX", 200)
    monkeypatch.setattr("ghostcacher_connector.index.routing_redis.NEWS_AGE_S", 0.001)
    store.append([make_text(seed=n) for n in range(1000)])
    assert 200 <= raw.xlen(schema.router_key("texts")) <= 400
    store.hello("router-1", ttl_s=TTL_S)
    for number in range(300):
        raw.xadd(schema.router_key("news"), {"d": b"old"}, id=f"{number + 1}-0")
    store.tell(make_ref(), None, [make_chain()], [], ttl_s=TTL_S)
    assert raw.xlen(schema.router_key("news")) <= 100


KINDS = ["news", "texts", "routers", "drains", "seed", "tokens", "lock:61", "session:73"]


@pytest.mark.parametrize("kind", [*KINDS, "load:a1b2c3:w1"])
def test_key_of_another_type_is_replaced(store: RedisRoutingStore, raw: redis.Redis, kind: str) -> None:
    """A key that is none of ours in type costs what it holds, and nothing else ever fails because of it."""
    raw.rpush(schema.router_key(kind), "stranger")
    fill(store)
    assert store.tell(make_ref(), make_load(), [make_chain()], [], ttl_s=TTL_S)
    assert len(store.read(Cursor("0-0", "0-0"), count=10, block_s=0).texts) == 2
    assert [lock is not None for lock in store.locks([b"a", b"b"])] == [True, True]
    assert store.sessions([b"s"]) == ["w1"]
    assert store.drains() >= {"w1"}


def test_lock_that_never_expires_is_none_of_ours(store: RedisRoutingStore, raw: redis.Redis) -> None:
    """A lock without a time-out would stop a prefix for ever: it is taken over."""
    raw.hset(schema.lock_key(b"a"), mapping={"t": "5", "r": "r", "w": "w", "a": "1.0"})
    assert store.lock([b"a"], router="router-1", worker="w1", ready_at=1.0, ttl_s=TTL_S).token is not None


def test_malformed_lock_is_counted_and_still_held(store: RedisRoutingStore, raw: redis.Redis) -> None:
    """A lock that says nothing sensible is nobody's, but not free either until its time is over."""
    raw.hset(schema.lock_key(b"a"), mapping={"t": "many", "r": "r", "w": "w", "a": "1.0"})
    raw.expire(schema.lock_key(b"a"), 60)
    grant = store.lock([b"a"], router="router-1", worker="w1", ready_at=1.0, ttl_s=TTL_S)
    assert (grant.token, grant.held) == (None, ())
    assert store.malformed_entries == 1
