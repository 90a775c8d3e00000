"""What a feed tells the processes of its router, and they tell it: SIZE, then in msgpack a Folded, or a Wish."""

from __future__ import annotations

from struct import Struct
from typing import Final

import msgspec

from ghostcacher_connector.core.coordination.base import Cursor, Flush, PromptChain

SIZE: Final = Struct("<I")
MESSAGE_BYTES_MAX: Final = 64 << 20


class MapPart(msgspec.Struct, frozen=True, array_like=True, tag="map"):
    """What some updates put into the prefix map: the last claim of each digest."""

    namespace: str
    entries: dict[bytes, bytes]
    """Packed claims, by digest."""
    bytes_per_token: float


class FoldedPrompt(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A prompt that a worker has received. Its chain stays packed: only who has sent the prompt needs it."""

    request: str
    tokens: int
    hashes: int
    """How many its chain has."""
    blocks: int
    """How many of its blocks the worker has received lately in other prompts."""
    is_computed: bool
    """Whether the worker has computed it, as the same message says."""
    sampled: tuple[bytes, ...]
    """Those of its hashes that a process has wished for."""
    chain: msgspec.Raw
    """A PromptChain in msgpack."""

    def unpacked(self) -> PromptChain:
        """Return the chain."""
        return _decode_chain(self.chain)


class FoldedEvents(msgspec.Struct, frozen=True, array_like=True):
    """What one worker published at one time: WorkerEvents, folded."""

    namespace: str
    worker: str
    incarnation: bytes
    prompts: tuple[FoldedPrompt, ...]
    computed: tuple[str, ...]


class Folded(msgspec.Struct, frozen=True, array_like=True):
    """What has come since the message before it."""

    events_at: str
    updates_at: str
    """The cursor up to which everything has been told, with this message."""
    map: tuple[MapPart | Flush, ...] = ()
    events: tuple[FoldedEvents, ...] = ()

    @property
    def cursor(self) -> Cursor:
        """Where to go on reading after it."""
        return Cursor(self.events_at, self.updates_at)


class Wish(msgspec.Struct, frozen=True, array_like=True):
    """What one process wants to be told."""

    hashes_below: bytes
    """Of each chain the hashes that are less."""


def has_reached(cursor: Cursor, other: Cursor) -> bool:
    """Say whether a cursor is not before another one in any stream."""
    return all(_order(at) >= _order(that) for at, that in zip(cursor, other, strict=True))


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number or 0)


_decode_chain = msgspec.msgpack.Decoder(PromptChain).decode
encode = msgspec.msgpack.Encoder().encode
decode_folded = msgspec.msgpack.Decoder(Folded).decode
decode_wish = msgspec.msgpack.Decoder(Wish).decode


def framed(message: msgspec.Struct) -> bytes:
    """Return a message as it is sent."""
    data = encode(message)
    return SIZE.pack(len(data)) + data
