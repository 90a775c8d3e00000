"""What processes that have ended had counted, in the sums of those that go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import msgspec
import pytest

from ghostcacher_connector.core.dashboard_api import HistoryPoint
from ghostcacher_connector.core.settings import Listen
from ghostcacher_router.config import RouterSettings
from ghostcacher_router.http.protocol.local_response import LocalRequest, LocalResponse
from ghostcacher_router.http.proxy import HttpProxy
from ghostcacher_router.http.proxy_ports import LocalEndpoints
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.metrics.merging import counts_of, merged_metrics
from ghostcacher_router.processes.child import COUNTED, SAID, Child
from ghostcacher_router.processes.ended_counts import (
    Ended,
    EndedCounts,
    decoded,
    decoded_ended,
    encoded,
    metrics_of_all,
)
from ghostcacher_router.processes.ended_history import encoded_points
from ghostcacher_router.processes.listeners import Listeners
from ghostcacher_router.processes.membership import Told
from ghostcacher_router.processes.seat import Seat
from ghostcacher_router.processes.siblings import Answer, Question, Siblings
from ghostcacher_router.processes.supervisor import Supervisor
from ghostcacher_router.processes.whole_router import WholeRouter
from ghostcacher_router.types import Reason
from tests.support.kept_history import KeptHistory
from tests.support.proxy_rig import on_loop
from tests.support.router_child import member, supervised

STATS = LocalRequest("GET", "/gc/stats", "", {}, b"", None)
SEAT = Seat(0, 1, 2, "r", "", ())


def metrics(requests: int, *, worker: str = "a", latency_ms: float = 1.0) -> RouterMetrics:
    made = RouterMetrics()
    for _ in range(requests):
        made.answered("/v1/completions", 200)
        made.picked(worker, Reason.FORECAST)
        made.latency_ms.observe(latency_ms)
    return made


def counts(requests: int, **given: Any) -> dict[str, Any]:
    return counts_of(metrics(requests, **given))


def test_sums_do_not_fall_when_processes_end() -> None:
    """However many have; quantiles are of all values, too."""
    ended = EndedCounts()
    ended.add("0.1", encoded(counts(2, latency_ms=40.0)))
    ended.add("1.2", encoded(counts(3)))
    told = decoded_ended(ended.encoded())
    assert told.names == ("0.1", "1.2")
    whole = metrics_of_all([counts(4), counts(5)], told.counts, ["a"])
    assert whole.stats() == merged_metrics([counts(2, latency_ms=40.0), counts(12)]).stats()


def test_worker_that_has_left_since_is_not_shown_again() -> None:
    """Processes drop the series of workers that leave; those of one that has ended go by what the others know."""
    whole = metrics_of_all([counts(1, worker="a")], counts(2, worker="b"), ["a"])
    assert whole.stats().picks_by_worker == {"a": 1.0}
    assert whole.stats().requests.total == 3.0


def test_counts_of_a_worker_stay_while_it_is_there() -> None:
    """Processes that have just started have placed nothing at some workers yet. "other" is nobody who can leave."""
    ended = counts(2, worker="b") | {"gc_router_refusals_total": [[["other"], 3.0]]}
    whole = metrics_of_all([counts(1, worker="a")], ended, ["a", "b"])
    assert whole.stats().picks_by_worker == {"a": 1.0, "b": 2.0}
    assert whole.refusals.total == 3.0


def test_metric_of_other_code_is_left_out_and_the_others_are_summed() -> None:
    """While an upgrade replaces processes, and in what those before it had counted."""
    old = counts(2) | {"gc_router_worker_picks_total": [[["a"], 2.0]], "gc_request_latency_ms": [[2], 2.0, 1.0]}
    whole = merged_metrics([counts(1), old])
    assert whole.stats().requests.total == 3.0
    assert (whole.stats().picks_by_worker, whole.latency_ms.count) == ({"a": 1.0}, 1)


class Nothing:
    """Local endpoints that answer with nothing."""

    async def handle(self, _: LocalRequest) -> LocalResponse:
        return LocalResponse(200, (), b"{}")


def line_of(*names: str, requests: int) -> bytes:
    """Return the line by which a supervisor tells of processes that have ended."""
    return b"ended " + msgspec.json.encode(Ended(names, counts(requests))) + b"\n"


@on_loop
async def test_process_says_what_it_has_counted_and_adds_what_it_is_told(tmp_path: Path) -> None:
    """At once when it is ready, for it may be killed; and when it leaves, the last requests among it.

    The others can ask it until they have been told: neither lack its counts, nor add them twice.
    """
    own = metrics(1)
    membership, whole, reader, writer = await member(tmp_path, own, local=cast(LocalEndpoints, Nothing()))
    ended = asyncio.Event()

    async def leave() -> None:
        own.answered("/v1/completions", 200)

    await membership.follow(cast(HttpProxy, None), Told(leave, ended.set))
    assert await reader.readline() == b"ready\n"
    assert decoded((await reader.readline()).removeprefix(COUNTED)) == decoded(encoded(counts(1)))
    writer.write(line_of("1.2", requests=7) + b"leave\n")
    said = list[bytes]()
    while SAID not in said:
        said.append((await reader.readline()).strip())
    found = [decoded(line.removeprefix(COUNTED)) for line in said if line.startswith(COUNTED)]
    assert merged_metrics([found[-1]]).stats().requests.total == 2
    stats = msgspec.json.decode((await whole.handle(STATS)).body)
    assert stats["requests"]["total"] == 2 + 7
    assert [path.name for path in tmp_path.iterdir()] == ["0.1"], "it answers still"
    writer.write(line_of("1.2", "0.1", requests=9))
    await ended.wait()
    assert COUNTED not in await reader.read(), "it would be counted twice"
    assert not list(tmp_path.iterdir())
    await membership.stop()
    writer.close()


@on_loop
async def test_process_that_is_ended_while_others_are_told_of_it_says_no_more(tmp_path: Path) -> None:
    """It would be counted twice."""
    own = metrics(1)
    membership, _, reader, writer = await member(tmp_path, own)
    await membership.follow(cast(HttpProxy, None), Told(partial(asyncio.sleep, 0), lambda: None))
    writer.write(b"leave\n")
    await reader.readuntil(SAID + b"\n")
    await membership.stop()
    assert COUNTED not in await reader.read()
    writer.close()


@on_loop
async def test_answer_of_a_process_that_has_counted_its_last_is_not_added(tmp_path: Path) -> None:
    """The sums have it already, by what the supervisor has told meanwhile."""
    asked = metrics(1)
    local = cast(LocalEndpoints, Nothing())
    siblings, leaving = Siblings(tmp_path, "0.1"), Siblings(tmp_path, "1.2")
    whole = WholeRouter(local, asked, KeptHistory(asked), SEAT, siblings, workers=lambda: ["a"], shared=False)

    told = [("2.3",), ("2.3", "1.2")]

    async def answer(_: Question) -> Answer:
        whole.ended = Ended(told.pop(0), counts(7))
        return Answer(counts=counts(5))

    await leaving.start(answer)
    for total in 1 + 5 + 7, 1 + 7:
        stats = msgspec.json.decode((await whole.handle(STATS)).body)
        assert stats["requests"]["total"] == total
    leaving.stop()


@on_loop
async def test_process_that_is_ended_by_a_signal_says_what_it_has_counted(tmp_path: Path) -> None:
    """Whoever sends it: no word of the supervisor comes before that."""
    own = metrics(1)
    membership, _, reader, writer = await member(tmp_path, own)
    await membership.follow(cast(HttpProxy, None), Told(asyncio.Event().wait, lambda: None))
    own.answered("/v1/completions", 200)
    await membership.stop()
    said = [line for line in (await reader.read()).splitlines() if line.startswith(COUNTED)]
    assert merged_metrics([decoded(said[-1].removeprefix(COUNTED))]).stats().requests.total == 2
    writer.close()


async def gone() -> int:
    """As a process is waited for that has ended."""
    return 0


@on_loop
async def test_last_words_of_a_process_are_heard_when_it_has_ended() -> None:
    """They may be on their way still; a line that breaks off is none."""
    child, theirs = await supervised(gone)
    assert await child.ended == 0
    theirs.recv(1 << 16)
    last = b'{"a":"' + b"x" * (1 << 20) + b'"}\n'

    def say() -> None:
        theirs.sendall(b"ready\ncounted {}\ncounted " + last + b'counted {"a')
        theirs.close()

    saying = asyncio.create_task(asyncio.to_thread(say))
    assert await child.end_within(0.0) == 0
    assert child.counted == last
    await saying


@on_loop
async def test_nobody_waits_for_last_words_of_a_process_that_has_ended() -> None:
    """Its side of the socket may be open still, in what it has started."""
    child, theirs = await supervised(gone)
    async with asyncio.timeout(60):
        assert not await child.has_said_all(600.0)
    theirs.close()
    assert await child.end_within(0.0) == 0


class Started:
    """A process that is ready at once, and keeps what it is told."""

    name, counted = "0.1", b""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.points: list[bytes] = []

    def tell(self, line: str) -> None:
        self.lines.append(line)

    async def wait_until_ready(self, _: float) -> bool:
        return True

    @classmethod
    def next(cls, monkeypatch: pytest.MonkeyPatch) -> Self:
        """Return the process that a supervisor starts next."""
        child = cls()

        async def started(_: object) -> Self:
            return child

        monkeypatch.setattr(Child, "started", started)
        return child


@contextmanager
def supervising(folder: Path) -> Iterator[Supervisor]:
    """Give a supervisor of one process, which it has not started."""
    settings = RouterSettings(redis=False, processes=1, workers=("http://127.0.0.1:9",))
    listeners = Listeners(Listen("127.0.0.1", 0), 1)
    yield Supervisor(settings, lambda: settings, listeners, folder)
    listeners.close()


@on_loop
@pytest.mark.parametrize("line", [b'{"gc_', b'{"gc_router_picks_total":[[1,2],3.0,1.0]}', b'{"gc_router_ttft_ms":[]}'])
async def test_counts_that_are_not_understood_end_no_supervisor(tmp_path: Path, line: bytes) -> None:
    """Of a process of other code; what was known before stays."""
    child = Started()
    child.counted = line
    with supervising(tmp_path) as supervisor:
        supervisor._ended.add("1.2", encoded(counts(2)))
        supervisor._forget(cast(Child, child))
        assert supervisor._ended.encoded() == msgspec.json.encode(Ended(("1.2",), counts(2)))


@on_loop
async def test_counts_of_a_process_are_told_even_if_how_it_fared_is_not_understood(tmp_path: Path) -> None:
    """They are in the sums: who is not told would show less than before."""
    child, other = Started(), Started()
    child.counted, child.points = encoded(counts(2)), [b'[{"of": "other code"}]']
    with supervising(tmp_path) as supervisor:
        supervisor._alive = {cast(Child, other)}
        supervisor._forget(cast(Child, child))
    assert other.lines == [line_of("0.1", requests=2).decode().strip()]


@on_loop
async def test_process_that_is_started_is_told_of_those_that_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be asked as any other."""
    child = Started.next(monkeypatch)
    with supervising(tmp_path) as supervisor:
        supervisor._ended.add("1.2", encoded(counts(2)))
        await supervisor._start(next(iter(supervisor._slots)))
    assert child.lines == [line_of("1.2", requests=2).decode().strip()]


