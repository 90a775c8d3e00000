"""The index over real Redis servers: round trips, garbage, access, time-outs, Sentinel, TLS."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_cli.up.machine import free_port
from ghostcacher_connector.core import schema
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.base import Drop, ref_of
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.types import Location, Tier
from tests.support.index_parts import NAMESPACE, chain, entries, make_record, wait_until
from tests.support.redis_proxy import Proxy

LEASE_S = 30.0
RECORD = make_record()
REF = ref_of(RECORD)
BLOCKS = chain(6)
BINDING = schema.Binding(NAMESPACE, REF.incarnation)


@pytest.fixture
def index(server: RedisServer, raw: redis.Redis) -> Iterator[RedisIndex]:
    index = RedisIndex(server.url, timeout_s=2.0)
    index.join(RECORD, lease_ttl_s=LEASE_S)
    index.apply(REF, entries(BLOCKS), [], lease_ttl_s=LEASE_S)
    yield index
    index.close()


def test_record_is_unpacked_when_it_has_changed(index: RedisIndex) -> None:
    """Every worker looks at all records once a second: those that are as before cost no more than their bytes."""
    (first,) = index.workers(NAMESPACE)
    (again,) = index.workers(NAMESPACE)
    assert again is first == RECORD
    later = make_record()
    index.join(later, lease_ttl_s=LEASE_S)
    assert index.workers(NAMESPACE) == [later]


def test_lookup_of_2000_blocks_is_one_round_trip(server: RedisServer, index: RedisIndex) -> None:
    """However many blocks and workers, the index is asked once."""
    blocks, refs = chain(2000, seed=5), [ref_of(make_record(f"w{n}")) for n in range(8)]
    for ref in refs:
        index.apply(ref, entries(blocks), [], lease_ttl_s=LEASE_S)
    index.lookup(refs, blocks)
    with Proxy(server.port) as proxy:
        through = RedisIndex(f"redis://127.0.0.1:{proxy.port}", timeout_s=5.0)
        through.ping()
        before = proxy.round_trips
        hits = through.lookup(refs, blocks)
        assert proxy.round_trips - before == 1
        assert [hit.length for hit in hits] == [2000] * 8
        through.close()


def test_batch_is_one_round_trip(server: RedisServer, index: RedisIndex) -> None:
    """A batch of 512 entries and drops is one script call."""
    blocks = chain(512, seed=6)
    drops = [Drop(block, BLOCKS[0]) for block in BLOCKS]
    index.apply(REF, entries(blocks[:1]), [], lease_ttl_s=LEASE_S)
    with Proxy(server.port) as proxy:
        through = RedisIndex(f"redis://127.0.0.1:{proxy.port}", timeout_s=5.0)
        through.ping()
        before = proxy.round_trips
        through.apply(REF, entries(blocks), drops, lease_ttl_s=LEASE_S)
        assert proxy.round_trips - before == 1
        through.close()


def test_every_key_has_a_ttl(index: RedisIndex, raw: redis.Redis) -> None:
    """Nothing that the index writes outlives its use."""
    index.renew(RECORD, lease_ttl_s=LEASE_S)
    index.put_report(REF, "load", {"a": b"1"}, ttl_s=LEASE_S)
    keys = raw.keys("*")
    assert len(keys) == 5
    assert all(key.startswith(b"gc2:") and raw.pttl(key) > 0 for key in keys)


def test_scripts_are_lost_calls_go_on(index: RedisIndex, raw: redis.Redis) -> None:
    """A server that forgot the scripts (a restart, a failover) gets them again unasked."""
    raw.script_flush()
    assert index.lookup([REF], BLOCKS)[0].length == 6
    assert index.renew(RECORD, lease_ttl_s=LEASE_S).counts == (6,)


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (b"", 3),
        (b"short", 3),
        (bytes(13), 3),
        (bytes(22), 3),
        (b"\x03" + bytes(20), 3),
        (b"\xff" * 21, 3),
        (BINDING.pack(BLOCKS[3], Location(Tier.HOST, 1, 2)), 6),
        (BINDING.pack(BLOCKS[2], Location(Tier.HOST, 1, 2)), 3),
    ],
    ids=["empty", "short", "no digest", "long", "tier 3", "tier 255", "sound", "another block's"],
)
def test_malformed_value_ends_the_prefix_and_is_counted(
    index: RedisIndex, raw: redis.Redis, value: bytes, length: int
) -> None:
    """A value of the wrong width, tier or digest is never returned, nor what follows it."""
    raw.hset(schema.blocks_key(NAMESPACE, 0, REF.incarnation), BLOCKS[3], value)
    (hit,) = index.lookup([REF], BLOCKS)
    assert (hit.length, len(hit.locations)) == (length, length)
    assert index.malformed_entries == (0 if length == 6 else 1)


def keys_of_a_worker() -> list[str]:
    return [
        schema.namespaces_key(),
        schema.workers_key(NAMESPACE),
        schema.worker_key(NAMESPACE, RECORD.worker),
        schema.report_key(NAMESPACE, RECORD.worker, "load"),
        schema.blocks_key(NAMESPACE, 0, REF.incarnation),
    ]


POISONS: dict[str, Callable[[redis.Redis, str], object]] = {
    "string": lambda raw, key: raw.set(key, b"\x00\xffgarbage"),
    "record header": lambda raw, key: raw.set(key, schema.pack_envelope(bytes(16), b"\xc1")),
    "unsigned record": lambda raw, key: raw.set(key, schema.RECORD_MAGIC + bytes(32) + b"\x80"),
    "list": lambda raw, key: raw.rpush(key, b"garbage"),
    "set": lambda raw, key: raw.sadd(key, b"garbage"),
    "hash": lambda raw, key: raw.hset(key, b"\xff", b"garbage"),
    "hash of a block": lambda raw, key: raw.hset(key, BLOCKS[0], b"garbage"),
    "hash of an entry": lambda raw, key: raw.hset(key, BLOCKS[0], bytes(schema.ENTRY_BYTES)),
    "zset": lambda raw, key: raw.zadd(key, {b"\xff\x00 }garbage": 9e12}),
    "stream": lambda raw, key: raw.xadd(key, {b"a": b"b"}),
}


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("number", range(5), ids=["namespaces", "workers", "worker", "report", "blocks"])
def test_garbage_under_any_key_is_neither_raised_nor_returned_and_heals(
    index: RedisIndex, raw: redis.Redis, poison: str, number: int
) -> None:
    """Any type of garbage under any key: reads return truth or nothing, and the worker's next writes repair it."""
    key = keys_of_a_worker()[number]
    raw.delete(key)
    POISONS[poison](raw, key)
    assert index.workers(NAMESPACE) in ([], [RECORD])
    assert index.workers() in ([], [RECORD])
    assert all(hit.length == len(hit.locations) == 6 for hit in index.lookup([REF], BLOCKS))
    index.reports(NAMESPACE, RECORD.worker, "load")
    index.renew(RECORD, lease_ttl_s=LEASE_S)
    index.apply(REF, entries(BLOCKS), [], lease_ttl_s=LEASE_S)
    index.put_report(REF, "load", {"a": b"1"}, ttl_s=LEASE_S)
    assert index.workers(NAMESPACE) == index.workers() == [RECORD]
    assert index.lookup([REF], BLOCKS)[0].length == 6
    assert index.reports(NAMESPACE, RECORD.worker, "load") == {"a": b"1"}
    index.leave(REF)
    assert index.workers() == []


