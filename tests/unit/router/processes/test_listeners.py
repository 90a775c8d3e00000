"""The sockets that a supervisor keeps for its children."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import Listen
from ghostcacher_router.processes.listeners import Listeners

PATIENCE_S = 60.0


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    with closing(Listeners(Listen("127.0.0.1", 0), 3)) as made:
        yield made


def test_slots_have_one_port(listeners: Listeners) -> None:
    """Any free one for port 0, and the same for all of them."""
    ports = {bound.getsockname()[1] for slot in listeners.slots for bound in slot}
    assert ports == {listeners.port}
    assert [len(numbers) for numbers in listeners.numbers()] == [1, 1, 1]


def test_nobody_connects_before_a_child_accepts(listeners: Listeners) -> None:
    """As with a router that has not begun to listen."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listeners.port), PATIENCE_S)


def test_connection_that_waits_is_there_for_the_next_child(listeners: Listeners) -> None:
    """The child that listened has closed its copy, and has accepted nothing."""
    (kept,) = listeners.slots[0]
    with kept.dup() as first:
        first.listen()
        client = socket.create_connection(("127.0.0.1", listeners.port), PATIENCE_S)
    with client, kept.dup() as second:
        second.settimeout(PATIENCE_S)
        second.listen()
        with second.accept()[0] as served:
            served.sendall(b"x")
        assert client.recv(1) == b"x"


@pytest.mark.parametrize("slots", [1, 2])
def test_address_of_another_router_is_refused(listeners: Listeners, slots: int) -> None:
    """Also of one in several processes, which the kernel would let us share with."""
    (kept,) = listeners.slots[0]
    kept.listen()
    with pytest.raises(ConfigError, match=rf"listen: expected a free address, got '127.0.0.1:{listeners.port}'"):
        Listeners(Listen("127.0.0.1", listeners.port), slots)


def test_closed_address_is_free_again(listeners: Listeners) -> None:
    """For the next supervisor."""
    listeners.close()
    Listeners(Listen("127.0.0.1", listeners.port), 2).close()
