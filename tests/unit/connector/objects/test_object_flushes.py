"""Orders to flush in the object tier, over files: what is meant is deleted once, and found by nobody any more."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects import directory as directory_module
from ghostcacher_connector.objects import object_flushes as flushes_module
from ghostcacher_connector.objects import tier as tier_module
from ghostcacher_connector.objects.directory import ObjectDirectory
from ghostcacher_connector.objects.object_flushes import FlushWanted, ObjectsFlushed
from ghostcacher_connector.objects.object_notes import RunFacts
from ghostcacher_connector.objects.stores.base import ListedObject, StoreError, StoreFault
from ghostcacher_connector.objects.stores.file_store import FileStore
from tests.support.index_parts import wait_until
from tests.support.object_tiers import (
    BLOCK_BYTES,
    NAMESPACE,
    buffers,
    chain,
    flush,
    opened,
    right,
    rows_of,
    write_all,
)

PROMPT, KEPT = chain(8), chain(8, "kept")
WAIT_S = 60.0


@pytest.fixture(autouse=True)
def nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rank knows of others is what it has read when it began, and before it writes notes."""
    monkeypatch.setattr(tier_module, "REFRESH_S", 3600.0)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


@contextmanager
def directory_of(store: FileStore, ranks: int = 1, recorder: Recorder | None = None) -> Iterator[ObjectDirectory]:
    """A directory that knows what is in its store."""
    directory = ObjectDirectory(
        store, namespace=NAMESPACE, block_bytes=[BLOCK_BYTES] * ranks, recorder=recorder or Recorder()
    )
    with closing(_Closing(directory)):
        assert directory.wait_listed(WAIT_S)
        yield directory


class _Closing:
    def __init__(self, directory: ObjectDirectory) -> None:
        self._directory = directory

    def close(self) -> None:
        self._directory.close(WAIT_S)


def objects_in(store: FileStore) -> list[str]:
    return [one.name for one in store.walk("v1/objects/", 1000)]


class Standing(FileStore):
    """Stands still before it writes an object, until it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.stands, self.goes = threading.Event(), threading.Event()

    def create(self, name: str, data: memoryview) -> bool:
        if name.startswith("v1/objects/"):
            self.stands.set()
            assert self.goes.wait(WAIT_S)
        return super().create(name, data)


class Away(FileStore):
    """Fails what its test names, while it is away."""

    def __init__(self, folder: Path, *failing: str) -> None:
        super().__init__(folder)
        self.failing, self.away = failing, False

    def _ask(self, what: str) -> None:
        if self.away and what in self.failing:
            raise StoreError(StoreFault.UNREACHABLE, what)

    def create(self, name: str, data: memoryview) -> bool:
        self._ask("create")
        return super().create(name, data)

    def walk(self, prefix: str, count_max: int) -> Iterator[ListedObject]:
        self._ask("walk")
        return super().walk(prefix, count_max)

    def delete(self, names: object) -> None:
        self._ask("delete")
        super().delete(names)  # type: ignore[arg-type]


def test_what_is_flushed_is_deleted_and_found_by_nobody_after_a_restart(store: FileStore) -> None:
    """The objects that hold any of the blocks; their bytes are those of the files."""
    write_all(store, PROMPT)
    write_all(store, KEPT)
    sizes = {one.name: one.size_bytes for one in store.walk("v1/objects/", 10)}
    with directory_of(store) as directory:
        assert directory.longest(PROMPT) == 8
        ended = flush(directory, PROMPT[3:4])
        assert directory.longest(PROMPT) == 0
        assert directory.longest(KEPT) == 8
    left = objects_in(store)
    assert ended == ObjectsFlushed(8, sum(size for name, size in sizes.items() if name not in left))
    with opened(store) as tier, directory_of(store) as later:
        assert tier.longest(PROMPT) == later.longest(PROMPT) == 0
        assert right(tier, KEPT) == 8


def test_flush_of_all_deletes_what_nobody_knows_and_no_other_namespace(store: FileStore) -> None:
    """An object without a note was left by a worker that was killed."""
    write_all(store, PROMPT)
    for one in store.walk("v1/notes/", 10):
        store.delete([one.name])
    write_all(store, KEPT)
    with opened(store, namespace=b"other weights") as other:
        assert other.write(KEPT, rows_of(KEPT), RunFacts(0, 1))
    with directory_of(store) as directory:
        ended = flush(directory)
        assert directory.longest(KEPT) == 0
    assert (ended.blocks, ended.error) == (8, None)
    assert ended.bytes > 2 * 8 * BLOCK_BYTES
    with opened(store, namespace=b"other weights") as other, opened(store) as own:
        assert (right(other, KEPT), right(own, KEPT)) == (8, 0)


def test_workers_that_get_one_order_delete_and_count_once(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same time: none has heard of what the others do. One that alone knows of more deletes that, too."""
    write_all(store, PROMPT)
    write_all(store, KEPT)
    order = b"o" * 16
    with directory_of(store) as one, directory_of(store) as two, directory_of(store) as three:
        for other in (two, three):
            monkeypatch.setattr(other._ranks[0].notes, "refresh", lambda: True)
        first = flush(one, PROMPT, order=order)
        second = flush(two, [*PROMPT, *KEPT], order=order)
        third = flush(three, PROMPT, order=order)
    assert [each.blocks for each in (first, second, third)] == [8, 8, 0]
    assert third == ObjectsFlushed()
    assert not objects_in(store)


