"""Gauges that one process asks another for. Sockets of this machine; the processes are threads here."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from ghostcacher_connector.metrics import Delta, GaugeServer, live_gauges, read_gauges
from tests.support.index_parts import wait_until

GAUGES: Delta = {"gc_peers_live": {"": 2.0}, "gc_self_check_ok": {"0": 1.0, "1": 1.0}}


@pytest.fixture
def engine() -> str:
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def server(engine: str) -> Iterator[GaugeServer]:
    server = GaugeServer(engine, lambda: GAUGES)
    yield server
    server.close()


@pytest.mark.usefixtures("server")
def test_present_values_are_read_as_often_as_asked(engine: str) -> None:
    assert [read_gauges(engine) for _ in range(3)] == [GAUGES] * 3


def test_values_are_those_of_the_moment(engine: str) -> None:
    """What changed since the last question is in the next answer."""
    values: Delta = {"gc_peers_live": {"": 0.0}}
    server = GaugeServer(engine, lambda: values)
    assert read_gauges(engine) == {"gc_peers_live": {"": 0.0}}
    values["gc_peers_live"] = {"": 1.0}
    assert read_gauges(engine) == {"gc_peers_live": {"": 1.0}}
    server.close()


def test_nobody_answers_is_nothing(engine: str, server: GaugeServer) -> None:
    """An engine on another machine, one that has ended, and one that was closed twice."""
    assert read_gauges("no-such-engine") == {}
    server.close()
    server.close()
    assert read_gauges(engine) == {}


@pytest.mark.usefixtures("server")
def test_process_of_another_user_is_not_believed(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody on the machine can take an address that is free."""
    own = os.geteuid()
    monkeypatch.setattr(live_gauges.os, "geteuid", lambda: own + 1)
    assert read_gauges(engine) == {}


def test_what_is_no_gauge_is_left_out(engine: str) -> None:
    """Names of another version, and counters, which would be counted again with each answer."""
    server = GaugeServer(engine, lambda: {**GAUGES, "gc_cache_hits_total": {"": 7.0}, "gc_of_tomorrow": {"": 1.0}})
    assert read_gauges(engine) == GAUGES
    server.close()


def test_values_that_cannot_be_read_end_nothing(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in what reads the values costs that answer, is logged, and the next one comes."""
    answers: list[Delta] = [GAUGES]
    server = GaugeServer(engine, answers.pop)
    assert read_gauges(engine) == GAUGES
    assert read_gauges(engine) == {}
    wait_until(lambda: "unexpected error" in caplog.text, what="the log")
    answers.append(GAUGES)
    assert read_gauges(engine) == GAUGES
    server.close()


@pytest.mark.usefixtures("server")
def test_address_that_is_taken_is_a_warning(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    """A second server of one name fails no engine, and takes nothing from the first."""
    GaugeServer(engine, dict).close()
    assert "gauges are shown as of the last step" in caplog.text
    assert read_gauges(engine) == GAUGES
