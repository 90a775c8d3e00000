"""Who is let in and who goes, where connections end later than they are given up, as a loop tells of it later."""

from __future__ import annotations

import resource
from collections import Counter

import pytest

from ghostcacher_router.http.clients.admission import Admission
from ghostcacher_router.http.open_files import SPARE
from ghostcacher_router.http.protocol.limits import Limits


class Meter:
    """Counts what admission reports."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()

    @property
    def turned_away(self) -> Meter:
        return self

    def inc(self, *labels: str) -> None:
        self.counts[labels] += 1


class Client:
    """A connection of which admission hears no more once it is dropped: its end is told later, or never."""

    deadline = 0.0
    trickles = False

    def __init__(self, peer: str | None = "10.0.0.1") -> None:
        self.peer = peer
        self.dropped = False

    def drop(self) -> None:
        assert not self.dropped
        self.dropped = True


def test_each_new_client_displaces_one_although_no_end_was_told_yet() -> None:
    """Many come in one turn of the loop: as many go, the oldest of them, and no more."""
    for per_address in (None, 3):
        admission = Admission(Limits(connections_max=3, connections_per_address_max=per_address), Meter(), lambda: 0)  # type: ignore[arg-type]
        clients = [Client() for _ in range(8)]
        assert all(admission.admit(client) for client in clients)  # type: ignore[arg-type]
        assert [client.dropped for client in clients] == [True] * 5 + [False] * 3
        for client in clients:
            admission.forget(client)  # type: ignore[arg-type]
        assert admission.clients == set()
        assert all(admission.admit(Client()) for _ in range(3))  # type: ignore[arg-type]


def test_refused_client_takes_no_room_while_it_lingers() -> None:
    """One that comes when there is room again is let in, whoever still reads why it was refused."""
    meter = Meter()
    admission = Admission(Limits(connections_max=1, connections_per_address_max=1), meter, lambda: 0)  # type: ignore[arg-type]
    first, refused, later = Client(), Client(), Client()
    assert admission.admit(first)  # type: ignore[arg-type]
    admission.busy(first)  # type: ignore[arg-type]
    assert not admission.admit(refused)  # type: ignore[arg-type]
    admission.forget(first)  # type: ignore[arg-type]
    assert admission.admit(later)  # type: ignore[arg-type]
    assert meter.counts == {("address", "refused"): 1}


def test_clients_without_an_address_are_of_none() -> None:
    """A Unix socket has none: what holds for an address does not hold for them together."""
    admission = Admission(Limits(connections_per_address_max=1), Meter(), lambda: 0)  # type: ignore[arg-type]
    assert all(admission.admit(Client(None)) for _ in range(5))  # type: ignore[arg-type]


@pytest.mark.parametrize("worker_sockets", [0, 100])
def test_files_never_run_out_however_long_clients_come_and_go(
    worker_sockets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new one displaces one, whatever number its descriptor has; connections to workers count, too."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, 1000))
    admission = Admission(Limits(), Meter(), lambda: worker_sockets)  # type: ignore[arg-type]
    for _ in range(5000):
        assert admission.admit(Client())  # type: ignore[arg-type]
    assert len(admission.clients) == 1000 - SPARE - worker_sockets


def test_few_files_are_for_clients_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a quarter is kept."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    admission = Admission(Limits(), Meter(), lambda: 0)  # type: ignore[arg-type]
    for _ in range(100):
        assert admission.admit(Client())  # type: ignore[arg-type]
    assert len(admission.clients) == 48
