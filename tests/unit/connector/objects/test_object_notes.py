"""Notes, from which objects are found again: in any order, merged, damaged, or of somebody else."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.errors import ProtocolError
from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects import layout, note_log, object_notes
from ghostcacher_connector.objects.catalogue import Catalogue
from ghostcacher_connector.objects.note_log import MERGE_AT, MERGE_S, NoteLog
from ghostcacher_connector.objects.object_format import (
    BLOCKS_MAX,
    Identity,
    checksum_of,
    header_bytes,
    namespace_digest,
    object_digest,
)
from ghostcacher_connector.objects.object_notes import Note, Segment, batches, decode_segment, encode_segment, merged
from ghostcacher_connector.objects.stores.base import StoreError, StoreFault
from ghostcacher_connector.objects.stores.file_store import FileStore
from tests.support.object_tiers import chain, opened, right, write_all

IDENTITY = Identity(namespace_digest(b"notes"), 0, 4096)


def wrote(number: int, at: float, blocks: int = 2, identity: Identity = IDENTITY) -> Note:
    hashes = chain(blocks, f"note {number}")
    size = header_bytes(blocks, 32) + blocks * identity.block_bytes
    return Note("wrote", object_digest(identity, hashes), at, size, 1, 32, b"".join(hashes))


def dropped(number: int, at: float) -> Note:
    return Note("dropped", wrote(number, 0).digest, at)


def used(number: int, at: float) -> Note:
    return Note("used", wrote(number, 0).digest, at)


def known(catalogue: Catalogue) -> dict[bytes, float]:
    return {one.digest: one.used_at for one in catalogue.objects()}


def segment(*notes: Note, identity: Identity = IDENTITY) -> bytes:
    return encode_segment(Segment(identity.namespace, identity.rank, notes))


NOTES = st.builds(
    lambda make, number, at: make(number, float(at)),
    st.sampled_from([wrote, dropped, used]),
    st.integers(0, 2),
    st.integers(1, 9),
)


@given(notes=st.lists(NOTES, max_size=12), order=st.randoms(use_true_random=False))
def test_the_order_and_repetition_of_notes_make_no_difference(notes: list[Note], order: object) -> None:
    """As to which objects are there: the latest word on each counts."""
    shuffled = notes + notes[: len(notes) // 2]
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    for told in (notes, shuffled, merged(notes), merged([*merged(notes[:5]), *notes[5:]])):
        catalogue = Catalogue(IDENTITY)
        catalogue.apply(told)
        state: dict[bytes, tuple[float, bool]] = {}
        for note in notes:
            if note.what != "used":
                state[note.digest] = max(state.get(note.digest, (0.0, False)), (note.at, note.what == "dropped"))
        assert set(known(catalogue)) == {digest for digest, (_, gone) in state.items() if not gone}


@given(notes=st.lists(NOTES, max_size=30), blocks_max=st.integers(1, 6))
def test_a_catalogue_holds_no_more_than_it_may_and_is_one_with_itself(notes: list[Note], blocks_max: int) -> None:
    catalogue = Catalogue(IDENTITY, blocks_max=blocks_max)
    for note in notes:
        catalogue.apply((note,))
        objects = catalogue.objects()
        hashes = {block_hash for one in objects for block_hash in one.hashes}
        assert catalogue.block_count == len(hashes) <= blocks_max
        assert catalogue.object_count == len(objects)
        assert catalogue.stored_bytes == sum(one.stored_bytes for one in objects)
        for one in objects:
            assert catalogue.longest(one.hashes) == len(one.hashes)
            ((holder, first, length),) = catalogue.plan(one.hashes)
            assert (holder, first, length) == (one, 0, len(one.hashes))


@pytest.mark.parametrize(
    "note",
    [
        msgspec.structs.replace(wrote(1, 1.0), stored_bytes=1 << 62),
        msgspec.structs.replace(wrote(1, 1.0), stored_bytes=header_bytes(2, 32)),
        msgspec.structs.replace(wrote(1, 1.0), digest=bytes(20)),
        wrote(1, 1.0, identity=IDENTITY._replace(rank=1)),
        wrote(1, 1.0, identity=IDENTITY._replace(block_bytes=8192)),
    ],
    ids=["size too large", "size of a header", "other digest", "other rank", "other block size"],
)
def test_a_note_that_cannot_be_of_these_blocks_is_not_believed(note: Note) -> None:
    """Whatever is allocated to read an object follows from what its note says."""
    catalogue = Catalogue(IDENTITY)
    catalogue.apply((note,))
    assert (catalogue.object_count, catalogue.block_count) == (0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"hash_bytes": 0},
        {"hash_bytes": 65},
        {"hashes": b""},
        {"hashes": bytes(33)},
        {"hashes": bytes(32 * (BLOCKS_MAX + 1))},
        {"digest": bytes(19)},
        {"at": -1.0},
        {"at": 1e300},
        {"what": "created"},
        {"stored_bytes": "many"},
    ],
    ids=str,
)
def test_a_segment_with_a_note_of_the_wrong_shape_is_none(changes: dict[str, object]) -> None:
    fields = {name: getattr(wrote(1, 1.0), name) for name in Note.__struct_fields__} | changes
    body = msgspec.msgpack.encode([IDENTITY.namespace, IDENTITY.rank, [list(fields.values())]])
    data = object_notes.MAGIC + checksum_of(memoryview(body)) + body
    with pytest.raises(ProtocolError):
        decode_segment(memoryview(data), None, None)


@given(offset=st.integers(0, 10_000), flip=st.integers(1, 255), cut=st.integers(0, 10_000) | st.none())
def test_a_segment_with_a_flipped_or_missing_byte_is_none(offset: int, flip: int, cut: int | None) -> None:
    data = bytearray(segment(wrote(1, 1.0), used(2, 2.0)))
    data[offset % len(data)] ^= flip
    if cut is not None:
        data = bytearray(segment(wrote(1, 1.0)))[: cut % len(segment(wrote(1, 1.0)))]
    with pytest.raises(ProtocolError):
        decode_segment(memoryview(data), IDENTITY.namespace, IDENTITY.rank)


def test_a_segment_of_somebody_else_is_none() -> None:
    data = memoryview(segment(wrote(1, 1.0)))
    for other in (IDENTITY._replace(rank=1), IDENTITY._replace(namespace=bytes(32))):
        with pytest.raises(ProtocolError):
            decode_segment(data, other.namespace, other.rank)


def test_batches_fit_into_segments() -> None:
    """Also of the longest hashes in the fullest objects."""
    fat = Note("wrote", bytes(20), 1.0, 1 << 40, 4, 64, bytes(64 * BLOCKS_MAX))
    notes = [fat, used(1, 1.0)] * 1000
    cut = list(batches(notes))
    assert [note for batch in cut for note in batch] == notes
    assert len(cut) > 1
    assert all(len(segment(*batch)) < object_notes.SEGMENT_BYTES_MAX for batch in cut)
    assert list(batches([])) == []


class Logs:
    """Several workers' logs of one rank, over files."""

    def __init__(self, folder: Path) -> None:
        self.store = FileStore(folder)
        self.now = 1.8e9
        self.damaged = 0

    def log(self, store: FileStore | None = None) -> tuple[NoteLog, Catalogue]:
        catalogue = Catalogue(IDENTITY)
        log = NoteLog(store or self.store, IDENTITY, catalogue.apply, on_damage=self._on_damage, wall=lambda: self.now)
        return log, catalogue

    def segments(self) -> int:
        return len(list(self.store.walk(layout.NOTES, 10_000)))

    def _on_damage(self) -> None:
        self.damaged += 1


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


