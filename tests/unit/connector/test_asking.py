"""The index's answer as a scheduler takes it: there, not yet, or not in time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ghostcacher_connector.core.index.base import BlockIndex
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.core.types import MissReason, PrefixHit
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.asking import take_answer
from ghostcacher_connector.pull.lookups import LookupService

BLOCK = b"b" * 32


class SlowIndex(MemoryIndex):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()

    def lookup(self, *_: Any, **__: Any) -> list[PrefixHit]:
        self.let.wait(10.0)
        return [PrefixHit("w", b"i" * 16, 1, ())]


class Rig:
    def __init__(self) -> None:
        self.index = SlowIndex()
        index: BlockIndex = self.index
        self.lookups = LookupService(index, list)
        self.recorder = Recorder()
        self.lookups.start("r", [BLOCK])

    def take(self, **times: Any) -> Any:
        return take_answer(self.lookups, self.recorder, "r", **times)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.index.let.set()
    rig.lookups.stop()


def test_answer_that_is_there_is_taken(rig: Rig) -> None:
    """Hits come as they are, and the time that the lookup took is recorded."""
    rig.index.let.set()
    assert [hit.worker for hit in rig.take(left_s=5.0, wait_s=5.0)] == ["w"]
    assert "gc_lookup_seconds" in rig.recorder.drain()


def test_answer_that_may_still_come_is_none(rig: Rig) -> None:
    """With time left beyond the wait, the caller shall ask again."""
    assert rig.take(left_s=5.0, wait_s=0.0) is None


@pytest.mark.parametrize("left_s", [0.01, 0.0, -1.0])
def test_answer_that_is_late_is_a_miss(rig: Rig, left_s: float) -> None:
    """At the deadline the lookup is forgotten; a wait never goes beyond it."""
    assert rig.take(left_s=left_s, wait_s=5.0) is MissReason.LOOKUP_DEADLINE
    rig.index.let.set()
    assert rig.take(left_s=1.0, wait_s=1.0) is MissReason.INDEX_UNAVAILABLE