@on_loop
async def test_others_are_told_before_a_process_that_answers_still_is_let_go(tmp_path: Path) -> None:
    """How it has fared, too. Its socket is there until then."""
    told = list[tuple[str, str]]()

    class Listener(Started):
        def tell(self, line: str) -> None:
            told.append((self.name, line.partition(" ")[0]))
            assert socket_of_it.exists()

    leaving, others = Listener(), [Listener(), Listener()]
    leaving.name, socket_of_it = "1.2", tmp_path / "1.2"
    leaving.counted, leaving.points = encoded(counts(2)), [encoded_points((HistoryPoint(time.time(), 5.0),))]
    socket_of_it.touch()
    with supervising(tmp_path) as supervisor:
        supervisor._alive = {cast(Child, each) for each in (others[0], leaving, others[1])}
        supervisor._forget(cast(Child, leaving))
    assert told == [(name, word) for name in ("0.1", "0.1", "1.2") for word in ("history", "ended")]
    assert not socket_of_it.exists()


class Leaving(Started):
    """A process that has said all that it has counted, and takes its time to end."""

    name, pid = "0.1", 0

    def __init__(self, ended: asyncio.Event) -> None:
        super().__init__()
        self.counted, self._ended = encoded(counts(2)), ended

    async def has_said_all(self, _: float) -> bool:
        return True

    async def end_within(self, _: float) -> int:
        await self._ended.wait()
        return 0


@on_loop
async def test_what_a_process_has_counted_is_known_before_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last steps may take seconds, and sums would fall for so long. It is counted once."""
    successor, ended = Started.next(monkeypatch), asyncio.Event()
    with supervising(tmp_path) as supervisor:
        slot = next(iter(supervisor._slots))
        supervisor._slots.put(slot, cast(Child, Leaving(ended)))
        replacing = asyncio.create_task(supervisor._replace(slot))
        for _ in range(100):
            await asyncio.sleep(0)
        assert successor.lines
        assert not replacing.done()
        ended.set()
        assert await replacing
    assert successor.lines == [line_of("0.1", requests=2).decode().strip()]
