"""`ghostcacher doctor` as a process, against real Redis, real NIXL ranks and real HTTP pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.core.index.redis import RedisIndex
from tests.support.doctor_program import doctor
from tests.support.fleet_worker import LEASE_S, FleetWorker, HealthPage
from tests.support.index_parts import make_record
from tests.support.owner_client import OwnerProcess

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 20.0
"""Of each wait of the doctor where a test lets it run out; a loaded machine needs some seconds for an honest answer."""

REDIS_TIMEOUT_S = 5.0
"""Of each wait where only Redis has to answer, and no worker is there to."""

SECRET = "hunter2hunter2hunter2"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """A real Redis that is fit to be the index."""
    with RedisServer("--maxmemory", "64mb", "--maxmemory-policy", "volatile-lru", tcp=True) as server:
        yield server


@pytest.fixture
def url(redis: RedisServer) -> str:
    """The URL of an empty Redis."""
    with redis.client() as client:
        client.flushall()
    return redis.url


@pytest.fixture
def page() -> Iterator[HealthPage]:
    """The health page of an engine."""
    page = HealthPage()
    yield page
    page.close()


def test_redis_away_fails_with_a_clear_message() -> None:
    """Nobody listens: exit code 1, the place and how to fix it, but never the password."""
    outcome = doctor("--redis-url", f"redis://user:{SECRET}@127.0.0.1:1/0", as_json=False)
    assert outcome.code == 1
    assert "FAIL redis: 127.0.0.1:1: cannot be used" in outcome.printed
    assert "fix: start Redis" in outcome.printed
    assert "OK   nixl" in outcome.printed
    assert SECRET not in outcome.printed


def test_password_wrong_fails_without_showing_it() -> None:
    """A refused password is a failure whose message shows neither the wrong one nor the right one."""
    with RedisServer("--requirepass", "right" + SECRET, tcp=True) as server:
        outcome = doctor("--redis-url", f"redis://:wrong{SECRET}@127.0.0.1:{server.port}/0")
    assert outcome.bad() == ["redis"]
    assert SECRET not in outcome.printed


def test_fleet_healthy_everything_fine(url: str, page: HealthPage) -> None:
    """Two workers that share: every check passes, and every pair has a fresh timed pull, in both directions."""
    with FleetWorker(url, "w1", http=page.url), FleetWorker(url, "w2", http=page.url):
        outcome = doctor("--redis-url", url)
    assert outcome.code == 0, outcome.printed
    # On a loaded machine the round trip to Redis may earn its warning honestly.
    others = {name: check["status"] for name, check in outcome.checks.items() if name != "redis"}
    assert set(others.values()) == {"OK"}, outcome.printed
    for name in ("link w1:0 <- w2:0", "link w2:0 <- w1:0", "read w1:0", "read w2:0"):
        assert "nixl" in outcome.checks[name]["text"]
        assert "GB/s" in outcome.checks[name]["text"]
    assert outcome.status("self-check w1:0") == "OK"
    assert "share namespace" in outcome.checks["fingerprint org/model"]["text"]


def test_redis_url_from_environment(url: str) -> None:
    """Without --redis-url the doctor asks the same Redis as a worker would: the one of GC_REDIS_URL."""
    outcome = doctor(GC_REDIS_URL=url)
    assert outcome.code == 0, outcome.printed
    assert outcome.status("workers") == "WARN"


def test_index_keys_differ_said_with_the_count(url: str) -> None:
    """Workers whose key is not the doctor's: a failure that counts them, and no secret shown. With their key: none."""
    writer = RedisIndex(url, timeout_s=5.0, key=SECRET.encode())
    for name in ("w1", "w2"):
        writer.join(make_record(name), lease_ttl_s=60)
    writer.close()
    outcome = doctor("--redis-url", url, timeout_s=REDIS_TIMEOUT_S, GC_INDEX_KEY=f"not{SECRET}")
    assert outcome.status("index key") == "FAIL", outcome.printed
    assert "2 records could not be verified: GC_INDEX_KEY differs" in outcome.checks["index key"]["text"]
    assert "worker w1" not in outcome.checks
    assert SECRET not in outcome.printed
    own_name = {"KEY_OF_THE_FLEET": SECRET}
    outcome = doctor("--redis-url", url, "--index-key-env", "KEY_OF_THE_FLEET", timeout_s=REDIS_TIMEOUT_S, **own_name)
    assert "index key" not in outcome.checks
    assert {outcome.status("worker w1"), outcome.status("worker w2")} == {"OK"}
    assert SECRET not in outcome.printed


