"""Where there is no memory for ghost locks, or it is another version's, processes agree on them through Redis."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostcacher_connector.core.settings import Listen
from ghostcacher_router.config import RouterSettings
from ghostcacher_router.ghostlock.sibling_locks import shared_file
from ghostcacher_router.processes.listeners import Listeners
from ghostcacher_router.processes.membership import Membership
from ghostcacher_router.processes.seat import Seat
from ghostcacher_router.processes.supervisor import Supervisor
from tests.support.proxy_rig import on_loop


@pytest.fixture
def control() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield theirs


@on_loop
async def test_no_file_in_memory_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says why."""

    def refused(name: str) -> int:
        raise PermissionError(name)

    monkeypatch.setattr(os, "memfd_create", refused)
    settings = RouterSettings(processes=1)
    listeners = Listeners(Listen("127.0.0.1", 0), 1)
    Supervisor(settings, lambda: settings, listeners, tmp_path)
    assert "through Redis: expected a file in memory" in caplog.text
    listeners.close()


def test_process_without_a_place_in_memory_has_no_siblings_there(control: socket.socket) -> None:
    """Its feed it has all the same; without Redis there is neither."""
    seat = Seat(0, 1, 2, "r", "/nowhere", (), feed="/nowhere/feed")
    feed, locks = Membership(seat, control).shared()
    assert feed is not None
    assert locks is None
    assert Membership(Seat(0, 1, 2, "r", "/nowhere", ()), control).shared() == (None, None)


def test_memory_of_another_version_is_not_used(control: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    """The log says so; with that of this version it is."""
    caplog.set_level(logging.WARNING)
    number = shared_file()
    seat = Seat(0, 1, 2, "r", "/nowhere", (), feed="/nowhere/feed", locks=number)
    assert Membership(seat, control).shared()[1] is not None
    os.ftruncate(number, 4096)
    assert Membership(seat, control).shared()[1] is None
    assert "process 0.1 agrees on ghost locks with others through Redis: memory of ghost locks" in caplog.text
    os.close(number)
