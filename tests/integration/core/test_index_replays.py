"""Values of the index with a key that somebody has kept and puts back, past all our code, in a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import redis
from msgspec.structs import replace

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.core import schema
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.types import WorkerRecord
from tests.support.index_parts import NAMESPACE, in_time, make_record, wait_until

KEY = b"the fleet's secret"
LEASE_S = 30.0
RECORD = replace(make_record("w1", token="ours"), stamped=True)
LEASE_KEY = schema.lease_key_prefix(NAMESPACE) + "w1"
KEYS = [schema.worker_key(NAMESPACE, "w1"), schema.owner_key(NAMESPACE, "w1"), LEASE_KEY]


@pytest.fixture
def index(server: RedisServer, raw: redis.Redis) -> Iterator[RedisIndex]:
    with closing(RedisIndex(server.url, timeout_s=5.0, key=KEY)) as index:
        yield index


def put_back(raw: redis.Redis, values: dict[str, bytes]) -> None:
    for key, value in values.items():
        raw.set(key, value, ex=10_000)


def joined(index: RedisIndex, raw: redis.Redis, record: WorkerRecord) -> dict[str, bytes]:
    """Enter a worker with a short lease; return what that has written."""

    def written(lease_s: float) -> dict[str, bytes] | None:
        index.join(record, lease_ttl_s=lease_s)
        values = {key: raw.get(key) for key in KEYS}
        return None if None in values.values() else values

    return in_time(written)


def test_worker_that_is_put_back_after_its_lease_is_not_live(index: RedisIndex, raw: redis.Redis) -> None:
    """A record counts as long as its lease's stamp, whatever its time to live says; renewing prolongs that."""
    values = joined(index, raw, RECORD)
    put_back(raw, values)
    wait_until(lambda: index.workers(NAMESPACE) == [], what="the lease to end")
    assert set(index.refusals()) == {"record: too old"}
    index.renew(RECORD, lease_ttl_s=LEASE_S)
    assert index.workers(NAMESPACE) == [RECORD]


def test_earlier_life_that_is_put_back_holds_no_name(index: RedisIndex, raw: redis.Redis) -> None:
    """Not even with the token of the process that has ended: the name goes to who joins, and stays with who renews."""
    values = joined(index, raw, replace(make_record("w1", token="earlier"), stamped=True))
    wait_until(lambda: index.workers(NAMESPACE) == [], what="the lease to end")
    put_back(raw, values)
    wait_until(lambda: index.join(RECORD, lease_ttl_s=LEASE_S) is None, what="the stamp's grace to end")
    assert index.workers(NAMESPACE) == [RECORD]
    put_back(raw, values)
    assert index.renew(RECORD, lease_ttl_s=LEASE_S).holder is None
    assert index.workers(NAMESPACE) == [RECORD]


@pytest.mark.parametrize("lease", [b"", b"x" * 28, b"x" * (1 << 20)], ids=["none", "forged", "giant"])
def test_stamped_record_without_its_stamp_is_not_live(index: RedisIndex, raw: redis.Redis, lease: bytes) -> None:
    """Taking the stamp away, or another one, does not make the record one of an older version."""
    index.join(RECORD, lease_ttl_s=LEASE_S)
    raw.set(LEASE_KEY, lease)
    assert index.workers(NAMESPACE) == []
    assert set(index.refusals()) == {"record: not authentic"}


def test_stamp_of_one_worker_says_nothing_of_another(index: RedisIndex, raw: redis.Redis) -> None:
    """Nor of another life of the same one."""
    other = replace(make_record("w2"), stamped=True)
    index.join(RECORD, lease_ttl_s=LEASE_S)
    index.join(other, lease_ttl_s=LEASE_S)
    raw.set(LEASE_KEY, raw.get(schema.lease_key_prefix(NAMESPACE) + "w2"))
    assert index.workers(NAMESPACE) == [other]


def test_record_of_an_older_version_counts_with_its_digest(index: RedisIndex, server: RedisServer) -> None:
    """Routers and workers can be updated one after the other: who makes no stamps is still found by who reads them."""
    older = make_record("w3", token="older")
    index.join(older, lease_ttl_s=LEASE_S)
    with closing(RedisIndex(server.url, timeout_s=5.0, key=b"?")) as stranger:
        stranger.join(make_record("w4"), lease_ttl_s=LEASE_S)
    assert index.workers(NAMESPACE) == [older]
    index.leave(ref_of(older))
    assert index.workers(NAMESPACE) == []
