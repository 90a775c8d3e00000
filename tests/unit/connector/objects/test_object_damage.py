"""Whatever happens to the bytes of an object: nothing wrong is handed out, and what is damaged goes out of the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects import object_format
from ghostcacher_connector.objects.object_format import (
    CHECKSUM_BYTES,
    Codec,
    Damage,
    Identity,
    header_bytes,
    namespace_digest,
    read_header,
    write_header,
)
from ghostcacher_connector.objects.object_notes import RunFacts
from ghostcacher_connector.objects.stores.base import StoreError, StoreFault
from ghostcacher_connector.objects.stores.file_store import FileStore
from tests.support.object_tiers import chain, opened, right, rows_of

BLOCKS = 4
BLOCK_BYTES = 4096
PROMPT = chain(BLOCKS)
HEADER = header_bytes(BLOCKS, 32)
ENTRY = 32 + 8 + 16
KIND = {"block_bytes": BLOCK_BYTES}

BYTES = {
    "magic": 0,
    "version": 8,
    "codec": 10,
    "header bytes": 12,
    "rank": 16,
    "block count": 20,
    "hash bytes": 24,
    "section": 28,
    "block bytes": 32,
    "spare": 40,
    "namespace": 64,
    "first hash": 96,
    "last hash": 96 + (BLOCKS - 1) * ENTRY,
    "stored bytes": 96 + 32,
    "checksum of a block": 96 + 40,
    "padding": 96 + BLOCKS * ENTRY,
    "checksum of the header": HEADER - CHECKSUM_BYTES,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with one object, of four blocks."""
    write_small(FileStore(tmp_path))
    return tmp_path


def write_small(store: FileStore) -> None:
    with opened(store, **KIND) as tier:  # type: ignore[arg-type]
        assert tier.write(PROMPT, rows_of(PROMPT, BLOCK_BYTES), RunFacts(0, 1))


def object_in(folder: Path) -> Path:
    (path,) = (one for one in (folder / "v1/objects").rglob("*") if one.is_file())
    return path


def changed(path: Path, offset: int, flip: int = 0x01) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= flip
    path.write_bytes(data)


def check_put_aside(folder: Path, reason: str, right_blocks: int) -> None:
    """A reader gets the blocks before the damage, counts the rest as misses, and makes room for another try."""
    recorder = Recorder()
    path = object_in(folder)
    damaged = path.read_bytes()
    with opened(FileStore(folder), recorder=recorder, **KIND) as tier:  # type: ignore[arg-type]
        assert right(tier, PROMPT, BLOCK_BYTES) == right_blocks
        assert tier.longest(PROMPT) == 0
        delta = recorder.drain()
        assert delta["gc_object_misses_total"] == {reason: BLOCKS - right_blocks}
        assert delta["gc_object_quarantined_total"] == {reason: 1}
        assert not path.exists()
        (aside,) = (folder / "v1/quarantine").iterdir()
        assert aside.read_bytes() == damaged
        assert tier.write(PROMPT, rows_of(PROMPT, BLOCK_BYTES), RunFacts(0, 1))
    with opened(FileStore(folder), **KIND) as tier:  # type: ignore[arg-type]
        assert right(tier, PROMPT, BLOCK_BYTES) == BLOCKS


@pytest.mark.parametrize("kind", BYTES)
def test_a_flipped_byte_of_the_header_makes_all_a_miss(folder: Path, kind: str) -> None:
    changed(object_in(folder), BYTES[kind])
    check_put_aside(folder, "foreign" if kind == "magic" else "damaged", 0)