def test_record_of_garbage_hides_that_worker_only(index: RedisIndex, raw: redis.Redis) -> None:
    """A record that does not decode is skipped and counted; the others are returned."""
    other = make_record("w2")
    index.join(other, lease_ttl_s=LEASE_S)
    raw.set(schema.worker_key(NAMESPACE, RECORD.worker), b"garbage", px=10_000)
    assert index.workers(NAMESPACE) == [other]
    assert index.malformed_entries == 1


def test_dead_server_is_unavailable_and_named() -> None:
    """Every call on a server that is gone raises IndexUnavailable that says where, and tells the hook."""
    told: list[None] = []
    with RedisServer(tcp=True) as server:
        index = RedisIndex(f"redis://:hush@127.0.0.1:{server.port}", on_unavailable=lambda: told.append(None))
        server.kill()
        calls: list[Callable[[], object]] = [
            index.ping,
            lambda: index.join(RECORD, lease_ttl_s=1),
            lambda: index.renew(RECORD, lease_ttl_s=1),
            lambda: index.leave(REF),
            lambda: index.apply(REF, entries(BLOCKS), [], lease_ttl_s=1),
            lambda: index.clear(REF, 0),
            lambda: index.lookup([REF], BLOCKS),
            index.workers,
            lambda: index.workers(NAMESPACE),
            lambda: index.put_report(REF, "load", {}, ttl_s=1),
            lambda: index.reports(NAMESPACE, "w1", "load"),
        ]
        for call in calls:
            with pytest.raises(IndexUnavailable, match=f"127.0.0.1:{server.port}") as caught:
                call()
            assert "hush" not in str(caught.value)
        assert len(told) == len(calls)
        index.close()
        with pytest.raises(IndexUnavailable, match="closed"):
            index.ping()


