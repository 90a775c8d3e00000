"""Notes of what happened to objects: what makes them found again by whoever comes later, without reading each one.

A worker writes its notes as *segments*: small objects that are never changed. Segments of all workers of one rank of
one namespace lie in one folder, and any worker may merge them. Notes carry times, and the latest one about an object
wins, so that order and repetition do not matter.

    magic, checksum of the rest, msgpack of a `Segment`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from ghostcacher_connector.core.errors import ProtocolError
from ghostcacher_connector.objects.object_format import (
    BLOCKS_MAX,
    CHECKSUM_BYTES,
    HASH_BYTES_MAX,
    NAME_BYTES,
    checksum_of,
    header_bytes,
)

MAGIC = b"GCKVSEG1"
SEGMENT_BYTES_MAX = 8 << 20
BATCH_BYTES = 4 << 20
"""Of the notes in one segment, about: a note takes less than `NOTE_BYTES` and its hashes."""
NOTE_BYTES = 80

AT_MAX = 1e12
"""No clock says so: what does is damaged."""


class Note(msgspec.Struct, frozen=True, array_like=True):
    """One thing that happened to one object."""

    what: Literal["wrote", "used", "dropped"]
    digest: bytes
    """Names the object."""

    at: float
    """When, by the clock of the worker that noted it, in seconds since 1970."""

    stored_bytes: int = 0
    """The object's size; of "wrote" only, as all that follows."""

    section: int = 0
    """The type of the part of the prompt that the blocks belong to."""

    hash_bytes: int = 0
    """The size of one block's hash."""

    hashes: bytes = b""
    """The hashes of the blocks in their order, one after the other."""

    def block_hashes(self) -> tuple[bytes, ...]:
        """Return the hashes of the object's blocks, in their order."""
        size = self.hash_bytes
        return tuple(self.hashes[at : at + size] for at in range(0, len(self.hashes), size))


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """Some notes about the objects of one rank of one namespace."""

    namespace: bytes
    rank: int
    notes: tuple[Note, ...]


_DECODER = msgspec.msgpack.Decoder(Segment)


def encode_segment(segment: Segment) -> bytes:
    """Return the bytes of a segment."""
    body = msgspec.msgpack.encode(segment)
    return MAGIC + checksum_of(memoryview(body)) + body


def decode_segment(data: memoryview, namespace: bytes | None, rank: int | None) -> Segment:
    """Return the segment in these bytes, its notes checked; raises ProtocolError.

    namespace, rank: whose it has to be; None: anybody's.
    """
    body = data[len(MAGIC) + CHECKSUM_BYTES :]
    if data[: len(MAGIC)] != MAGIC or data[len(MAGIC) : len(MAGIC) + CHECKSUM_BYTES] != checksum_of(body):
        raise ProtocolError("segment of notes: expected its magic and checksum, got others")
    try:
        segment = _DECODER.decode(body)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"segment of notes: {error}") from error
    if namespace is not None and (segment.namespace, segment.rank) != (namespace, rank):
        raise ProtocolError("segment of notes: it is of another namespace or rank")
    for note in segment.notes:
        _check(note)
    return segment


def batches(notes: Sequence[Note]) -> Iterator[tuple[Note, ...]]:
    """Yield the notes in order, cut into what fits into one segment each."""
    first = size = 0
    for index, note in enumerate(notes):
        note_bytes = NOTE_BYTES + len(note.hashes)
        if size + note_bytes > BATCH_BYTES and index > first:
            yield tuple(notes[first:index])
            first, size = index, 0
        size += note_bytes
    if first < len(notes):
        yield tuple(notes[first:])


def merged(notes: Iterable[Note]) -> list[Note]:
    """Return what is still worth knowing of these notes, the latest first."""
    state: dict[bytes, Note] = {}
    used: dict[bytes, Note] = {}
    for note in notes:
        latest = used if note.what == "used" else state
        other = latest.get(note.digest)
        # At the same time, what was dropped is the very object that was written then.
        if other is None or (other.at, other.what == "dropped") < (note.at, note.what == "dropped"):
            latest[note.digest] = note
    kept = [note for digest, note in used.items() if digest in state and state[digest].what == "wrote"]
    return sorted([*state.values(), *kept], key=lambda note: note.at, reverse=True)


def check_sizes(note: Note, block_bytes: int) -> bool:
    """Return whether an object of this many blocks of this size can have the size that its note says."""
    count = len(note.hashes) // note.hash_bytes
    head = header_bytes(count, note.hash_bytes)
    return head < note.stored_bytes <= head + count * block_bytes


def _check(note: Note) -> None:
    wrote = note.what == "wrote"
    hashes_fit = (
        1 <= note.hash_bytes <= HASH_BYTES_MAX
        and 1 <= len(note.hashes) <= BLOCKS_MAX * note.hash_bytes
        and len(note.hashes) % note.hash_bytes == 0
    )
    if len(note.digest) != NAME_BYTES or not 0 <= note.at < AT_MAX or (wrote and not hashes_fit):
        raise ProtocolError(f"segment of notes: a note {note.what!r} with sizes that do not fit")
