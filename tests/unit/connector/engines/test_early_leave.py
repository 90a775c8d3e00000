"""SIGTERM in an engine's process: its own handler and ours, in whatever order."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from ghostcacher_connector.engines.vllm.early_leave import leave_on_sigterm
from tests.support.index_parts import wait_until


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """The signals that the engine's own handler has got."""
    got: list[int] = []

    def handler(number: int, _: FrameType | None) -> None:
        got.append(number)

    before = signal.signal(signal.SIGTERM, handler)
    yield got
    signal.signal(signal.SIGTERM, before)


def test_engine_and_we_hear_of_it(handled: list[int]) -> None:
    """Both, and we once, on another thread: nothing holds up the engine's handler."""
    left: list[str] = []
    assert leave_on_sigterm(lambda: left.append(threading.current_thread().name))
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    wait_until(lambda: bool(left), what="the fleet is left")
    assert (left, handled) == (["gc-leave"], [signal.SIGTERM] * 2)


def test_process_that_the_signal_ends_anyway_is_left_alone() -> None:
    """Where nobody handles it, it still ends the process."""
    before = signal.getsignal(signal.SIGTERM)
    for default in (signal.SIG_DFL, signal.SIG_IGN):
        signal.signal(signal.SIGTERM, default)
        try:
            assert not leave_on_sigterm(lambda: None)
            assert signal.getsignal(signal.SIGTERM) is default
        finally:
            signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("handled")
def test_other_threads_cannot_hear_signals() -> None:
    """An engine that is made there goes without, and does not fail."""
    heard: list[bool] = []
    thread = threading.Thread(target=lambda: heard.append(leave_on_sigterm(lambda: None)))
    thread.start()
    thread.join()
    assert heard == [False]
