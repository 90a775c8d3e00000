"""A file of requests as sequences of KV blocks: read once, line by line, with a few bytes kept for each block.

A block is so many tokens of a prompt together with all before it, as in an engine: two prompts share a block only where
they are equal from their beginning to the end of the block. The end of a prompt that fills no block is shared with
nobody. Where a file holds block hashes, each stands for a block, also the last one.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from xxhash import xxh3_64_intdigest

from ghostcacher_cli.analyze.formats import ID_BYTES, BadLine, Kind, Request, kind_of, read_line
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import SectionType

LINE_BYTES_MAX = 64 << 20
"""The longest line that is read: the longest body that the router takes."""
BLOCKS_MAX = 1 << 28
"""Blocks of all requests together: 1 GiB of memory, and ids of them in 32 bits."""
BLOCK_TOKENS = {"text": 16, "ids": 16, "hashes": 512}
"""Tokens a block where nothing else is said: vLLM's on GPUs, and that of Mooncake's traces."""
SPACING_S = 1.0
"""Between two requests of a file that does not say when they came."""


class Trace(NamedTuple):
    """The requests of a file. A block is known by its number, from 0 in the order in which blocks are first seen."""

    kind: Kind
    """What the lines of the file are."""
    block_tokens: int
    """Tokens of a full block."""
    blocks: array[int]
    """The numbers of all requests' blocks, one request after the other."""
    starts: array[int]
    """Where in `blocks` each request begins, and the end; shape (requests + 1,)."""
    prompt_tokens: array[int]
    """Tokens of each request's prompt."""
    arrived_s: array[float]
    """When each request came, in s."""
    timed: bool
    """Whether the file says when requests came; if not, they are taken to come one a second."""
    offsets: array[int]
    """The place of each request's line in the file, in bytes."""
    tokens_of: array[int]
    """Tokens of each block, by its number."""
    depth_of: array[int]
    """How many blocks lie before each block in its prompt."""
    first_seen: array[int]
    """The request that brought each block first."""
    section_of: array[int]
    """The type of the section that each block lies in, a `SectionType`."""

    @property
    def requests(self) -> int:
        """Return how many requests there are."""
        return len(self.prompt_tokens)

    def blocks_of(self, request: int) -> array[int]:
        """Return the blocks of one request, in the order of its prompt."""
        return self.blocks[self.starts[request] : self.starts[request + 1]]


def read_trace(
    path: Path, block_tokens: int | None, bytes_per_token: float, tell: Callable[[int], object] = lambda _: None
) -> Trace:
    """Return what a file holds. Raises ConfigError for one that cannot be read, and BadLine for a line that is none.

    block_tokens: None for the usual ones. bytes_per_token: of text. tell: is told how many bytes have been read, now
    and then.
    """
    try:
        with path.open("rb") as file:
            return _read(file, block_tokens, bytes_per_token, tell)
    except OSError as exc:
        raise ConfigError(f"FILE: {path} cannot be read: {exc.strerror or exc}") from exc
    except BadLine as exc:
        raise BadLine(f"{path}, {exc}") from exc


def piece_bytes(block_tokens: int, bytes_per_token: float) -> int:
    """Return how many bytes of a prompt make a block."""
    return max(1, round(block_tokens * bytes_per_token))


