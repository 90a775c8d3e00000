"""A real S3 server that is away, slow, throttling or breaks off: misses and drops, in time, and no more than that."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects.object_notes import RunFacts
from ghostcacher_connector.objects.object_writer import TRIES
from ghostcacher_connector.objects.stores.base import ObjectStore
from ghostcacher_connector.objects.stores.open_store import open_store
from ghostcacher_connector.objects.tier import ObjectTier
from tests.support.index_parts import wait_until
from tests.support.object_tiers import buffers, chain, opened, right, rows_of, write_all
from tests.support.s3_proxy import S3Proxy
from tests.support.s3_server import S3Server

PROMPT = chain(8)
BLOCK_BYTES = 64 << 10
"""So small that a request is over in time on any machine, unless the server is in trouble."""
TIMEOUT_S = 3


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    with S3Proxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def store(s3_server: S3Server, proxy: S3Proxy) -> ObjectStore:
    """The real server behind the proxy, with requests bounded by three seconds."""
    return open_store(s3_server.url(f"trouble/{uuid.uuid4().hex}", proxy.endpoint), timeout_s=TIMEOUT_S)


def read(tier: ObjectTier, deadline_s: float = 60.0) -> int:
    return tier.read(PROMPT, buffers(len(PROMPT), BLOCK_BYTES), time.monotonic() + deadline_s)


def counted(recorder: Recorder, name: str) -> dict[str, float]:
    values = recorder.drain().get(name, {})
    return {key: value for key, value in values.items() if isinstance(value, float) and value}


def reads_again(tier: ObjectTier) -> None:
    """Wait until the pause after the failures is over, and the blocks are read."""
    wait_until(lambda: tier.longest(PROMPT) == len(PROMPT), 60, "the pause is over")
    assert right(tier, PROMPT, BLOCK_BYTES) == len(PROMPT)


def test_throttled_reads_are_misses_until_the_server_is_willing(store: ObjectStore, proxy: S3Proxy) -> None:
    write_all(store, PROMPT, block_bytes=BLOCK_BYTES)
    recorder = Recorder()
    with opened(store, block_bytes=BLOCK_BYTES, recorder=recorder) as tier:
        proxy.slow_down = frozenset({"GET"})
        assert read(tier) == 0
        assert counted(recorder, "gc_object_misses_total") == {"throttled": 8}
        proxy.slow_down = frozenset()
        reads_again(tier)


def test_throttled_writes_are_tried_again_and_get_there(store: ObjectStore, proxy: S3Proxy) -> None:
    recorder = Recorder()
    with opened(store, block_bytes=BLOCK_BYTES, recorder=recorder) as tier:
        proxy.slow_down, proxy.slow_downs_left = frozenset({"PUT"}), TRIES - 1
        assert tier.write(PROMPT, rows_of(PROMPT, BLOCK_BYTES), RunFacts(0, 1))
        wait_until(lambda: tier.longest(PROMPT) == 8, 60, "it is written")
    assert counted(recorder, "gc_object_errors_total") == {"write\x1fthrottled": TRIES - 1}
    with opened(store, block_bytes=BLOCK_BYTES) as tier:
        assert right(tier, PROMPT, BLOCK_BYTES) == 8


def test_a_server_that_is_away_costs_misses_and_drops(store: ObjectStore, proxy: S3Proxy) -> None:
    write_all(store, PROMPT, block_bytes=BLOCK_BYTES)
    other = chain(8, "other")
    recorder = Recorder()
    with opened(store, block_bytes=BLOCK_BYTES, recorder=recorder) as tier:
        proxy.go_away()
        assert read(tier) == 0
        assert tier.write(other, rows_of(other, BLOCK_BYTES), RunFacts(0, 1))
        outcomes: dict[str, float] = {}
        errors: dict[str, float] = {}

        def given_up() -> bool:
            delta = recorder.drain()
            outcomes.update(delta.get("gc_object_writes_total", {}))  # type: ignore[arg-type]
            errors.update(delta.get("gc_object_errors_total", {}))  # type: ignore[arg-type]
            return outcomes.get("failed") == 1

        wait_until(given_up, 60, "the write is given up")
        assert {"read\x1funreachable", "write\x1funreachable"} <= set(errors)
        assert tier.longest(other) == 0
        proxy.come_back()
        reads_again(tier)


def test_a_server_that_is_slow_costs_no_more_than_the_deadline(store: ObjectStore, proxy: S3Proxy) -> None:
    """The object takes 26 s at this rate: its reader is back at its deadline, and the read ends by its time-out."""
    write_all(store, PROMPT, block_bytes=BLOCK_BYTES)
    recorder = Recorder()
    with opened(store, block_bytes=BLOCK_BYTES, recorder=recorder) as tier:
        proxy.bytes_s = 20e3
        assert read(tier, deadline_s=0.2) == 0
        assert counted(recorder, "gc_object_misses_total") == {"deadline": 8}
        assert read(tier) == 0
        misses = counted(recorder, "gc_object_misses_total")
        assert misses == {"timeout": 8}
        proxy.bytes_s = None
        reads_again(tier)


def test_an_answer_that_breaks_off_is_a_miss_and_no_damage(store: ObjectStore, proxy: S3Proxy) -> None:
    """The connection failed, and not the object: it stays where it is."""
    write_all(store, PROMPT, block_bytes=BLOCK_BYTES)
    recorder = Recorder()
    with opened(store, block_bytes=BLOCK_BYTES, recorder=recorder) as tier:
        proxy.cut_after = 3 * BLOCK_BYTES
        assert read(tier) == 0
        delta = recorder.drain()
        assert delta["gc_object_misses_total"] == {"unreachable": 8}
        assert "gc_object_quarantined_total" not in delta
        proxy.cut_after = None
        reads_again(tier)


def test_a_start_while_the_server_is_away_finds_everything_later(store: ObjectStore, proxy: S3Proxy) -> None:
    write_all(store, PROMPT, block_bytes=BLOCK_BYTES)
    proxy.go_away()
    recorder = Recorder()
    with opened(store, block_bytes=BLOCK_BYTES, recorder=recorder, listed=False) as tier:
        wait_until(lambda: "list\x1funreachable" in counted(recorder, "gc_object_errors_total"), 60, "it is away")
        assert tier.longest(PROMPT) == 0
        proxy.come_back()
        assert tier.wait_listed(60)
        assert right(tier, PROMPT, BLOCK_BYTES) == 8


def test_secrets_are_nowhere_in_what_is_said(
    s3_server: S3Server, proxy: S3Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong credentials: the server refuses, and the log says so without them."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-that-is-wrong")
        refused = open_store(s3_server.url("refused", proxy.endpoint), timeout_s=TIMEOUT_S)
    with opened(refused, recorder=recorder, listed=False):
        wait_until(lambda: "list\x1frefused" in counted(recorder, "gc_object_errors_total"), 60, "it is refused")
    said = caplog.text + repr(refused)
    assert "refused" in said
    assert "a-secret-that-is-wrong" not in said
    assert s3_server.key_id not in said