def test_each_rank_has_its_objects_flushed_and_a_block_counts_once(store: FileStore) -> None:
    for rank in range(2):
        write_all(store, PROMPT, rank=rank)
    with directory_of(store, ranks=2) as directory:
        ended = flush(directory, PROMPT[:1])
    assert ended.blocks == 8
    assert ended.bytes > 2 * 8 * BLOCK_BYTES
    assert not objects_in(store)


def test_nothing_is_found_while_it_is_not_known_what_is_meant(store: FileStore) -> None:
    """Not even for a moment, and nothing waits for the store."""
    write_all(store, PROMPT)
    asked, goes = threading.Event(), threading.Event()

    def doomed(_objects: object) -> set[bytes]:
        asked.set()
        assert goes.wait(WAIT_S)
        return set(PROMPT)

    with directory_of(store) as directory:
        directory.flush(FlushWanted(b"o" * 16, doomed, frozenset(), lambda _: None))
        assert directory.longest(PROMPT) == 0
        assert asked.wait(WAIT_S)
        assert directory.longest(PROMPT) == 0
        goes.set()


@pytest.mark.parametrize("everything", [True, False])
def test_what_is_under_way_when_it_is_flushed_is_in_no_object(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, everything: bool
) -> None:
    """Neither what is being written nor what waits behind it: its rank learns of the flush from the notes."""
    monkeypatch.setattr(tier_module, "REFRESH_S", 0.05)
    slow, prompt, recorder = Standing(store._folder), chain(64), Recorder()
    with directory_of(store) as directory, opened(slow, recorder=recorder) as tier:
        tier.write(prompt, rows_of(prompt), RunFacts(0, 1))
        assert slow.stands.wait(WAIT_S)
        flush(directory, None if everything else prompt, under_way=prompt)
        wait_until(lambda: tier.catalogue.flushed_at > 0, WAIT_S, "the rank has heard of it")
        slow.goes.set()
        assert tier.wait_written(WAIT_S)
        assert tier.longest(prompt) == 0
    assert not objects_in(store)
    assert recorder.drain()["gc_object_writes_total"].keys() == {"flushed", "queue_full"}