def test_many_segments_become_one_and_nothing_is_forgotten(logs: Logs) -> None:
    writer, _ = logs.log()
    for number in range(MERGE_AT + 5):
        writer.add(wrote(number, 1.0 + number))
        writer.flush()
    writer.add(dropped(3, 100.0))
    writer.flush()
    reader, catalogue = logs.log()
    reader.refresh()
    assert logs.segments() == 1
    assert catalogue.object_count == MERGE_AT + 4
    later, found = logs.log()
    later.refresh()
    assert known(found) == known(catalogue)


def test_a_merge_that_fails_halfway_loses_nothing(logs: Logs) -> None:
    """The disk is full, say: the segments that were to be replaced stay."""
    writer, _ = logs.log()
    for number in range(MERGE_AT):
        writer.add(wrote(number, 1.0 + number))
        writer.flush()

    class Full(FileStore):
        def create(self, name: str, data: memoryview) -> bool:
            if name.startswith(layout.NOTES):
                raise StoreError(StoreFault.FULL, name)
            return super().create(name, data)

    merging, catalogue = logs.log(Full(logs.store._folder))
    with pytest.raises(StoreError):
        merging.refresh()
    assert catalogue.object_count == MERGE_AT
    reader, found = logs.log()
    reader.refresh()
    assert known(found) == known(catalogue)