def test_fingerprints_differ_field_and_values_named(url: str) -> None:
    """Workers of one model in two namespaces: a failure that names the field, both values and the workers."""
    with (
        FleetWorker(url, "w1"),
        FleetWorker(url, "w2", namespace="b" * 32, kv_dtype="fp8"),
    ):
        outcome = doctor("--redis-url", url)
    assert outcome.code == 1
    assert outcome.bad() == ["fingerprint org/model"]
    text = outcome.checks["fingerprint org/model"]["text"]
    assert "kv_dtype: fp8 on w2, bfloat16 on w1" in text
    assert "w2 and w1 never share" in text


def test_fleet_of_two_versions_never_shares_and_says_why(url: str) -> None:
    """Half upgraded: workers of one namespace pull from each other only, and the doctor says what is to be done."""
    old = {"engine": "vllm", "hash_seed": "0"}
    with (
        FleetWorker(url, "old1", namespace="b" * 32, **old),
        FleetWorker(url, "old2", namespace="b" * 32, **old) as older,
        FleetWorker(url, "new1", **old, known_hash="ab") as newer,
        FleetWorker(url, "new2", **old, known_hash="ab"),
    ):
        outcome = doctor("--redis-url", url)
        assert (older.peers(), newer.peers()) == ({"old1"}, {"new2"})
    assert outcome.code == 1
    assert outcome.bad() == ["fingerprint org/model"]
    check = outcome.checks["fingerprint org/model"]
    assert "known_hash: (absent) on old1, old2, ab on new1, new2" in check["text"]
    assert check["fix"].startswith("make the version of GhostCacher equal on all of them")


def test_engine_unreachable_and_unknown_told_apart(url: str, page: HealthPage) -> None:
    """An engine that does not answer fails; one whose address is not known warns, and says which setting to set."""
    page.close()
    sick = HealthPage(status=503)
    with (
        FleetWorker(url, "down", http=page.url),
        FleetWorker(url, "silent"),
        FleetWorker(url, "sick", http=sick.url),
    ):
        outcome = doctor("--redis-url", url)
    sick.close()
    assert sorted(outcome.bad()) == ["engine down", "engine sick"]
    assert outcome.status("engine silent") == "WARN"
    assert "GC_HTTP_URL" in outcome.checks["engine silent"]["fix"]
    assert "503" in outcome.checks["engine sick"]["text"]


def test_rank_silent_its_links_fail_in_time(url: str) -> None:
    """A rank that answers no request is found, within the time-out, and hides nothing else."""
    with FleetWorker(url, "w1"), FleetWorker(url, "mute", start=False):
        outcome = doctor("--redis-url", url, timeout_s=TIMEOUT_S)
    assert outcome.bad() == ["link mute:0 <- w1:0"]
    assert outcome.status("link w1:0 <- mute:0") == "OK"
    assert outcome.status("self-check mute:0") == "WARN"


def test_worker_dead_found_by_every_reader(url: str) -> None:
    """The process of a worker whose lease still runs is gone: both the doctor's own read and the peers' say so."""
    index = RedisIndex(url, timeout_s=5.0)
    with FleetWorker(url, "w1") as alive, OwnerProcess() as owner:
        dead = msgspec.structs.replace(
            alive.record, worker="dead", incarnation=owner.endpoint.incarnation, ranks=(owner.endpoint,)
        )
        index.join(dead, lease_ttl_s=LEASE_S)
        before = doctor("--redis-url", url, timeout_s=TIMEOUT_S)
        owner.kill()
        after = doctor("--redis-url", url, timeout_s=TIMEOUT_S)
    index.close()
    assert before.status("read dead:0") == "OK"
    assert before.status("link w1:0 <- dead:0") == "OK"
    assert after.status("read dead:0") == "FAIL", after.printed
    assert after.status("link w1:0 <- dead:0") == "FAIL"
    assert after.status("read w1:0") == "OK"


def test_redis_unbounded_or_refusing_warns() -> None:
    """A Redis that would refuse writes when full, or never be full, works but gets a warning with the way out."""
    with RedisServer("--maxmemory", "64mb", "--maxmemory-policy", "noeviction", tcp=True) as server:
        outcome = doctor("--redis-url", server.url)
        assert outcome.status("redis memory") == "WARN"
        assert "volatile-lru" in outcome.checks["redis memory"]["fix"]
        with server.client() as client:
            client.config_set("maxmemory", 0)
        assert "not set" in doctor("--redis-url", server.url).checks["redis memory"]["text"]


def test_user_without_scripting_fails() -> None:
    """An ACL user that may not run scripts cannot be a worker: found before any worker has to."""
    with RedisServer(tcp=True) as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "plain", "on", ">pw", "~*", "+@all", "-@scripting")
        outcome = doctor("--redis-url", f"redis://plain:pw@127.0.0.1:{server.port}/0")
    assert outcome.code == 1
    assert outcome.status("redis permissions") == "FAIL"
    assert "+eval" in outcome.checks["redis permissions"]["fix"]
