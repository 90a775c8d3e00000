"""How processes that have ended had fared, in the history of those that go on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from ghostcacher_connector.core.dashboard_api import History, HistoryPoint
from ghostcacher_router.admin.dashboard import history
from ghostcacher_router.http.protocol.local_response import LocalRequest, LocalResponse
from ghostcacher_router.http.proxy import HttpProxy
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.processes import child, ended_history
from ghostcacher_router.processes.child import POINTS, SAID
from ghostcacher_router.processes.ended_counts import Ended
from ghostcacher_router.processes.ended_history import EndedHistory, decoded_points, encoded_points
from ghostcacher_router.processes.membership import Told
from ghostcacher_router.processes.seat import Seat
from ghostcacher_router.processes.siblings import Answer, Question, Siblings
from ghostcacher_router.processes.whole_router import WholeRouter
from tests.support.kept_history import KeptHistory
from tests.support.proxy_rig import on_loop
from tests.support.router_child import member, supervised

SEAT = Seat(0, 1, 2, "r", "", ())


def points(*found: tuple[float, float]) -> tuple[HistoryPoint, ...]:
    """Return points. found: the end and the requests of each."""
    return tuple(HistoryPoint(at, 5.0, requests=requests) for at, requests in found)


def said(found: Sequence[HistoryPoint]) -> list[tuple[float, float]]:
    return [(point.at, point.requests) for point in found]


def test_history_is_kept_as_long_and_as_fine_as_a_process_keeps_its_own() -> None:
    assert ended_history.STEP_S == history.INTERVAL_S
    assert child.POINTS_LINES_MAX == history.POINTS_MAX
    assert ended_history.AGE_S_MAX == history.POINTS_MAX * history.INTERVAL_S


def test_points_of_all_that_have_ended_are_added_up_and_the_oldest_are_dropped() -> None:
    """Each process has sampled at its own moments."""
    kept = EndedHistory()
    kept.add([encoded_points(points((1001.0, 1.0))), encoded_points(points((1006.0, 2.0), (1011.0, 3.0)))], 1020.0)
    kept.add([encoded_points(points((1009.0, 4.0)))], 1020.0)
    assert said(decoded_points(kept.encoded())) == [(1005.0, 1.0), (1010.0, 6.0), (1015.0, 3.0)]
    kept.add([encoded_points(points((4602.0, 5.0)))], 4610.0)
    assert said(decoded_points(kept.encoded())) == [(1015.0, 3.0), (4605.0, 5.0)]


class HistoryOf:
    """Local endpoints that answer with the history of one process."""

    def __init__(self, *found: tuple[float, float]) -> None:
        self.whole = History("a", 5000.0, 5.0, points(*found))

    async def handle(self, _: LocalRequest) -> LocalResponse:
        return LocalResponse(200, (), msgspec.json.encode(self.whole))


@on_loop
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [(1405.0, 1.0), (4905.0, 15.0), (4910.0, 8.0)]),
        ("after=4905", [(4910.0, 8.0)]),
    ],
)
async def test_history_has_what_processes_did_that_have_ended(
    tmp_path: Path, query: str, expected: list[tuple[float, float]]
) -> None:
    """Of the last hour, and once: also where one of them answers still."""
    siblings = {name: Siblings(tmp_path, name) for name in ("0.1", "1.2", "2.3")}
    local, metrics = cast(Any, HistoryOf((4902.0, 4.0))), RouterMetrics()
    whole = WholeRouter(
        local, metrics, KeptHistory(metrics), SEAT, siblings["0.1"], workers=lambda: ["a"], shared=False
    )
    whole.ended = Ended(("2.3",))
    whole.ended_points = points((1390.0, 9.0), (1405.0, 1.0), (4905.0, 3.0), (4910.0, 8.0), (4995.0, 2.0))
    answers = {"1.2": points((4904.0, 8.0)), "2.3": points((4904.0, 3.0))}

    def answerer(name: str) -> Any:
        async def answer(_: Question) -> Answer:
            return Answer(body=msgspec.json.encode(History("a", 5000.0, 5.0, answers[name])))

        return answer

    for name in answers:
        await siblings[name].start(answerer(name))
    merged = await whole.handle(LocalRequest("GET", "/gc/history", query, {}, b"", None))
    for name in answers:
        siblings[name].stop()
    assert said(msgspec.json.decode(merged.body, type=History).points) == expected


@on_loop
async def test_process_says_how_it_has_fared_once_and_up_to_its_last_request(tmp_path: Path) -> None:
    metrics = RouterMetrics()
    kept = KeptHistory(metrics)
    membership, whole, reader, writer = await member(tmp_path, metrics, fared=kept)

    def serve(requests: int) -> None:
        kept.now += 5.0
        for _ in range(requests):
            metrics.answered("/v1/completions", 200)

    async def leave() -> None:
        serve(2)

    serve(1)
    kept.sample()
    ended = asyncio.Event()
    await membership.follow(cast(HttpProxy, None), Told(leave, ended.set))
    writer.write(b"history " + encoded_points(points((995.0, 7.0))) + b"\nleave\n")
    lines = list[bytes]()
    while SAID not in lines:
        lines.append((await reader.readline()).strip())
    told = [said(decoded_points(line.removeprefix(POINTS))) for line in lines if line.startswith(POINTS)]
    assert told == [[(1005.0, 1.0)], [(1010.0, 2.0)]]
    assert said(whole.ended_points) == [], "until it is told of whom they are: they would be counted twice"
    writer.write(b"ended " + msgspec.json.encode(Ended(("0.1",))) + b"\n")
    await ended.wait()
    assert said(whole.ended_points) == [(995.0, 7.0)]
    await membership.stop()
    writer.close()


@on_loop
async def test_supervisor_keeps_how_a_process_has_fared_until_it_has_said_all() -> None:
    process, theirs = await supervised()
    theirs.sendall(b"ready\npoints [1]\ncounted {}\npoints [2]\nsaid\n")
    assert await process.has_said_all(60.0)
    assert list(process.points) == [b"[1]\n", b"[2]\n"]
    assert process.counted == b"{}\n"
    process.ended.cancel()
    theirs.close()