def test_one_worker_merges_in_a_stretch_of_time(logs: Logs) -> None:
    """All of them would write as many merged segments as there are workers, and merge those again."""
    writer, _ = logs.log()
    for _ in range(2):
        for number in range(MERGE_AT):
            writer.add(wrote(number, 1.0 + number))
            writer.flush()
        for _ in range(3):
            logs.log()[0].refresh()
    assert logs.segments() == MERGE_AT + 1
    logs.now += MERGE_S
    logs.log()[0].refresh()
    assert logs.segments() == 1


def test_a_segment_that_is_merged_away_while_it_is_read_is_no_error(logs: Logs) -> None:
    writer, _ = logs.log()
    writer.add(wrote(1, 1.0))
    writer.flush()

    class Late(FileStore):
        def read(self, name: str, size_bytes: int) -> memoryview:
            raise StoreError(StoreFault.MISSING, f"{size_bytes} bytes of {name}")

    reader, catalogue = logs.log(Late(logs.store._folder))
    assert reader.refresh()
    assert catalogue.object_count == 0


def test_a_damaged_or_huge_segment_is_put_aside_and_the_others_count(logs: Logs) -> None:
    writer, _ = logs.log()
    writer.add(wrote(1, 1.0))
    writer.flush()
    folder = layout.NOTES + layout.folder_of(IDENTITY)
    logs.store.create(folder + "damaged", memoryview(segment(wrote(2, 1.0)) + b"x"))
    logs.store.create(folder + "foreign", memoryview(segment(wrote(2, 1.0), identity=IDENTITY._replace(rank=9))))
    path = logs.store._folder / folder / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    reader, catalogue = logs.log()
    reader.refresh()
    assert list(known(catalogue)) == [wrote(1, 1.0).digest]
    assert (logs.damaged, logs.segments()) == (3, 1)
    assert len(list(logs.store.walk(layout.QUARANTINE, 10))) == 3


def test_notes_that_cannot_be_written_wait_and_the_oldest_are_given_up(
    logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(note_log, "PENDING_MAX", 4)
    full = [True]

    class Full(FileStore):
        def create(self, name: str, data: memoryview) -> bool:
            if full[0]:
                raise StoreError(StoreFault.FULL, name)
            return super().create(name, data)

    writer, _ = logs.log(Full(logs.store._folder))
    for number in range(6):
        writer.add(wrote(number, 1.0))
        with pytest.raises(StoreError):
            writer.flush()
    full[0] = False
    writer.flush()
    assert writer.pending_count == 0
    reader, catalogue = logs.log()
    reader.refresh()
    assert set(known(catalogue)) == {wrote(number, 1.0).digest for number in range(2, 6)}


def test_a_listing_that_takes_too_long_goes_on_later(logs: Logs) -> None:
    """The newest segments come first; nothing is read twice, and in the end all is known."""
    ticks = itertools.count(0, 15)
    writer, _ = logs.log()
    for number in range(6):
        logs.now += 1
        writer.add(wrote(number, 1.0))
        writer.flush()
    catalogue = Catalogue(IDENTITY)
    reader = NoteLog(logs.store, IDENTITY, catalogue.apply, on_damage=lambda: None, clock=lambda: float(next(ticks)))
    counts = []
    while not reader.refresh():
        counts.append(catalogue.object_count)
        assert wrote(5, 1.0).digest in known(catalogue)
    assert counts == sorted(set(counts))
    assert counts
    assert catalogue.object_count == 6


def test_workers_learn_from_each_other_while_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ghostcacher_connector.objects import tier as tier_module
    from tests.support.index_parts import wait_until

    monkeypatch.setattr(tier_module, "REFRESH_S", 0.02)
    store, prompt = FileStore(tmp_path), chain(8)
    with opened(store) as reader:
        write_all(store, prompt)
        wait_until(lambda: reader.longest(prompt) == 8, 60, "the other worker's notes are read")
        assert right(reader, prompt) == 8


def test_recorder_is_told_of_damaged_notes(tmp_path: Path) -> None:
    store, recorder = FileStore(tmp_path), Recorder()
    identity = Identity(namespace_digest(b"model, weights and layout"), 0, 1 << 20)
    store.create(f"{layout.NOTES}{layout.folder_of(identity)}x", memoryview(b"nothing"))
    with opened(store, recorder=recorder):
        pass
    assert recorder.drain()["gc_object_quarantined_total"] == {"notes": 1}
