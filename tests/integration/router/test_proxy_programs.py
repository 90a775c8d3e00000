"""The C programs of the proxy benchmark: the mock engines and the load generator, against each other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.proxy.bodies import chat_body
from benchmarks.proxy.connectors import Seen, parse_seen
from benchmarks.proxy.fleet import start_connectors
from benchmarks.proxy.running import Answered, Cores, Load, Mocks, ask, run_load
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.index.redis import RedisIndex

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")

SIZE = 8192


@pytest.fixture
def mocks(tmp_path: Path) -> Iterator[Mocks]:
    os.mkfifo(tmp_path / "report")
    with ExitStack() as stack:
        yield Mocks(stack, tmp_path, min(os.sched_getaffinity(0)), 2, tmp_path / "report")


def run(mocks: Mocks, folder: Path, *, stream: bool, expected: bytes | None = None, rate: float = 0) -> Answered:
    (folder / "bodies").write_bytes(b"".join(chat_body("x" * 99, number, SIZE, stream=stream) for number in range(3)))
    (folder / "expected").write_bytes(mocks.answer(stream=stream) if expected is None else expected)
    load = Load(folder / "bodies", SIZE, folder / "expected", connections=4, seconds=0, requests=50, rate=rate)
    return run_load(load, mocks.ports[1], min(os.sched_getaffinity(0)), folder)


@pytest.mark.parametrize("stream", [False, True])
def test_load_right_answers_no_error(mocks: Mocks, tmp_path: Path, stream: bool) -> None:
    """Every request is answered, whole and right."""
    answered = run(mocks, tmp_path, stream=stream)
    assert (answered.answers, answered.errors) == (50, 0)
    assert answered.bytes == 50 * len(mocks.answer(stream=stream))


@pytest.mark.parametrize(
    "change", [lambda right: right[:-1], lambda right: b"?" + right[1:], lambda right: right + b"."]
)
def test_load_other_answers_all_counted(mocks: Mocks, tmp_path: Path, change: type[bytes]) -> None:
    """An answer that is too long, too short or another one is an error."""
    answered = run(mocks, tmp_path, stream=True, expected=change(mocks.answer(stream=True)))
    assert answered.different == 50


def test_load_nobody_listens_counted_and_ends(mocks: Mocks, tmp_path: Path) -> None:
    """Refused connections are errors, and the run ends."""
    mocks.ports[1] = 1
    assert run(mocks, tmp_path, stream=False, expected=b"x").connect == 50


def test_mock_stream_has_the_events_asked_for(mocks: Mocks) -> None:
    """The number of events can be set; one more ends the stream."""
    mocks.set(chunks=5, gap_us=100)
    events = mocks.answer(stream=True).split(b"\n\n")
    assert [event[:6] for event in events] == [b"data: "] * 6 + [b""]
    assert events[5] == b"data: [DONE]"


def test_mock_large_body_without_stream_at_its_ends_is_found(mocks: Mocks) -> None:
    """A proxy may write the fields of a body in another order."""
    body = b'{"a":"' + b"x" * 5000 + b'","stream": true,"b":"' + b"x" * 5000 + b'"}'
    assert ask(mocks.ports[0], "POST", "/v1/completions", body)[1].endswith(b"[DONE]\n\n")


def test_mock_report_names_worker_project_and_size(mocks: Mocks, tmp_path: Path) -> None:
    """Whoever plays the connector learns of each request."""
    pipe = os.open(tmp_path / "report", os.O_RDWR | os.O_NONBLOCK)
    try:
        ask(mocks.ports[1], "POST", "/v1/chat/completions", chat_body("x", 41, SIZE, stream=False))
        assert parse_seen(os.read(pipe, 4096)) == [Seen(1, 41, SIZE, 0, "")]
    finally:
        os.close(pipe)


def test_connectors_tell_routers_what_a_worker_received(mocks: Mocks, tmp_path: Path) -> None:
    """A request's chain comes over Redis under its id, its project's blocks are indexed, and the worker has a lease."""
    cores = Cores(*[min(os.sched_getaffinity(0))] * 2)
    with ExitStack() as stack:
        url = start_connectors(stack, mocks.ports, tmp_path / "report", cores, tmp_path)
        store, index = RedisCoordinationStore(url, timeout_s=5.0), RedisIndex(url, timeout_s=5.0)
        stack.callback(store.close)
        stack.callback(index.close)
        store.heartbeat("r", ttl_s=60.0)
        cursor = store.start_cursor()
        body = chat_body("x", 41, SIZE, stream=False)
        ask(mocks.ports[1], "POST", "/v1/chat/completions", body, {"X-Request-Id": "req-1"})
        news = [told for told in store.read(cursor, count=10, block_s=5.0).events if told.chains]
        assert [(told.worker, told.chains[0].request) for told in news] == [("mock-01", "req-1")]
        records = index.workers()
        assert [record.http for record in records] == [f"http://127.0.0.1:{port}" for port in mocks.ports]
        chain = news[0].chains[0].hashes
        (hit,) = index.lookup([ref_of(record) for record in records], chain, locations_for=0)
        assert (hit.worker, hit.length) == ("mock-01", len(chain) * 7 // 8)