def _read(file: BinaryIO, block_tokens: int | None, bytes_per_token: float, tell: Callable[[int], object]) -> Trace:
    builder: _Builder | None = None
    for number, offset, line in _lines(file):
        try:
            if builder is None:
                builder = _Builder(kind_of(line), block_tokens, bytes_per_token)
            builder.add(read_line(builder.kind, line), offset)
        except BadLine as exc:
            raise BadLine(f"line {number}: {exc}") from exc
        tell(offset + len(line))
    if builder is None:
        raise BadLine("line 1: expected a request in JSON, the file is empty")
    return builder.trace()


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Yield each line that is not blank, with its number from 1 and its place in bytes. Raises BadLine."""
    offset, number = 0, 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            raise BadLine(f"line {number}: expected at most {LINE_BYTES_MAX >> 20} MiB, it is longer")
        if not line.isspace():
            yield number, offset, line
        offset += len(line)


class _Builder:
    """Makes a trace of requests, one after the other."""

    def __init__(self, kind: Kind, block_tokens: int | None, bytes_per_token: float) -> None:
        self.kind = kind
        self._block_tokens = block_tokens or BLOCK_TOKENS[kind.unit]
        self._bytes_per_token = bytes_per_token if kind.unit == "text" else ID_BYTES
        self._piece_bytes = piece_bytes(self._block_tokens, self._bytes_per_token)
        self._numbers: dict[int, int] = {}
        self._blocks = array("I")
        self._starts = array("Q", [0])
        self._prompt_tokens = array("Q")
        self._arrived_s = array("d")
        self._offsets = array("Q")
        self._tokens_of = array("I")
        self._depth_of = array("I")
        self._first_seen = array("I")
        self._section_of = array("B")
        self._timed = False

    def add(self, request: Request, offset: int) -> None:
        """Add the request whose line begins at an offset. Raises BadLine."""
        self._note_time(request.arrived_s)
        if isinstance(request.data, bytes):
            tokens = request.tokens
            if tokens is None:
                tokens = round(len(request.data) / self._bytes_per_token)
            self._add_pieces(request, self._pieces(request.data))
        else:
            tokens = self._hashed_tokens(request)
            self._add_pieces(request, (str(each).encode() for each in request.data), tokens)
        self._prompt_tokens.append(tokens)
        self._offsets.append(offset)
        self._starts.append(len(self._blocks))
        if len(self._blocks) > BLOCKS_MAX:
            raise BadLine(f"expected at most {BLOCKS_MAX:,} blocks in a file: give larger ones (--block-size)")

    def trace(self) -> Trace:
        """Return all that was added."""
        return Trace(
            self.kind,
            self._block_tokens,
            self._blocks,
            self._starts,
            self._prompt_tokens,
            self._arrived_s,
            self._timed,
            self._offsets,
            self._tokens_of,
            self._depth_of,
            self._first_seen,
            self._section_of,
        )

    def _note_time(self, arrived_s: float | None) -> None:
        requests = len(self._arrived_s)
        if requests == 0:
            self._timed = arrived_s is not None
        if self._timed and arrived_s is None:
            raise BadLine("timestamp: expected a number of milliseconds, as in the first line, got none")
        if arrived_s is None or not self._timed:
            arrived_s = requests * SPACING_S
        elif requests and arrived_s < self._arrived_s[-1]:
            raise BadLine(
                f"timestamp: expected no less than in the line before, {self._arrived_s[-1] * 1e3:.0f}, "
                f"got {arrived_s * 1e3:.0f}"
            )
        self._arrived_s.append(arrived_s)

    def _pieces(self, data: bytes) -> Iterator[memoryview]:
        """Yield the bytes of each full block."""
        size = self._piece_bytes
        view = memoryview(data)
        return (view[start : start + size] for start in range(0, len(data) - size + 1, size))

    def _hashed_tokens(self, request: Request) -> int:
        """Return the tokens of a prompt that is given as block hashes. Raises BadLine where they do not fit."""
        count, each = len(request.data), self._block_tokens
        if request.tokens is None:
            return count * each
        if not (count - 1) * each < request.tokens <= count * each:
            expected = f"{max(0, (count - 1) * each + 1)} to {count * each}"
            raise BadLine(
                f"input_length: expected {expected} for {count} hash_ids of {each} tokens each (--block-size), "
                f"got {request.tokens}"
            )
        return request.tokens

    def _add_pieces(self, request: Request, pieces: Iterable[bytes | memoryview], tokens: int | None = None) -> None:
        """Add a request's blocks. tokens: of all of them, where the last one may be shorter."""
        numbers, blocks = self._numbers, self._blocks
        key = xxh3_64_intdigest(request.preamble)
        for depth, piece in enumerate(pieces):
            # The key of a block covers all before it: it is the seed of the next one's.
            key = xxh3_64_intdigest(piece, key)
            number = numbers.get(key)
            if number is None:
                number = numbers[key] = len(self._tokens_of)
                each = self._block_tokens
                self._tokens_of.append(each if tokens is None else min(each, tokens - depth * each))
                self._depth_of.append(depth)
                self._first_seen.append(len(self._prompt_tokens))
                self._section_of.append(self._section_at(request, depth))
            blocks.append(number)

    def _section_at(self, request: Request, depth: int) -> SectionType:
        """Return the type of the section in which a block ends; SESSION where nothing tells."""
        end = (depth + 1) * self._piece_bytes
        for section, section_end in request.sections:
            if end <= section_end:
                return section
        return SectionType.SESSION
