"""A fleet of two versions: records of workers whose version knows nothing of owners, and of those that do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.core import schema
from ghostcacher_connector.core.index.base import NameHolder, ref_of
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.types import WorkerRecord
from tests.support.index_parts import NAMESPACE, make_record

LEASE_S = 30.0

EARLIER_ENTER = """
local magic, incarnation = ARGV[4], ARGV[5]
local other = ''
local current = redis.pcall('GET', KEYS[1])
if type(current) == 'string' and string.sub(current, 1, #magic) == magic and redis.call('PTTL', KEYS[1]) > 0 then
    local holder = string.sub(current, #magic + 1, #magic + #incarnation)
    if holder ~= incarnation and #holder == #incarnation then other = holder end
end
if other ~= '' and ARGV[6] ~= '1' then return { 0, other } end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[2], redis.call('TIME')[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[7])
return { 1, other }
"""
"""How a worker entered itself before records had owners."""


@pytest.fixture
def raw() -> Iterator[redis.Redis]:
    with RedisServer(tcp=True) as server, closing(redis.Redis.from_url(server.url)) as client:
        yield client


@pytest.fixture
def index(raw: redis.Redis) -> Iterator[RedisIndex]:
    port = raw.connection_pool.connection_kwargs["port"]
    with closing(RedisIndex(f"redis://127.0.0.1:{port}/0", timeout_s=5.0)) as index:
        yield index


def earlier(raw: redis.Redis, record: WorkerRecord, *, joins: bool) -> bool:
    """Enter or renew a record as the earlier version does; return whether it has the name."""
    keys = [schema.worker_key(NAMESPACE, record.worker), schema.workers_key(NAMESPACE)]
    packed, lease_ms = schema.pack_record(record), int(LEASE_S * 1e3)
    arguments = [record.worker, packed, lease_ms, schema.RECORD_MAGIC, record.incarnation, int(joins), 3_600_000]
    done, _ = raw.eval(EARLIER_ENTER, len(keys), *keys, *arguments)
    return bool(done)


def test_between_versions_the_later_join_wins_and_renewals_take_nothing_back(
    raw: redis.Redis, index: RedisIndex
) -> None:
    """As it was between two of the earlier version."""
    old, new = make_record(), make_record(token="one")
    assert earlier(raw, old, joins=True)
    assert index.join(new, lease_ttl_s=LEASE_S) is None
    assert not earlier(raw, old, joins=False)
    assert index.workers() == [new]
    assert earlier(raw, old, joins=True)
    assert index.renew(new, lease_ttl_s=LEASE_S).holder == NameHolder(old.incarnation, old)
    assert index.workers() == [old]


def test_record_of_a_later_version_is_read_by_an_earlier_one(index: RedisIndex) -> None:
    """A reader takes the fields that it knows; what it does not know is left out, and nothing is malformed."""
    record = make_record(token="one")
    index.join(record, lease_ttl_s=LEASE_S)

    class Known(WorkerRecord, frozen=True, kw_only=True):
        later: int = 0
        """Of a version that is still to come: a record without it can be read."""

    packed = schema.pack_record(Known(**{name: getattr(record, name) for name in record.__struct_fields__}, later=7))
    assert schema.unpack_record(packed, namespace=NAMESPACE, worker=record.worker) == record
    assert index.malformed_entries == 0


def test_hold_on_a_name_ends_with_its_lease(raw: redis.Redis, index: RedisIndex) -> None:
    """Every key of it has a TTL, and none is left when the worker leaves."""
    record = make_record(token="one")
    index.join(record, lease_ttl_s=LEASE_S)
    keys = raw.keys("*")
    assert schema.owner_key(NAMESPACE, "w1").encode() in keys
    assert all(raw.pttl(key) > 0 for key in keys)
    index.leave(ref_of(record))
    assert not raw.exists(schema.owner_key(NAMESPACE, "w1"))
