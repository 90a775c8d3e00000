"""Notes of what happened to objects: what makes them found again by whoever comes later, without reading each one.

A worker writes its notes as *segments*: small objects that are never changed. Segments of all workers of one rank of
one namespace lie in one folder, and any worker may merge them. Notes carry times, and the latest one about an object
wins, so that order and repetition do not matter.

    magic, checksum of the rest, msgpack of a `Segment`
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

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
NOTE_BYTES = 160

FLUSHES = frozenset({"flushed", "cleared"})
"""Notes of objects that need not be known yet."""

FLUSH_KEPT_S = 86_400.0
"""For how long these are kept: what is written late is late by the time that a queue takes, or a store that is away."""

FLUSHED_MAX = 1 << 16
"""Of so many blocks it is remembered when they were flushed. Beyond, all that is older counts as flushed."""

AT_MAX = 1e12
"""No clock says so: what does is damaged."""


class Note(msgspec.Struct, frozen=True, array_like=True):
    """One thing that happened to one object; "flushed" and "cleared": to all objects that there were."""

    what: Literal["wrote", "used", "dropped", "flushed", "cleared"]
    digest: bytes
    """Names the object; of "flushed" and "cleared" the order to flush."""

    at: float
    """When, by the clock of the worker that noted it, in seconds since 1970. Of "wrote" when it was decided to write
    it: what was flushed between then and now is not to be found."""

    stored_bytes: int = 0
    """The object's size; of "wrote" only."""

    section: int = 0
    """The type of the part of the prompt that the blocks belong to; of "wrote" only."""

    hash_bytes: int = 0
    """The size of one block's hash; of "wrote" and "flushed"."""

    hashes: bytes = b""
    """The hashes of the blocks in their order, one after the other; of "flushed" those of which no object that was
    decided on by then is to be found."""

    parent: bytes = b""
    """The hash of the block before the first one; empty for the first of a chain. Of "wrote" only, as what follows."""

    session: bytes = b""
    """The tag of the session that the blocks belong to; empty for what sessions share, and when not known."""

    after_tools: bool = False
    """Whether the blocks are tools, or come after some."""

    def block_hashes(self) -> tuple[bytes, ...]:
        """Return the hashes of the object's blocks, in their order."""
        size = max(1, self.hash_bytes)  # of notes without any there are none
        return tuple(self.hashes[at : at + size] for at in range(0, len(self.hashes), size))


class RunFacts(NamedTuple):
    """What is known of consecutive blocks of one prefix, beside the blocks."""

    position: int
    """Of the first one in its prefix."""
    section: int
    """Their `SectionType`."""
    parent: bytes = b""
    session: bytes = b""
    after_tools: bool = False
    at: float | None = None
    """When it was decided to write them, as `Note.at`; None: now."""
    since: float = 0.0
    """What was written until then does not stand for them. In seconds since 1970, as `at`."""


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


def merged(notes: Iterable[Note], now: float = 0.0) -> list[Note]:
    """Return what is still worth knowing of these notes, the latest first. now: in seconds since 1970."""
    state: dict[bytes, Note] = {}
    used: dict[bytes, Note] = {}
    flushes: dict[bytes, Note] = {}
    flushed = FlushedBlocks()
    for note in notes:
        if note.what in FLUSHES:
            flushed.add(note)
        latest = flushes if note.what in FLUSHES else used if note.what == "used" else state
        other = latest.get(note.digest)
        # At the same time, what was dropped is the very object that was written then.
        if other is None or (other.at, other.what == "dropped") < (note.at, note.what == "dropped"):
            latest[note.digest] = note
    state = {digest: note for digest, note in state.items() if note.what != "wrote" or not flushed.covers(note)}
    kept = [note for digest, note in used.items() if digest in state and state[digest].what == "wrote"]
    kept += [note for note in flushes.values() if now - note.at < FLUSH_KEPT_S]
    return sorted([*state.values(), *kept], key=lambda note: note.at, reverse=True)


class FlushedBlocks:
    """Of which blocks no object is to be found that was decided on before some time. Not thread-safe."""

    def __init__(self) -> None:
        self.last_at = 0.0
        """When anything was flushed last."""
        self._all_at = 0.0
        self._at: OrderedDict[bytes, float] = OrderedDict()

    def add(self, note: Note) -> None:
        """Take in a note of `FLUSHES`."""
        self.last_at = max(self.last_at, note.at)
        if note.what == "cleared":
            self._all_at = max(self._all_at, note.at)
        for block in note.block_hashes():
            self._at[block] = max(note.at, self._at.pop(block, 0.0))
        while len(self._at) > FLUSHED_MAX:
            self._all_at = max(self._all_at, self._at.popitem(last=False)[1])

    def covers(self, note: Note) -> bool:
        """Return whether what a note says to have been written was flushed since that was decided on."""
        return note.at <= self._all_at or any(self._at.get(block, 0.0) >= note.at for block in note.block_hashes())


def check_sizes(note: Note, block_bytes: int) -> bool:
    """Return whether an object of this many blocks of this size can have the size that its note says."""
    count = len(note.hashes) // note.hash_bytes
    head = header_bytes(count, note.hash_bytes)
    return head < note.stored_bytes <= head + count * block_bytes


def _check(note: Note) -> None:
    wrote, size = note.what == "wrote", note.hash_bytes
    hashes_fit = 1 <= size <= HASH_BYTES_MAX and len(note.hashes) % size == 0 and len(note.hashes) <= BLOCKS_MAX * size
    hashes_fit = hashes_fit and len(note.parent) <= HASH_BYTES_MAX and len(note.session) <= HASH_BYTES_MAX
    needed = wrote or bool(note.hashes)
    if (
        len(note.digest) != NAME_BYTES
        or not 0 <= note.at < AT_MAX
        or (needed and not hashes_fit)
        or (wrote and not note.hashes)
    ):
        raise ProtocolError(f"segment of notes: a note {note.what!r} with sizes that do not fit")
