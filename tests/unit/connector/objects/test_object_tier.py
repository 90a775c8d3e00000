"""The object tier as its caller sees it, over files."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ghostcacher_connector.config import Settings
from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects import tier as tier_module
from ghostcacher_connector.objects.object_notes import RunFacts
from ghostcacher_connector.objects.stores.file_store import FileStore
from ghostcacher_connector.objects.tier_options import TierOptions
from tests.support.object_tiers import SMALL_QUEUE, buffers, chain, opened, right, row_of, rows_of, write_all


@pytest.fixture(autouse=True)
def nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker knows of others is what it has read when it began, however long a test takes."""
    monkeypatch.setattr(tier_module, "REFRESH_S", 3600.0)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "objects")


class Standing(FileStore):
    """Stands still before it writes an object, until it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.stands, self.goes = threading.Event(), threading.Event()

    def create(self, name: str, data: memoryview) -> bool:
        if name.startswith("v1/objects/"):
            self.stands.set()
            assert self.goes.wait(60)
        return super().create(name, data)


def test_what_was_written_is_found_by_whoever_opens_the_store_later(store: FileStore) -> None:
    """Nothing but the store carries it over: no Redis, no process."""
    prompt = chain(21)
    write_all(store, prompt)
    with opened(store) as tier:
        assert tier.longest([*prompt, b"\0" * 32]) == 21
        assert right(tier, prompt) == 21


def test_any_run_of_blocks_can_be_read_alone(store: FileStore) -> None:
    """A caller that has the first blocks in a faster tier asks for the rest, wherever objects begin and end."""
    prompt = chain(21)
    write_all(store, prompt)
    with opened(store) as tier:
        for first, end in ((0, 3), (5, 9), (8, 21), (20, 21)):
            assert right(tier, prompt[first:end]) == end - first


def test_a_gap_ends_what_is_found(store: FileStore) -> None:
    prompt = chain(16)
    with opened(store) as tier:
        assert tier.write(prompt[8:], rows_of(prompt[8:]), RunFacts(8, 2))
    with opened(store) as tier:
        assert tier.longest(prompt) == 0
        assert right(tier, prompt) == 0
        assert tier.longest(prompt[8:]) == 8


def test_blocks_are_written_once_whoever_writes_them(store: FileStore) -> None:
    """Prompts that share a prefix share its objects, also when two workers write at the same time."""
    prompt, other = chain(12), [*chain(8), *chain(4, "another end")]
    recorders = [Recorder(), Recorder()]
    with opened(store, recorder=recorders[0]) as first, opened(store, recorder=recorders[1]) as second:
        assert first.write(prompt, rows_of(prompt), RunFacts(0, 1))
        assert second.write(other, rows_of(other), RunFacts(0, 1))
    objects = [one.name for one in store.walk("v1/objects/", 100)]
    written = sum(one.drain()["gc_object_writes_total"].get("written", 0.0) for one in recorders)  # type: ignore[operator]
    assert len(objects) == written == 3
    with opened(store) as tier:
        assert (right(tier, prompt), right(tier, other)) == (12, 12)


def test_workers_that_begin_at_different_blocks_cut_alike(store: FileStore) -> None:
    """At fixed places of the prefix, so that equal blocks meet in equal objects."""
    prompt = chain(16)
    recorder = Recorder()
    with opened(store) as whole, opened(store, recorder=recorder) as later:
        assert whole.write(prompt, rows_of(prompt), RunFacts(0, 1))
        assert whole.wait_written(60)
        assert later.write(prompt[4:], rows_of(prompt[4:]), RunFacts(4, 1))
    assert recorder.drain()["gc_object_writes_total"] == {"written": 1, "existed": 1}


def test_another_namespace_rank_or_block_size_finds_nothing(store: FileStore) -> None:
    prompt = chain(4)
    write_all(store, prompt)
    for kind in ({"namespace": b"other weights"}, {"rank": 1}, {"block_bytes": 1 << 19}):
        with opened(store, **kind) as tier:  # type: ignore[arg-type]
            assert tier.longest(prompt) == 0
            assert tier.read(prompt, buffers(4, 1 << 19), time.monotonic() + 60) == 0


def test_the_settings_say_what_the_defaults_are() -> None:
    assert TierOptions.of(Settings()) == TierOptions()
    changed = Settings(object_ttl_h=0.5, object_max_gib=0.5, object_queue_mib=16, object_compression="never")
    assert TierOptions.of(changed) == TierOptions(1800.0, 1 << 29, 16 << 20, 10.0, "never")


def test_a_full_queue_drops_and_counts_and_does_not_wait(store: FileStore) -> None:
    """The store stands still: what does not fit into the queue is refused at once."""
    recorder = Recorder()
    prompt = chain(64)
    slow = Standing(store._folder)
    with opened(slow, recorder=recorder, options=SMALL_QUEUE._replace(queue_bytes=32 << 20)) as tier:
        assert not tier.write(prompt, rows_of(prompt), RunFacts(0, 1))
        assert slow.stands.wait(60)
        slow.goes.set()
    outcomes = recorder.drain()["gc_object_writes_total"]
    assert outcomes["queue_full"] == 1
    with opened(store) as tier:
        assert tier.longest(prompt) == right(tier, prompt) == 8 * outcomes["written"]  # type: ignore[operator]


def test_rows_that_changed_while_they_were_copied_are_thrown_away(store: FileStore) -> None:
    """The caller's seal is looked at behind the copy."""
    prompt = chain(3)
    with opened(store) as tier:
        assert not tier.write(prompt, rows_of(prompt), RunFacts(0, 1), still_valid=lambda: False)
        assert tier.write(prompt, rows_of(prompt), RunFacts(0, 1), still_valid=lambda: True)
    with opened(store) as tier:
        assert right(tier, prompt) == 3


def test_rows_are_the_callers_again_once_they_are_queued(store: FileStore) -> None:
    prompt = chain(3)
    rows = [memoryview(bytearray(row_of(one))) for one in prompt]
    with opened(store) as tier:
        assert tier.write(prompt, rows, RunFacts(0, 1))
        for row in rows:
            row[:] = bytes(len(row))
    with opened(store) as tier:
        assert right(tier, prompt) == 3


def test_a_read_that_outlives_its_deadline_lands_nowhere(store: FileStore) -> None:
    """The store hangs: its caller goes on at the deadline, and its memory is its own."""
    goes, done = threading.Event(), threading.Event()

    class Hanging(FileStore):
        def read(self, name: str, size_bytes: int) -> memoryview:
            if not name.startswith("v1/objects/"):
                return super().read(name, size_bytes)
            assert goes.wait(60)
            try:
                return super().read(name, size_bytes)
            finally:
                done.set()

    prompt = chain(4)
    write_all(store, prompt)
    recorder = Recorder()
    into = buffers(4)
    with opened(Hanging(store._folder), recorder=recorder) as tier:
        assert tier.read(prompt, into, time.monotonic() + 0.05) == 0
        goes.set()
        assert done.wait(60)
    assert [bytes(one) for one in into] == [bytes(one) for one in buffers(4)]
    assert recorder.drain()["gc_object_misses_total"] == {"deadline": 4}