@pytest.mark.parametrize("block", range(BLOCKS))
@pytest.mark.parametrize("at", [0, BLOCK_BYTES // 2, BLOCK_BYTES - 1])
def test_a_flipped_byte_of_a_block_makes_it_and_what_follows_a_miss(folder: Path, block: int, at: int) -> None:
    changed(object_in(folder), HEADER + block * BLOCK_BYTES + at, 0x80)
    check_put_aside(folder, "damaged", block)


@pytest.mark.parametrize(
    ("size", "right_blocks"),
    [(0, 0), (4, 0), (80, 0), (HEADER - 1, 0), (HEADER, 0), (HEADER + 1, 0), (HEADER + BLOCK_BYTES, 1),
     (HEADER + 3 * BLOCK_BYTES + 5, 3), (HEADER + 4 * BLOCK_BYTES - 1, 3)],
)  # fmt: skip
def test_a_truncated_object_gives_what_is_whole(folder: Path, size: int, right_blocks: int) -> None:
    path = object_in(folder)
    path.write_bytes(path.read_bytes()[:size])
    check_put_aside(folder, "truncated", right_blocks)


def test_bytes_behind_the_last_block_are_not_looked_at(folder: Path) -> None:
    path = object_in(folder)
    path.write_bytes(path.read_bytes() + b"more")
    with opened(FileStore(folder), **KIND) as tier:  # type: ignore[arg-type]
        assert right(tier, PROMPT, BLOCK_BYTES) == BLOCKS


@pytest.mark.parametrize(
    ("identity", "hashes"),
    [
        (Identity(namespace_digest(b"other weights"), 0, BLOCK_BYTES), PROMPT),
        (Identity(namespace_digest(b"model, weights and layout"), 1, BLOCK_BYTES), PROMPT),
        (Identity(namespace_digest(b"model, weights and layout"), 0, 2 * BLOCK_BYTES), PROMPT),
        (Identity(namespace_digest(b"model, weights and layout"), 0, BLOCK_BYTES), chain(BLOCKS, "other")),
        (Identity(namespace_digest(b"model, weights and layout"), 0, BLOCK_BYTES), PROMPT[::-1]),
    ],
    ids=["namespace", "rank", "block size", "hashes", "order"],
)
def test_a_whole_object_that_stands_under_the_wrong_name_is_foreign(
    folder: Path, identity: Identity, hashes: list[bytes]
) -> None:
    """Every checksum in it is right: it is what it says, and not what was asked for."""
    rows = [bytes(one) for one in rows_of(hashes, BLOCK_BYTES)]
    data = memoryview(bytearray(HEADER) + b"".join(rows))
    sums = [object_format.checksum_of(memoryview(row)) for row in rows]
    write_header(data, identity, hashes, sums, [identity.block_bytes] * BLOCKS, codec=Codec.PLAIN, section=1)
    object_in(folder).write_bytes(data)
    check_put_aside(folder, "foreign", 0)


def test_blocks_that_were_exchanged_are_damage(folder: Path) -> None:
    path = object_in(folder)
    data = path.read_bytes()
    first, second = data[HEADER : HEADER + BLOCK_BYTES], data[HEADER + BLOCK_BYTES : HEADER + 2 * BLOCK_BYTES]
    path.write_bytes(data[:HEADER] + second + first + data[HEADER + 2 * BLOCK_BYTES :])
    check_put_aside(folder, "damaged", 0)


def test_what_cannot_be_moved_away_is_left_alone(folder: Path) -> None:
    """A store that is read-only: the object is read once, and not again and again."""

    class ReadOnly(FileStore):
        reads = 0

        def move(self, name: str, to: str) -> None:
            raise StoreError(StoreFault.REFUSED, f"{name} cannot become {to}: read-only")

        def read(self, name: str, size_bytes: int) -> memoryview:
            ReadOnly.reads += name.startswith("v1/objects")
            return super().read(name, size_bytes)

    changed(object_in(folder), HEADER)
    recorder = Recorder()
    with opened(ReadOnly(folder), recorder=recorder, **KIND) as tier:  # type: ignore[arg-type]
        assert right(tier, PROMPT, BLOCK_BYTES) == 0
        assert not tier.write(PROMPT, rows_of(PROMPT, BLOCK_BYTES), RunFacts(0, 1))
        assert right(tier, PROMPT, BLOCK_BYTES) == 0
    assert ReadOnly.reads == 1
    assert recorder.drain()["gc_object_writes_total"] == {"quarantined": 1}


def test_an_object_that_is_damaged_where_it_is_to_be_written_makes_room(folder: Path) -> None:
    """Its writer died between object and note, say, and the disk tore it: who writes it again sees that."""
    changed(object_in(folder), BYTES["namespace"])
    for path in (folder / "v1/notes").rglob("*"):
        if path.is_file():
            path.unlink()
    write_small(FileStore(folder))
    with opened(FileStore(folder), **KIND) as tier:  # type: ignore[arg-type]
        assert right(tier, PROMPT, BLOCK_BYTES) == BLOCKS


@given(offset=st.integers(0, HEADER - 1), flip=st.integers(1, 255))
def test_any_flipped_byte_of_a_header_is_seen(offset: int, flip: int) -> None:
    identity = Identity(namespace_digest(b"n"), 3, BLOCK_BYTES)
    data = bytearray(HEADER)
    write_header(
        memoryview(data), identity, PROMPT, [bytes(16)] * BLOCKS, [BLOCK_BYTES] * BLOCKS, codec=Codec.PLAIN, section=1
    )
    read_header(memoryview(data), identity, PROMPT)
    data[offset] ^= flip
    with pytest.raises(Damage):
        read_header(memoryview(data), identity, PROMPT)


@given(data=st.binary(max_size=HEADER + 16))
def test_any_bytes_are_no_header(data: bytes) -> None:
    with pytest.raises(Damage):
        read_header(memoryview(data), Identity(namespace_digest(b"n"), 3, BLOCK_BYTES), PROMPT)
