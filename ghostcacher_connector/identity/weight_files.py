"""What of a weight file goes into the digest: samples of each tensor, to tell weights apart without reading all.

A safetensors file begins with a header that says where each tensor lies. The digest gets the header and, of each
tensor, pieces of its start, its middle and its end; small tensors are taken whole. Training, merging and quantising
move all elements of the tensors that they touch, so that one changed tensor is seen, whichever it is. What moves
nothing but a few elements in between, such as new rows for added tokens, is not.

Any other file, and one whose header cannot be read, has pieces taken evenly over its length.

Where a file is one of a Hugging Face cache, its name in there is the SHA-256 of its content, as the hub gave it. It
goes into the digest as well: it tells apart what samples cannot. It does not replace them, because nobody checks it
again, and a file that was changed in its place keeps it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec

PIECE_BYTES = 4 << 10
"""A page: to read less costs as much. Elements of 16 bit: 2,048."""
PIECE_BYTES_MIN = 256
PIECES = 3
"""Of a tensor: start, middle, end."""

SAMPLED_BYTES_MAX = 256 << 20
"""Of a model: a quarter of a second of hashing. With more than 20,000 tensors, as mixtures of experts have, pieces get
smaller instead; below `PIECE_BYTES_MIN`, the bound gives way.
"""

INDEX_SUFFIX = ".index.json"
WHOLE_BYTES_MAX = 1 << 20
"""Files up to this size are read whole, and so are indexes of any size."""
HEADER_BYTES_MAX = 100 << 20
"""The format's own limit."""
EVEN_PIECES = 8 << 10
"""Of all files of a model without a header that we know: of 40 GB, one for each 5 MB."""
EVEN_PIECES_MIN = 64
"""Of each such file."""
READERS = 16
"""Reads at the same time: what counts on a cold disk or a network file system."""
READS = 64
"""That one thread makes at a stretch: on a warm cache, to hand over each one costs more than the read."""

_BLOB = re.compile(r"[0-9a-f]{64}")
_PREFIX_BYTES = 8


class Range(NamedTuple):
    """Bytes ``[start, end)`` of a file."""

    start: int
    end: int


class WeightFile(NamedTuple):
    """What is known of a file before its samples are read."""

    path: Path
    size: int
    content: str
    """SHA-256 of its content if it is a Hugging Face cache's, or nothing."""
    head: int
    """Bytes at the front that are taken whole: the length of the header, with the header."""
    tensors: Sequence[Range]
    """In order; none where no header says where they are."""
    whole: bool
    """Whether all of it is read."""


class _Entry(msgspec.Struct):
    """What the header of a safetensors file says of one tensor."""

    data_offsets: tuple[int, int]


def inspect(path: Path) -> WeightFile:
    """Find out where the tensors of a file are. Raises OSError."""
    size = path.stat().st_size
    whole = size <= WHOLE_BYTES_MAX or path.name.endswith(INDEX_SUFFIX)
    head, tensors = _tensors(path, size) if not whole and path.suffix == ".safetensors" else (0, [])
    return WeightFile(path, size, _content(path), head, tensors, whole)


def samples_of(files: Sequence[WeightFile]) -> list[list[Range]]:
    """Return what is read of each file of one model: in order, and without overlaps."""
    tensors = sum(len(file.tensors) for file in files)
    fitting = SAMPLED_BYTES_MAX // max(1, PIECES * tensors)
    piece = max(PIECE_BYTES_MIN, min(PIECE_BYTES, fitting))
    headless = sum(not file.tensors and not file.whole for file in files)
    count = max(EVEN_PIECES_MIN, EVEN_PIECES // max(1, headless))
    return [_samples(file, piece, count) for file in files]


def read_all(path: Path, ranges: Sequence[Range]) -> Iterator[bytes]:
    """Yield the bytes of all ranges, in order, in portions. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # What lies between two samples is not wanted.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

        def read(parts: Sequence[Range]) -> bytes:
            return b"".join(os.pread(descriptor, part.end - part.start, part.start) for part in parts)

        stretches = [ranges[start : start + READS] for start in range(0, len(ranges), READS)]
        with ThreadPoolExecutor(READERS) as pool:
            for parts, data in zip(stretches, pool.map(read, stretches), strict=True):
                if len(data) != sum(part.end - part.start for part in parts):
                    raise OSError(errno.EIO, "a file that is cut short while it is read")
                yield data
    finally:
        os.close(descriptor)


def _samples(file: WeightFile, piece: int, count: int) -> list[Range]:
    """Return what is read of a file. piece: bytes of a tensor's pieces. count: pieces where no tensors are known."""
    if file.whole:
        return [Range(0, file.size)]
    if not file.tensors:
        return list(_spread(Range(0, file.size), count, PIECE_BYTES))
    return _joined([Range(0, file.head), *(part for tensor in file.tensors for part in _spread(tensor, PIECES, piece))])


def _tensors(path: Path, size: int) -> tuple[int, list[Range]]:
    """Return the length of the header, and where each tensor lies; nothing when this is no header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_PREFIX_BYTES), "little")
        if not 0 < length <= min(HEADER_BYTES_MAX, size - _PREFIX_BYTES):
            return 0, []
        header = file.read(length)
    base = _PREFIX_BYTES + length
    try:
        named = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries = [msgspec.json.decode(raw, type=_Entry) for name, raw in named.items() if name != "__metadata__"]
    except msgspec.MsgspecError:
        return 0, []
    found = sorted(Range(base + entry.data_offsets[0], base + entry.data_offsets[1]) for entry in entries)
    inside = all(base <= start <= end <= size for start, end in found)
    apart = all(one.end <= other.start for one, other in pairwise(found))
    return (base, found) if inside and apart else (0, [])


def _spread(whole: Range, count: int, piece: int) -> Iterator[Range]:
    """Yield pieces of a range: its start, its end, and evenly in between; or all of it when it is that small."""
    length = whole.end - whole.start
    if length <= count * piece:
        yield whole
        return
    for index in range(count):
        start = whole.start + (length - piece) * index // (count - 1)
        yield Range(start, start + piece)


def _joined(pieces: Sequence[Range]) -> list[Range]:
    """Join what touches, such as the end of one tensor and the start of the next: one read instead of two."""
    joined = [pieces[0]]
    for piece in pieces[1:]:
        if piece.start <= joined[-1].end:
            joined[-1] = Range(joined[-1].start, max(joined[-1].end, piece.end))
        else:
            joined.append(piece)
    return joined


def _content(path: Path) -> str:
    """Return the SHA-256 of a file's content where a Hugging Face cache names it so, or nothing.

    Such a cache holds ``models--ORG--NAME/snapshots/REVISION/FILE`` as a link to ``../../blobs/SHA256``. A name of 40
    digits is that of a small file that git holds itself. A link to a snapshot's folder is a place like any other:
    whoever has a copy of the files there shares with it.
    """
    if not path.is_symlink():
        return ""
    snapshot, blob = Path(os.path.abspath(path)).parent, path.resolve()
    cache = snapshot.parent.parent
    known = snapshot.parent.name == "snapshots" and blob.parent == (cache / "blobs").resolve()
    return blob.name if known and _BLOB.fullmatch(blob.name) else ""