def test_silent_server_is_given_up_in_time(server: RedisServer) -> None:
    """A server that accepts and never answers costs one time-out, not several."""
    with Proxy(server.port) as proxy:
        index = RedisIndex(f"redis://127.0.0.1:{proxy.port}", timeout_s=1.0)
        index.ping()
        proxy.swallow, asked = True, proxy.round_trips
        with pytest.raises(IndexUnavailable):
            index.lookup([REF], BLOCKS)
        assert proxy.round_trips == asked + 1
        proxy.swallow = False
        index.close()


def test_server_is_restarted_the_next_call_works() -> None:
    """A pooled connection that the restart has broken is replaced without an error."""
    with RedisServer(tcp=True) as server:
        index = RedisIndex(server.url, timeout_s=5.0)
        index.ping()
        server.kill()
        server.start()
        index.ping()
        index.close()


def test_acl_user_may_do_just_what_the_index_does() -> None:
    """User and password of the URL are used; a user who may touch only the index's keys is enough."""
    with RedisServer(tcp=True) as server:
        with server.client() as raw:
            raw.execute_command(
                "ACL",
                "SETUSER",
                "ghost",
                "on",
                ">p/w:1",
                "~gc2:*",
                "+@read",
                "+@write",
                "+@scripting",
                "+ping",
                "+time",
            )
            raw.execute_command("ACL", "SETUSER", "default", "off")
        index = RedisIndex(f"redis://ghost:p%2Fw%3A1@127.0.0.1:{server.port}", timeout_s=5.0)
        index.join(RECORD, lease_ttl_s=LEASE_S)
        index.apply(REF, entries(BLOCKS), [], lease_ttl_s=LEASE_S)
        assert index.lookup([REF], BLOCKS)[0].length == 6
        assert index.workers() == [RECORD]
        index.ping()
        index.leave(REF)
        index.close()
        wrong = RedisIndex(f"redis://ghost:wr0ng@127.0.0.1:{server.port}", timeout_s=5.0)
        with pytest.raises(IndexUnavailable) as caught:
            wrong.ping()
        assert "wr0ng" not in str(caught.value)
        wrong.close()


def self_signed(directory: Path) -> tuple[Path, Path]:
    certificate, key = directory / "cert.pem", directory / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    options = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *options], check=True, capture_output=True, timeout=60)
    return certificate, key


def test_tls_server_is_verified(server: RedisServer, raw: redis.Redis, tmp_path: Path) -> None:
    """rediss:// talks TLS to a server whose certificate is known, and not to any other."""
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Proxy(server.port, tls=context) as proxy:
        trusting = RedisIndex(f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={certificate}", timeout_s=5.0)
        trusting.join(RECORD, lease_ttl_s=LEASE_S)
        assert trusting.workers() == [RECORD]
        trusting.close()
        wary = RedisIndex(f"rediss://127.0.0.1:{proxy.port}", timeout_s=5.0)
        with pytest.raises(IndexUnavailable, match="certificate verify failed"):
            wary.ping()
        wary.close()


def test_directory_entries_of_the_future_do_not_stay(raw: redis.Redis, index: RedisIndex) -> None:
    """A name that nobody can have entered hides no worker and is no gone worker."""
    index.join(RECORD, lease_ttl_s=LEASE_S)
    key = schema.workers_key(RECORD.namespace)
    raw.zadd(key, {"forged": 4e9})
    assert index.gone() == []
    assert index.workers(RECORD.namespace) == [RECORD]
    assert raw.zrange(key, 0, -1) == [RECORD.worker.encode()]


def test_sentinel_fails_over_index_follows() -> None:
    """The primary is found through Sentinel; after it died, the one that Sentinel promotes is used."""
    with RedisServer(tcp=True) as primary, RedisServer(tcp=True) as replica:
        with replica.client() as raw:
            raw.replicaof("127.0.0.1", primary.port)
            wait_until(lambda: raw.info("replication")["master_link_status"] == "up", what="replica is in step")
        config = (
            f"sentinel monitor gc 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds gc 300\nsentinel failover-timeout gc 2000\n"
        )
        with RedisServer(sentinel_config=config, tcp=True) as sentinel:
            hosts = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}"
            index = RedisIndex(f"redis+sentinel://{hosts}/gc", timeout_s=1.0)
            index.join(RECORD, lease_ttl_s=LEASE_S)
            assert index.workers() == [RECORD]
            with sentinel.client() as raw:
                wait_until(lambda: int(raw.sentinel_masters()["gc"]["num-slaves"]) == 1, what="Sentinel knows replica")
            primary.kill()

            def writable() -> bool:
                try:
                    index.renew(RECORD, lease_ttl_s=LEASE_S)
                except IndexUnavailable:
                    return False
                return True

            wait_until(writable, what="failover")
            assert index.workers() == [RECORD]
            with replica.client() as raw:
                assert raw.exists(schema.worker_key(NAMESPACE, RECORD.worker))
            index.close()
