"""Age and size of everything in a store, enforced by whichever worker comes first, on a clock that the test turns."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects import layout
from ghostcacher_connector.objects.object_format import Identity, namespace_digest, object_digest
from ghostcacher_connector.objects.object_notes import Note, Segment, encode_segment
from ghostcacher_connector.objects.stores.file_store import FileStore
from ghostcacher_connector.objects.sweeper import KEPT_S, QUARANTINED_MAX, SWEEP_S, Sweeper, Swept
from tests.support.object_tiers import chain, opened, right, write_all

NOW = time.time()
"""What a sweep itself writes is of this time, by the file system's own clock."""
HOUR = 3600.0
OBJECT_BYTES = 100
SEEN = Identity(namespace_digest(b"seen"), 0, 4096)
OTHER = Identity(namespace_digest(b"another model"), 3, 8192)


class Shelf:
    """A store whose objects have the ages that a test gives them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FileStore(folder)
        self.recorder = Recorder()

    def put(self, name: str, age_s: float, data: bytes = bytes(OBJECT_BYTES)) -> str:
        assert self.store.create(name, memoryview(data))
        os.utime(self.folder / name, (NOW - age_s, NOW - age_s))
        return name

    def object(self, number: int, age_s: float, identity: Identity = SEEN) -> str:
        return self.put(layout.object_name(identity, digest(number, identity)), age_s)

    def used(self, number: int, age_s: float, identity: Identity = SEEN) -> str:
        note = Note("used", digest(number, identity), NOW - age_s)
        data = encode_segment(Segment(identity.namespace, identity.rank, (note,)))
        return self.put(f"{layout.NOTES}{layout.folder_of(identity)}{number}-{age_s:.0f}", age_s, data)

    def sweep(self, *, ttl_s: float = 1e8, bytes_max: int = 1 << 40) -> Swept:
        return Sweeper(self.store, self.recorder, ttl_s=ttl_s, bytes_max=bytes_max, wall=lambda: NOW).sweep()

    def names(self, prefix: str = layout.OBJECTS) -> set[str]:
        return {one.name for one in self.store.walk(prefix, 10_000)}


def digest(number: int, identity: Identity) -> bytes:
    return object_digest(identity, chain(1, str(number)))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_what_was_not_used_for_longer_than_its_time_goes(shelf: Shelf) -> None:
    """Of any namespace and rank: nobody else would ever delete what a model that is gone has left."""
    kept = {shelf.object(1, 1.9 * HOUR), shelf.object(2, 0), shelf.object(3, HOUR, OTHER)}
    shelf.object(4, 2.1 * HOUR)
    shelf.object(5, 9 * HOUR, OTHER)
    assert shelf.sweep(ttl_s=2 * HOUR) == Swept(3, 3 * OBJECT_BYTES, expired=2, evicted=0)
    assert shelf.names() == kept
    assert shelf.recorder.drain()["gc_object_deleted_total"] == {"expired": 2}


def test_a_use_that_anybody_noted_counts_as_young(shelf: Shelf) -> None:
    used = shelf.object(1, 9 * HOUR, OTHER)
    shelf.object(2, 9 * HOUR, OTHER)
    shelf.used(1, HOUR, OTHER)
    shelf.sweep(ttl_s=2 * HOUR)
    assert shelf.names() == {used}


def test_what_was_used_longest_ago_goes_until_the_rest_fits(shelf: Shelf) -> None:
    names = [shelf.object(number, number * HOUR, (SEEN, OTHER)[number % 2]) for number in range(10)]
    shelf.used(9, 0, OTHER)
    assert shelf.sweep(bytes_max=6 * OBJECT_BYTES + 1) == Swept(6, 6 * OBJECT_BYTES, expired=0, evicted=4)
    assert shelf.names() == {*names[:5], names[9]}
    assert shelf.recorder.drain()["gc_object_deleted_total"] == {"budget": 4}


@given(
    objects=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100) | st.none()), max_size=8),
    ttl_h=st.integers(1, 100),
    fitting=st.integers(0, 8),
)
def test_whatever_there_is_the_bounds_hold_after_a_sweep(
    objects: list[tuple[int, int | None]], ttl_h: int, fitting: int
) -> None:
    """What is kept is young enough, fits, and none of it was used before what was deleted for its size."""
    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(Path(folder))
        ages: dict[str, float] = {}
        for number, (written_h, used_h) in enumerate(objects):
            name = shelf.object(number, written_h * HOUR)
            ages[name] = written_h
            if used_h is not None:
                shelf.used(number, used_h * HOUR)
                ages[name] = min(written_h, used_h)
        swept = shelf.sweep(ttl_s=ttl_h * HOUR, bytes_max=fitting * OBJECT_BYTES)
        kept = shelf.names()
        fresh = {name for name, age_h in ages.items() if age_h <= ttl_h}
        assert kept <= fresh
        assert len(kept) == min(len(fresh), fitting) == swept.objects
        assert max((ages[name] for name in kept), default=0) <= min((ages[name] for name in fresh - kept), default=1e9)


def test_in_each_stretch_of_time_one_worker_sweeps(shelf: Shelf) -> None:
    shelf.object(1, 9 * HOUR)
    now = [NOW]
    workers = [Sweeper(shelf.store, Recorder(), ttl_s=HOUR, bytes_max=1, wall=lambda: now[0]) for _ in range(3)]
    assert [worker.sweep_if_due() is not None for worker in workers] == [True, False, False]
    now[0] += SWEEP_S
    assert [worker.sweep_if_due() is not None for worker in workers[::-1]] == [True, False, False]


def test_two_that_sweep_at_once_do_no_harm(shelf: Shelf) -> None:
    """The second one deletes what is gone already: both see the same store, and end with the same."""
    kept = shelf.object(1, 0)
    shelf.object(2, 9 * HOUR)

    class Behind(FileStore):
        def delete(self, names: object) -> None:
            shelf.sweep(ttl_s=HOUR)
            super().delete(names)  # type: ignore[arg-type]

    Sweeper(Behind(shelf.folder), Recorder(), ttl_s=HOUR, bytes_max=1 << 30, wall=lambda: NOW).sweep()
    assert shelf.names() == {kept}


def test_what_nobody_will_ask_for_is_tidied_away(shelf: Shelf) -> None:
    """Claims, notes of ranks without objects, and all but the latest of what was put aside."""
    shelf.object(1, 0)
    notes = {shelf.used(1, 2 * KEPT_S), shelf.used(2, 0.5 * KEPT_S, OTHER)}
    shelf.used(3, 2 * KEPT_S, OTHER)
    claims = {shelf.put(f"{layout.SWEEPS}sweep-2", 0.5 * KEPT_S)}
    shelf.put(f"{layout.SWEEPS}sweep-1", 2 * KEPT_S)
    aside = [shelf.put(f"{layout.QUARANTINE}{number:02}", number) for number in range(QUARANTINED_MAX + 3)]
    shelf.sweep()
    assert shelf.names(layout.NOTES) == notes
    assert shelf.names(layout.SWEEPS) == claims
    assert shelf.names(layout.QUARANTINE) == set(aside[:QUARANTINED_MAX])


def test_a_worker_whose_objects_were_swept_has_misses_and_no_more(shelf: Shelf) -> None:
    """It is told by nobody; the next one that opens the store is told by its first miss."""
    prompt = chain(8)
    write_all(shelf.store, prompt)
    with opened(shelf.store) as tier:
        assert right(tier, prompt) == 8
        Sweeper(shelf.store, Recorder(), ttl_s=1e9, bytes_max=0).sweep()
        assert right(tier, prompt) == 0
        assert tier.longest(prompt) == 0
    with opened(shelf.store) as tier:
        assert tier.longest(prompt) == 0
