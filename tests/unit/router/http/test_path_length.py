"""The way of one request through the router, in lines and calls of its code: it must not grow unnoticed.

A bound is lowered with each change that makes the way shorter, and raised only on purpose, with the reason in the
change's message. `python -m tests.support.path_length` prints today's steps by file. What a request costs in time says
benchmarks/router_proxy.py.
"""

from __future__ import annotations

import pytest

from ghostcacher_router.prompt import parse
from ghostcacher_router.prompt.known_chats import KnownChats
from ghostcacher_simulator.virtual_time import virtual
from tests.support.path_length import PLAIN, STREAM, Steps, steps_of_request

pytestmark = pytest.mark.interpreted

KIB = 1 << 10
INDEXED = {
    2 * KIB: Steps(placement=1_270, parsing=255, forwarding=460),
    32 * KIB: Steps(placement=1_485, parsing=302, forwarding=470),
    256 * KIB: Steps(placement=1_706, parsing=498, forwarding=468),
}
"""With an index and engines that report, of a prompt whose first seven parts in eight are known."""
PLAIN_ENGINES = {
    2 * KIB: Steps(placement=1_082, parsing=255, forwarding=450),
    32 * KIB: Steps(placement=1_872, parsing=302, forwarding=450),
    256 * KIB: Steps(placement=1_986, parsing=498, forwarding=450),
}
"""With engines of which nothing is known but what they were sent."""
STREAMED = Steps(placement=1_285, parsing=255, forwarding=730)
"""With an index, 2 KiB, for an answer of six pieces."""
BOUNDS = [
    *[(size, PLAIN, False, bound) for size, bound in INDEXED.items()],
    *[(size, PLAIN, True, bound) for size, bound in PLAIN_ENGINES.items()],
    (2 * KIB, STREAM, False, STREAMED),
]


@pytest.mark.parametrize(("size", "answer", "plain_engines", "bound"), BOUNDS)
def test_way_of_a_request_is_no_longer_than_it_was(
    size: int, answer: tuple[bytes, ...], plain_engines: bool, bound: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part of it stays within its bound, and none of them is left out."""
    monkeypatch.setattr(parse, "_known_chats", KnownChats())
    found: list[Steps] = []

    @virtual
    async def count() -> None:
        found.append(await steps_of_request(size, answer, plain_engines=plain_engines))

    count()
    (steps,) = found
    assert all(within <= most for within, most in zip(steps, bound, strict=True)), f"{steps}: at most {bound}"
    assert all(within > 100 for within in steps), steps
