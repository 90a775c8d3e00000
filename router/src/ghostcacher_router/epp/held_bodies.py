"""Bodies of requests while they are held: few pieces of them, however many they came in, so that bytes say it all."""

from __future__ import annotations

from ghostcacher_router.http.protocol.request_reader import JOINED_BYTES_MAX
from ghostcacher_router.types import LongBody

PIECE_BYTES_MAX = 62_000
"""Of a body that is not passed on in the pieces in which it came: some gateways take no more than 64 KiB at once."""


class HeldBytes:
    """How many bytes of bodies all exchanges hold. size_max: of them together."""

    def __init__(self, size_max: int) -> None:
        self.size = 0
        self._size_max = size_max

    def __repr__(self) -> str:
        return f"HeldBytes({self.size} of {self._size_max})"

    @property
    def too_many(self) -> bool:
        return self.size > self._size_max


class HeldBody:
    """The body of one request, as far as it has come. size: in bytes.

    A piece of one byte would take forty times that, and an answer of its own. So small pieces are joined, up to what a
    gateway takes at once.
    """

    def __init__(self, held: HeldBytes) -> None:
        """held: counts it as long as it is held."""
        self._held = held
        self.size = 0
        self._pieces: list[bytes] = []
        self._joined = bytearray()
        """What came behind them, in pieces that are small."""

    def __repr__(self) -> str:
        return f"HeldBody({self.size} bytes, {len(self._pieces)} pieces and {len(self._joined)} bytes)"

    def add(self, piece: bytes) -> None:
        """Hold another piece."""
        self.size += len(piece)
        self._held.size += len(piece)
        if len(self._joined) + len(piece) > PIECE_BYTES_MAX:
            self._end_joined()
        if not self._joined and len(piece) > PIECE_BYTES_MAX // 2:
            self._pieces.append(piece)
        else:
            self._joined += piece

    def pieces(self) -> list[bytes]:
        """Return all of it, in pieces that may be passed on; the list is the caller's."""
        self._end_joined()
        return list(self._pieces)

    def whole(self) -> bytes | LongBody:
        """Return all of it as what is parsed."""
        pieces = self.pieces()
        return b"".join(pieces) if self.size <= JOINED_BYTES_MAX else LongBody(pieces)

    def release(self) -> None:
        """Hold it no more. Idempotent."""
        self._held.size -= self.size
        self.size = 0
        self._pieces.clear()
        self._joined.clear()

    def _end_joined(self) -> None:
        if self._joined:
            self._pieces.append(bytes(self._joined))
            self._joined.clear()
