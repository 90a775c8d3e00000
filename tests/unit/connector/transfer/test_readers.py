"""Readers that are taken down: by whom they are used meanwhile, when they are destroyed, and what takes their place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ghostcacher_connector.core.errors import PeerUnreachable, TransferError
from ghostcacher_connector.transfer.nixl.readers import RETIRED_MAX, Readers
from tests.support.index_parts import FakeClock, wait_until

WAIT_S = 60.0


class Reader:
    """Stands for a reader with its agent: it is gone when the library lets go of it, and not before."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.destroyed = 0
        self.closed = False
        self.buffers: Any = self

    def destroy(self) -> bool:
        self.destroyed += 1
        return self.released.is_set()

    def close(self) -> None:
        self.closed = True

    def quarantined_count(self) -> int:
        return 0

    def reap(self) -> int:
        return 0


class Bench:
    """Readers, those that were made, and an error that making the next one ends with."""

    def __init__(self) -> None:
        self.clock, self.made, self.error = FakeClock(), list[Reader](), ""
        self.while_making = lambda: None
        self.readers = Readers(self._make, self.clock)

    def _make(self) -> Any:
        self.while_making()
        if self.error:
            raise TransferError(self.error)
        self.made.append(Reader())
        return self.made[-1]

    def retire(self) -> threading.Event:
        """Use the current reader, and leave a READ in it unfinished."""
        with self.readers.use() as lent:
            return self.readers.retire(lent, "overdue", unfinished=1)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for reader in bench.made:
        reader.released.set()


def test_retired_reader_is_destroyed_when_the_last_pull_has_left_it(bench: Bench) -> None:
    """Nobody may be inside the library's agent when it goes; new pulls use a new reader at once."""
    first = bench.made[0]
    first.released.set()
    with bench.readers.use():
        over = bench.retire()
        with bench.readers.use() as lent:
            assert lent.reader is bench.made[1]
        assert not over.wait(0.2)
        assert first.destroyed == 0
        assert bench.readers.quarantined_count == 1
    assert over.wait(WAIT_S)
    assert bench.readers.quarantined_count == 0


def test_reader_that_does_not_go_keeps_its_quarantine(bench: Bench) -> None:
    """It is tried again and again; what it may still write to is nobody's until it is gone."""
    over = bench.retire()
    wait_until(lambda: bench.made[0].destroyed > 2, WAIT_S)
    assert not over.is_set()
    assert bench.readers.quarantined_count == 1
    bench.made[0].released.set()
    assert over.wait(WAIT_S)


def test_too_many_readers_that_do_not_go_end_the_pulls_until_one_is_gone(bench: Bench) -> None:
    """Each keeps its connections and registrations; other transports go on meanwhile."""
    overs = [bench.retire() for _ in range(RETIRED_MAX)]
    with pytest.raises(PeerUnreachable, match="wait to be destroyed"), bench.readers.use():
        pass
    assert bench.readers.quarantined_count == RETIRED_MAX
    bench.made[0].released.set()
    assert overs[0].wait(WAIT_S)
    with bench.readers.use() as lent:
        assert lent.reader is bench.made[RETIRED_MAX]


def test_reader_that_cannot_be_made_is_tried_again_after_a_pause(bench: Bench) -> None:
    """Pulls fail at once meanwhile, instead of each paying for another try."""
    bench.made[0].released.set()
    bench.retire()
    bench.error = "no memory left to register"
    with pytest.raises(PeerUnreachable, match="no memory left"), bench.readers.use():
        pass
    bench.error = ""
    with pytest.raises(PeerUnreachable, match="no reading agent"), bench.readers.use():
        pass
    bench.clock.advance(60.0)
    with bench.readers.use() as lent:
        assert lent.reader is bench.made[1]


def test_reader_that_is_made_while_the_transport_closes_is_closed_too(bench: Bench) -> None:
    """Nobody would close it later: it would keep its agent, its registrations and its connections."""
    bench.made[0].released.set()
    bench.retire()
    bench.while_making = bench.readers.close
    with pytest.raises(PeerUnreachable, match="closed"), bench.readers.use():
        pass
    assert bench.made[1].closed
