"""Bodies that are held take the memory that is counted for them, in pieces that a gateway takes."""

from __future__ import annotations

import sys

import pytest

from ghostcacher_router.epp.held_bodies import PIECE_BYTES_MAX, HeldBody, HeldBytes
from ghostcacher_router.http.protocol.request_reader import JOINED_BYTES_MAX
from ghostcacher_router.types import LongBody


def of_pieces(*sizes: int) -> tuple[HeldBody, HeldBytes, bytes]:
    held = HeldBytes(1 << 30)
    body, sent = HeldBody(held), b""
    for place, size in enumerate(sizes):
        piece = bytes([65 + place % 26]) * size
        body.add(piece)
        sent += piece
    return body, held, sent


@pytest.mark.parametrize(
    "sizes",
    [
        (),
        (0,),
        (5, 0, 7),
        (1,) * 5000,
        (PIECE_BYTES_MAX,) * 3,
        (16_384,) * 9,
        (10, PIECE_BYTES_MAX, 10, PIECE_BYTES_MAX // 2 + 1, 40_000, 30_000),
    ],
)
def test_body_is_passed_on_as_it_came_in_pieces_that_a_gateway_takes(sizes: tuple[int, ...]) -> None:
    body, held, sent = of_pieces(*sizes)
    pieces = body.pieces()
    assert b"".join(pieces) == sent == body.whole()
    assert all(0 < len(piece) <= PIECE_BYTES_MAX for piece in pieces)
    assert body.size == held.size == len(sent)
    body.release()
    body.release()
    assert (body.size, held.size, body.pieces()) == (0, 0, [])
    assert b"".join(pieces) == sent, "whoever took it keeps it"


def test_pieces_of_a_byte_take_a_byte_each() -> None:
    """And not the forty or more of an object, which nobody counts."""
    body, held, _ = of_pieces(*(1,) * 200_000)
    pieces = body.pieces()
    assert held.size == 200_000
    assert sum(map(sys.getsizeof, pieces)) < 1.01 * held.size


def test_long_body_is_not_joined() -> None:
    """Joining it would hold up the event loop."""
    body, _, sent = of_pieces(*(PIECE_BYTES_MAX,) * (JOINED_BYTES_MAX // PIECE_BYTES_MAX + 1))
    whole = body.whole()
    assert isinstance(whole, LongBody)
    assert whole.join() == sent


def test_bodies_together_are_bounded() -> None:
    held = HeldBytes(10)
    bodies = [HeldBody(held), HeldBody(held)]
    bodies[0].add(b"12345")
    bodies[1].add(b"12345")
    assert not held.too_many
    bodies[1].add(b"6")
    assert held.too_many
    bodies[0].release()
    assert not held.too_many
