"""The lines of those that pull one prefix: in memory, in one Redis, in a Redis Cluster, with a key and without."""

from __future__ import annotations

import pytest

from ghostcacher_connector.core.index.base import READERS_MAX, BlockIndex, WorkerRef
from tests.contract.conftest import KEY, Subject
from tests.support.index_parts import chain, wait_until

LEASE_S = 30.0
SHORT_S = 0.2
BLOCK, OTHER = chain(2)
KEYS = pytest.mark.parametrize("key", [b"", KEY], ids=["no key", "key"])


def ref(worker: str, namespace: str = "ns") -> WorkerRef:
    return WorkerRef(namespace, worker, b"i" * 16)


def line(index: BlockIndex, *workers: str, ttl_s: float = LEASE_S) -> list[list[str]]:
    """Have workers line up; return who is before each."""
    return [sorted(index.line_up(ref(worker), BLOCK, ttl_s=ttl_s)) for worker in workers]


@KEYS
def test_worker_is_told_who_is_before_it(subject: Subject, key: bytes) -> None:
    """Never itself, and everybody once, however often somebody lines up."""
    index = subject.client(key)
    assert line(index, "c", "a", "b") == [[], ["c"], ["a", "c"]]
    assert line(index, "c", "d") == [["a", "b"], ["a", "b", "c"]]
    assert index.malformed_entries == 0


def test_lines_are_of_one_prefix_and_namespace(index: BlockIndex) -> None:
    line(index, "a")
    assert index.line_up(ref("b"), OTHER, ttl_s=LEASE_S) == []
    assert index.line_up(ref("b", "other"), BLOCK, ttl_s=LEASE_S) == []


@KEYS
def test_worker_leaves_its_line_when_its_time_is_over(subject: Subject, key: bytes) -> None:
    """By itself: nobody has to say that a pull has ended."""
    index = subject.client(key)
    line(index, "a", ttl_s=SHORT_S)

    def gone() -> bool:
        subject.pass_time()
        return index.line_up(ref("b"), BLOCK, ttl_s=SHORT_S) == []

    wait_until(gone)


def test_long_line_is_told_by_its_end(index: BlockIndex) -> None:
    """Those at its beginning have been there for longest."""
    workers = [f"w{number:03}" for number in range(READERS_MAX + 5)]
    found = line(index, *workers, "last")[-1]
    assert len(found) == READERS_MAX
    assert set(found) <= set(workers)


@pytest.mark.parametrize("key", [b"", b"another secret"], ids=["no key", "another key"])
def test_stranger_in_a_line_is_not_believed(subject: Subject, key: bytes) -> None:
    """Else whoever can write to Redis has all pulls wait, as long as they may."""
    ours, stranger = subject.client(KEY), subject.client(key)
    line(stranger, "w1", "w2")
    assert line(ours, "a", "b") == [[], ["a"]]
    assert ours.refusals().keys() == {"reader: not authentic"}
