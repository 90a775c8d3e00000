"""The bytes of an object: a header that says what it is, then the rows of some consecutive blocks of one prefix.

    offset             bytes
    0                  64            magic, format version, codec, sizes and counts (`_HEAD`)
    64                 32            digest of the namespace
    96                 count * entry chain hash, stored bytes and checksum of each block
    header_bytes - 16  16            checksum of the whole header before it, padding included
    header_bytes                     the blocks, one after the other, as they are stored

All numbers are little-endian. A header is a multiple of `HEADER_ALIGN` bytes, so that rows which are one, too, can be
written past the page cache. A block's checksum is of its bytes as the engine has them (where blocks are rounded: as it
will have them), taken when they were written and compared when they lie where the engine will use them. The name of an
object is a digest of namespace, rank, sizes and hashes: equal names mean equal blocks.

Checksums find what was torn, flipped, cut or mixed up. They are no signature: whoever may write to the store can write
wrong KV, and must be trusted as the engines are.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import xxhash

MAGIC = b"GCKVOBJ\0"
VERSION = 1
HEADER_ALIGN = 4096
BLOCKS_MAX = 256
"""Of one object."""
HASH_BYTES_MAX = 64
NAMESPACE_BYTES = 32
CHECKSUM_BYTES = 16
NAME_BYTES = 20

_HEAD = struct.Struct("<8sHHIIIIIQ24x")
"""Magic, version, codec, header bytes, rank, blocks, bytes of a hash, section type, bytes of a block."""
_FIXED_BYTES = _HEAD.size + NAMESPACE_BYTES
_STORED_BYTES = struct.Struct("<Q")


class Codec(IntEnum):
    """How blocks are stored. The value is stored: never renumber."""

    PLAIN = 0
    ZSTD_SHUFFLED = 1
    """Bytes grouped by their place in an element of two bytes, then zstd, each block alone."""
    FP8 = 2
    """Rounded to 8 bits, see fp8.py: in namespaces that say so, and nowhere else."""


class Damage(Exception):
    """An object is not what its name says; `reason` is a label value of metrics."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


TRUNCATED = "truncated"
FOREIGN = "foreign"
"""Its header is whole and belongs to other blocks, another rank, another namespace or another format."""
DAMAGED = "damaged"


class Identity(NamedTuple):
    """Whose blocks an object holds: equal in all objects of one rank of one namespace."""

    namespace: bytes
    """A digest, `NAMESPACE_BYTES` bytes."""
    rank: int
    block_bytes: int
    """The bytes of one block in this rank's memory."""


class StoredBlock(NamedTuple):
    """Where a block's bytes are in an object."""

    offset: int
    stored_bytes: int
    checksum: bytes


class Header(NamedTuple):
    """What an object's header says, checked."""

    codec: Codec
    section: int
    blocks: tuple[StoredBlock, ...]


def namespace_digest(namespace: bytes) -> bytes:
    """Return what stands for a namespace in objects."""
    return hashlib.blake2b(namespace, digest_size=NAMESPACE_BYTES).digest()


def object_digest(identity: Identity, hashes: Sequence[bytes]) -> bytes:
    """Return the digest that names the object of these blocks."""
    digest = hashlib.blake2b(identity.namespace, digest_size=NAME_BYTES)
    digest.update(struct.pack("<IQII", identity.rank, identity.block_bytes, len(hashes), len(hashes[0])))
    for one in hashes:
        digest.update(one)
    return digest.digest()


def checksum_of(data: memoryview) -> bytes:
    """Return the checksum of some bytes."""
    return xxhash.xxh3_128_digest(data)


def header_bytes(count: int, hash_bytes: int) -> int:
    """Return the size of the header of `count` blocks."""
    needed = _FIXED_BYTES + count * _entry_bytes(hash_bytes) + CHECKSUM_BYTES
    return -(-needed // HEADER_ALIGN) * HEADER_ALIGN


def _entry_bytes(hash_bytes: int) -> int:
    return hash_bytes + _STORED_BYTES.size + CHECKSUM_BYTES


def write_header(
    into: memoryview,
    identity: Identity,
    hashes: Sequence[bytes],
    checksums: Sequence[bytes],
    stored_bytes: Sequence[int],
    *,
    codec: Codec,
    section: int,
) -> None:
    """Write the header of an object into the first `header_bytes` bytes of `into`."""
    hash_bytes = len(hashes[0])
    size = header_bytes(len(hashes), hash_bytes)
    head = _HEAD.pack(
        MAGIC, VERSION, codec, size, identity.rank, len(hashes), hash_bytes, section, identity.block_bytes
    )
    parts = [head, identity.namespace]
    for block_hash, stored, checksum in zip(hashes, stored_bytes, checksums, strict=True):
        parts += [block_hash, _STORED_BYTES.pack(stored), checksum]
    into[: size - CHECKSUM_BYTES] = b"".join(parts).ljust(size - CHECKSUM_BYTES, b"\0")
    into[size - CHECKSUM_BYTES : size] = checksum_of(into[: size - CHECKSUM_BYTES])


def read_header(data: memoryview, identity: Identity, hashes: Sequence[bytes]) -> Header:
    """Return the header at the beginning of an object, which has to be that of these blocks; raises Damage.

    Nothing in the header is believed, and nothing allocated by it, before its checksum and identity are right.
    """
    size = header_bytes(len(hashes), len(hashes[0]))
    if len(data) < size:
        raise Damage(TRUNCATED, f"expected a header of {size} bytes, got {len(data)}")
    if data[: len(MAGIC)] != MAGIC:
        raise Damage(FOREIGN, f"expected magic {MAGIC!r}, got {bytes(data[: len(MAGIC)])!r}")
    if data[size - CHECKSUM_BYTES : size] != checksum_of(data[: size - CHECKSUM_BYTES]):
        raise Damage(DAMAGED, "the header's checksum is another")
    head = _HEAD.unpack_from(data)
    expected = (MAGIC, VERSION, size, identity.rank, len(hashes), len(hashes[0]), identity.block_bytes)
    found = (*head[:2], *head[3:7], head[8])
    if found != expected or data[_HEAD.size : _FIXED_BYTES] != identity.namespace:
        raise Damage(FOREIGN, f"expected {expected} of this namespace, got {found}")
    try:
        codec = Codec(head[2])
    except ValueError as error:
        raise Damage(FOREIGN, f"codec {head[2]} is not known") from error
    return Header(codec, head[7], _stored_blocks(data, hashes, size, identity.block_bytes, codec))


def _stored_blocks(
    data: memoryview, hashes: Sequence[bytes], offset: int, block_bytes: int, codec: Codec
) -> tuple[StoredBlock, ...]:
    blocks = []
    hash_bytes = len(hashes[0])
    for index, expected in enumerate(hashes):
        at = _FIXED_BYTES + index * _entry_bytes(hash_bytes)
        if data[at : at + hash_bytes] != expected:
            raise Damage(FOREIGN, f"block {index} has another hash")
        (stored,) = _STORED_BYTES.unpack_from(data, at + hash_bytes)
        if stored > block_bytes or (codec is Codec.PLAIN and stored != block_bytes):
            raise Damage(FOREIGN, f"block {index}: expected {block_bytes} bytes at most, got {stored}")
        checksum = bytes(data[at + _entry_bytes(hash_bytes) - CHECKSUM_BYTES : at + _entry_bytes(hash_bytes)])
        blocks.append(StoredBlock(offset, stored, checksum))
        offset += stored
    return tuple(blocks)
