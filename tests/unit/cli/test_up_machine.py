"""What is looked at before servers are started."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ghostcacher_cli.up import machine
from ghostcacher_cli.up.machine import EPHEMERAL_RANGE, PORTS, free_port, is_port_free


def first_ephemeral() -> int:
    return int(EPHEMERAL_RANGE.read_text().split()[0]) if EPHEMERAL_RANGE.exists() else 0


@pytest.mark.skipif(first_ephemeral() < 2 * PORTS, reason="here there is no room below the ephemeral ports")
def test_free_port_is_none_that_outgoing_connections_get() -> None:
    """A server that listens late finds its port free: nobody is given it meanwhile."""
    first = first_ephemeral()
    for _ in range(50):
        port = free_port()
        assert is_port_free("127.0.0.1", port)
        assert first - PORTS <= port < first


def test_free_port_takes_nothing_from_a_program_s_own_luck() -> None:
    """Else two processes that begin with one seed are given one port, and what they draw after it is another's."""
    random.seed(1)
    before = random.getstate()
    free_port()
    assert random.getstate() == before


@pytest.mark.parametrize("said", [None, "", "many", "1024\t65535"])
def test_free_port_where_the_system_leaves_no_room_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None
) -> None:
    """Without a usable range, the system picks."""
    path = tmp_path / "range"
    if said is not None:
        path.write_text(said)
    monkeypatch.setattr(machine, "EPHEMERAL_RANGE", path)
    port = free_port()
    assert port > 1023
    assert is_port_free("127.0.0.1", port)
