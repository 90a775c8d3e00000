"""A READ that fails is over: on a GPU only after what is queued there."""

from __future__ import annotations

from typing import Any

import pytest

from ghostcacher_connector.core.errors import TransferError
from ghostcacher_connector.transfer.nixl import agent
from ghostcacher_connector.transfer.nixl.agent import Read, UnfinishedRead


class Nixl:
    """Answers a READ's calls with these states in turn; an exception is raised."""

    def __init__(self, *states: str | Exception) -> None:
        self._states = list(states)

    def transfer(self, _handle: Any) -> str:
        return self._next()

    def check_xfer_state(self, _handle: Any) -> str:
        return self._next()

    def _next(self) -> str:
        state = self._states.pop(0)
        if isinstance(state, Exception):
            raise state
        return state


class Handle:
    def release(self) -> None:
        pass


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The devices that were waited for."""
    found: list[int] = []

    class Device:
        def __init__(self, number: int) -> None:
            self._number = number

        def wait_for_all(self) -> None:
            found.append(self._number)

    monkeypatch.setattr(agent, "CudaDevice", Device)
    return found


@pytest.mark.parametrize("failure", ["ERR", RuntimeError("peer gone")])
@pytest.mark.parametrize("before", [(), ("PROC",), ("PROC", "PROC")])
def test_failed_read_into_a_device_waits_for_what_is_queued_there(
    waited: list[int], before: tuple[str, ...], failure: str | Exception
) -> None:
    """Whether posting fails or a look at it later: the error leaves only then."""
    nixl = Nixl(*before, failure)
    if not before:
        with pytest.raises(TransferError):
            Read(nixl, Handle(), 3)
    else:
        read = Read(nixl, Handle(), 3)
        assert not any(read.done() for _ in before[1:])
        assert not waited
        with pytest.raises(TransferError):
            read.done()
    assert waited == [3]


@pytest.mark.parametrize("before", [(), ("PROC",)])
def test_failed_read_that_may_still_land_in_part_is_never_over(before: tuple[str, ...]) -> None:
    """NIXL reports the first rail that fails; a later look must not take the READ for done."""
    nixl = Nixl(*before, "ERR", "DONE")
    with pytest.raises(UnfinishedRead) as failed:
        Read(nixl, Handle(), fails_whole=False).done()
    for _ in range(2):
        with pytest.raises(UnfinishedRead):
            failed.value.read.done()


def test_read_that_ends_well_and_reads_into_host_memory_wait_for_no_device(waited: list[int]) -> None:
    assert Read(Nixl("PROC", "DONE"), Handle(), 3).done()
    with pytest.raises(TransferError):
        Read(Nixl("ERR"), Handle())
    assert not waited
