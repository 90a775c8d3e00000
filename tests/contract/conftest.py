"""The indexes that the contract suites run over: in memory, in one Redis, in a Redis Cluster.

In Redis as a user that may do just what the documents say (core/redis/permissions.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import pytest

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.core import schema
from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_connector.core.index.base import BlockIndex, WorkerRef
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.core.index.redis import RedisIndex
from tests.contract.coordination_subjects import StoreSubject, memory_subject, redis_subject
from tests.support.acl_users import set_everything
from tests.support.index_parts import FakeClock
from tests.support.redis_proxy import make_cluster

KEY = b"the fleet's secret"


class Subject(NamedTuple):
    """An index under test. flush: lose everything. pass_time: let a short lease run out, on whatever clock counts.

    client: another client of the same store, with a key. stored: a worker's entries in the partition of a root, as they
    lie in the store, block hash -> value; to be written past all our code.
    """

    index: BlockIndex
    flush: Callable[[], object]
    pass_time: Callable[[], None]
    client: Callable[[bytes], BlockIndex]
    stored: Callable[[WorkerRef, bytes], MutableMapping[bytes, bytes]]


class StoredHash(MutableMapping[bytes, bytes]):
    """A hash in Redis as a mapping."""

    def __init__(self, client: Any, key: str) -> None:
        self._client, self._key = client, key

    def __getitem__(self, field: bytes) -> bytes:
        value = self._client.hget(self._key, field)
        assert isinstance(value, bytes)
        return value

    def __setitem__(self, field: bytes, value: bytes) -> None:
        self._client.hset(self._key, field, value)

    def __delitem__(self, field: bytes) -> None:
        self._client.hdel(self._key, field)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._client.hkeys(self._key))

    def __len__(self) -> int:
        return int(self._client.hlen(self._key))


@pytest.fixture(scope="module")
def single() -> Iterator[RedisServer]:
    with RedisServer(tcp=True) as server:
        yield server


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisServer]:
    with RedisServer("--cluster-enabled", "yes", tcp=True) as server:
        make_cluster(server)
        yield server


@pytest.fixture(params=["memory", "memory of 16 partitions", "redis", "redis cluster"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    if request.param.startswith("memory"):
        clock = FakeClock()
        memory = MemoryIndex(partitions=16 if "16" in request.param else 1, clock=clock)

        def held(ref: WorkerRef, root: bytes) -> MutableMapping[bytes, bytes]:
            found = memory._blocks.get((ref.namespace, ref.incarnation, memory.partition(root)))
            assert found is not None
            return found

        yield Subject(memory, memory.flush, lambda: clock.advance(0.05), memory.client, held)
        assert memory.malformed_entries == 0
        memory.close()
        return
    kind = "cluster" if "cluster" in request.param else "single"
    server: RedisServer = request.getfixturevalue(kind)
    url = set_everything(server, cluster=kind == "cluster")
    index, others = RedisIndex(url, timeout_s=5.0), ExitStack()

    def another(key: bytes) -> RedisIndex:
        return others.enter_context(closing(RedisIndex(url, timeout_s=5.0, key=key)))

    with server.client() as client, others:
        client.flushall()

        def stored(ref: WorkerRef, root: bytes) -> StoredHash:
            return StoredHash(client, schema.blocks_key(ref.namespace, index.partition(root), ref.incarnation))

        yield Subject(index, client.flushall, lambda: None, another, stored)
    assert index.malformed_entries == 0
    index.close()


@pytest.fixture
def index(subject: Subject) -> BlockIndex:
    return subject.index


@pytest.fixture(params=["memory", "redis", "redis cluster", "memory with a key", "redis with a key"])
def routing(request: pytest.FixtureRequest) -> Iterator[StoreSubject]:
    key = KEY if "key" in request.param else b""
    if request.param.startswith("memory"):
        yield from memory_subject(key)
    else:
        kind = "cluster" if "cluster" in request.param else "single"
        yield from redis_subject(request.getfixturevalue(kind), key, cluster=kind == "cluster")


@pytest.fixture(params=["memory", "redis", "redis cluster"])
def keyed(request: pytest.FixtureRequest) -> Iterator[StoreSubject]:
    """A store whose fleet has a key."""
    if request.param == "memory":
        yield from memory_subject(KEY)
    else:
        kind = "cluster" if "cluster" in request.param else "single"
        yield from redis_subject(request.getfixturevalue(kind), KEY, cluster=kind == "cluster")


@pytest.fixture
def store(routing: StoreSubject) -> CoordinationStore:
    return routing.store