def test_what_was_written_before_it_is_told_of_is_deleted_and_never_told_of(store: FileStore) -> None:
    """Its note waits while the flush comes: whoever writes notes reads those of others first."""
    with directory_of(store) as directory, opened(store) as tier:
        assert tier.write(PROMPT, rows_of(PROMPT), RunFacts(0, 1))
        assert tier.wait_written(WAIT_S)
        flush(directory, PROMPT, under_way=PROMPT)
    assert not objects_in(store)
    with directory_of(store) as later:
        assert later.longest(PROMPT) == 0


def test_note_that_comes_late_brings_nothing_back(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However late: the one that is told of the object by a note of before deletes it."""
    monkeypatch.setattr(directory_module, "REFRESH_S", 0.05)
    monkeypatch.setattr(flushes_module, "GRACE_S", 0.0)
    with directory_of(store) as directory, opened(store) as tier:
        monkeypatch.setattr(tier._objects.notes, "refresh", lambda: True)
        assert tier.write(PROMPT, rows_of(PROMPT), RunFacts(0, 1))
        assert tier.wait_written(WAIT_S)
        flush(directory, PROMPT, under_way=PROMPT)
        tier._objects.notes.flush_all()
        wait_until(lambda: not objects_in(store), WAIT_S, "it is deleted as it comes")
        assert directory.longest(PROMPT) == 0


def test_object_of_before_that_only_the_order_names_is_flushed_when_it_is_told_of(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker's, which has not heard of the order: for a while each worker looks at what comes."""
    monkeypatch.setattr(directory_module, "REFRESH_S", 0.05)
    with directory_of(store) as directory, opened(store) as tier:
        assert tier.write(PROMPT, rows_of(PROMPT), RunFacts(0, 1))
        assert tier.wait_written(WAIT_S)
        flush(directory, PROMPT)
        tier._objects.notes.flush_all()
        wait_until(lambda: not objects_in(store), WAIT_S, "it is deleted as it comes")
        assert directory.longest(PROMPT) == 0


@pytest.mark.parametrize("everything", [True, False])
def test_what_is_computed_after_a_flush_is_found_again(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, everything: bool
) -> None:
    monkeypatch.setattr(directory_module, "REFRESH_S", 0.05)
    write_all(store, PROMPT)
    with directory_of(store) as directory:
        flush(directory, None if everything else PROMPT, under_way=PROMPT)
        write_all(store, PROMPT)
        wait_until(lambda: directory.longest(PROMPT) == 8, WAIT_S, "it is found")
    with opened(store) as tier:
        assert right(tier, PROMPT) == 8


def test_object_that_could_not_be_deleted_never_stands_for_what_is_computed_later(store: FileStore) -> None:
    """Its bytes are those of before the flush; whoever computes the blocks again writes them again."""
    write_all(store, PROMPT)
    stuck = Away(store._folder, "delete")
    with directory_of(stuck) as directory:
        stuck.away = True
        assert flush(directory, PROMPT).error == "delete (unreachable); it is tried again for an hour"
        assert directory.longest(PROMPT) == 0
    before = objects_in(store)
    assert before
    for name in before:
        os.utime(store._folder / name, (1.0, 1.0))
    recorder = Recorder()
    with opened(store, recorder=recorder) as tier:
        assert tier.longest(PROMPT) == 0
        assert tier.write(PROMPT, rows_of(PROMPT), RunFacts(0, 1))
    assert recorder.drain()["gc_object_writes_total"] == {"written": 1}
    assert all((store._folder / name).stat().st_mtime > 1.0 for name in before)
    with opened(store) as tier:
        assert right(tier, PROMPT) == 8


@pytest.mark.parametrize("failing", ["walk", "create", "delete"])
def test_store_that_is_away_is_said_and_tried_again(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Nothing is found meanwhile; when it is there, the files go, and all hear of it."""
    monkeypatch.setattr(directory_module, "REFRESH_S", 0.05)
    write_all(store, PROMPT)
    away = Away(store._folder, failing)
    ends: list[ObjectsFlushed] = []
    with directory_of(away) as directory:
        away.away = True
        directory.flush(FlushWanted(b"o" * 16, lambda _: set(PROMPT), frozenset(), ends.append))
        wait_until(lambda: bool(ends), WAIT_S, "it is said")
        assert ends[0].error is not None
        assert failing in ends[0].error or "listing" in ends[0].error
        assert directory.longest(PROMPT) == 0
        away.away = False
        wait_until(lambda: len(ends) > 1, WAIT_S, "it is done")
    assert ends[1:] == [ObjectsFlushed(8, ends[1].bytes)]
    assert not objects_in(store)
    with directory_of(store) as later:
        assert later.longest(PROMPT) == 0


def test_claim_that_seems_to_have_failed_is_ones_own_all_the_same(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has taken it, and its answer was lost."""
    write_all(store, PROMPT)
    lost = [True]

    class Losing(FileStore):
        def create(self, name: str, data: memoryview) -> bool:
            done = super().create(name, data)
            if "sweeps/flush" in name and lost:
                lost.clear()
                raise StoreError(StoreFault.TIMEOUT, name)
            return done

    ends: list[ObjectsFlushed] = []
    with directory_of(Losing(store._folder)) as directory:
        directory.flush(FlushWanted(b"o" * 16, lambda _: set(PROMPT), frozenset(), ends.append))
        wait_until(lambda: len(ends) > 1, WAIT_S, "it is done")
    assert ends[1].blocks == 8
    assert not objects_in(store)


def test_order_that_cannot_be_carried_out_is_given_up_after_an_hour(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded; what is hidden stays so."""
    monkeypatch.setattr(flushes_module, "RETRY_S", 0.0)
    write_all(store, PROMPT)
    stuck = Away(store._folder, "delete")
    with directory_of(stuck) as directory:
        stuck.away = True
        assert flush(directory, PROMPT).error is not None
        wait_until(lambda: not directory._flushes._flushes, WAIT_S, "it is given up")
        assert directory.longest(PROMPT) == 0


def test_rank_reads_no_object_older_than_its_scheduler_knows(store: FileStore) -> None:
    """It may not have heard of the flush: of two objects with a block, the older one is flushed."""
    write_all(store, PROMPT)
    with opened(store) as tier, directory_of(store) as directory:
        times = directory.times(PROMPT)
        assert len(times) == 8
        assert tier.read(PROMPT, buffers(8), _deadline(), written_at=times) == 8
        later = [at + 1.0 for at in times]
        assert tier.read(PROMPT, buffers(8), _deadline(), written_at=later) == 0
        assert tier.read(PROMPT, buffers(8), _deadline(), written_at=[*times[:3], *later[3:]]) == 3


def test_reset_hides_what_there_was_and_shows_what_is_written_again(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same blocks, computed anew: the object of before makes room, since it must not stand for them."""
    monkeypatch.setattr(directory_module, "REFRESH_S", 0.05)
    write_all(store, PROMPT)
    with directory_of(store) as directory, opened(store) as tier:
        directory.hide()
        assert directory.longest(PROMPT) == 0
        assert tier.write(PROMPT, rows_of(PROMPT), RunFacts(0, 1, since=directory.since))
        assert tier.wait_written(WAIT_S)
        tier._objects.notes.flush_all()
        wait_until(lambda: directory.longest(PROMPT) == 8, WAIT_S, "it is found")
        assert right(tier, PROMPT) == 8


def test_note_of_a_clock_that_is_ahead_is_hidden_by_a_reset(store: FileStore) -> None:
    with opened(store) as tier:
        tier._objects.wall = lambda: 4e9
        assert tier.write(PROMPT, rows_of(PROMPT), RunFacts(0, 1))
    with directory_of(store) as directory:
        directory.hide()
        assert directory.longest(PROMPT) == 0


def _deadline() -> float:
    return time.monotonic() + WAIT_S
