"""The schema of the admin API holds all that the router answers and takes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from ghostcacher_connector.core.admin_api import (
    GONE,
    NOT_ROUTABLE,
    AbsentWorker,
    FlushRequest,
    FlushScope,
    Load,
    Status,
    Worker,
    WorkerForecast,
    Workers,
)
from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_router.admin.parameters import FlushTarget, flush_of
from ghostcacher_router.http.protocol.local_response import LocalRequest
from ghostcacher_router.types import Forecast


def test_answer_of_another_version_can_be_read() -> None:
    """Fields that are not known are ignored, and those that are missing show as nothing."""
    old = b'{"workers": [{"id": "w", "state": "ready", "novel": {"field": 1}, "load": {"running": 2}}]}'
    (worker,) = msgspec.json.decode(old, type=Workers).workers
    assert worker == Worker("w", "ready", load=Load(running=2))
    status = msgspec.json.decode(b'{"version": "1", "uptime_s": 1, "ready": true}', type=Status)
    assert (status.gone, status.workers, status.replicas) == ((), {}, None)


def test_absent_worker_is_sent_without_what_it_has_not() -> None:
    """It has no load and nothing in flight: a zero would be made up. It is read as any worker."""
    rows = (AbsentWorker("w", NOT_ROUTABLE, why="no URL", namespace="ns"), Worker("v", "ready"))
    sent = json.loads(msgspec.json.encode(Workers(rows)))["workers"]
    assert sent[0] == {"id": "w", "state": "not_routable", "why": "no URL", "namespace": "ns"}
    assert sent[1].keys() == set(Worker.__struct_fields__)
    read = msgspec.convert({"workers": sent}, Workers).workers
    assert (read[0].state, read[0].why, read[1]) == ("not_routable", "no URL", Worker("v", "ready"))
    assert GONE not in (row.state for row in read)


def test_schema_has_every_term_of_a_forecast_and_every_part_of_a_load() -> None:
    """What routing explains and workers report is not lost on the way to readers."""
    assert set(WorkerForecast.__struct_fields__) >= set(Forecast._fields)
    assert set(Load.__struct_fields__) == set(LoadReport.__struct_fields__)


@pytest.mark.parametrize(
    ("request_", "target"),
    [
        (FlushRequest(FlushScope.ALL), FlushTarget(FlushScope.ALL)),
        (FlushRequest(FlushScope.SESSION, session="s"), FlushTarget(FlushScope.SESSION, session="s")),
        (FlushRequest(FlushScope.PREFIX, key="00ff"), FlushTarget(FlushScope.PREFIX, key=b"\x00\xff")),
        (
            FlushRequest(FlushScope.DOC, request={"messages": []}, path="/v1/messages"),
            FlushTarget(FlushScope.DOC, None, "/v1/messages", b'{"messages": []}'),
        ),
    ],
)
def test_router_takes_what_the_schema_writes(request_: FlushRequest, target: Any) -> None:
    """A client that encodes the struct is understood."""
    body = msgspec.json.encode(request_)
    assert flush_of(LocalRequest("POST", "/gc/flush", "", {}, body, None)) == target
