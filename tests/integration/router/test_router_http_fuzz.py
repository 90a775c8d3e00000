"""The HTTP proxy under nonsense from both sides: nothing is left over or sent on malformed, good requests work."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter

import pytest

from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.types import Outcome
from tests.conftest import SOAK
from tests.integration.router.test_router_http import ANSWERS, GET, REQUESTS
from tests.integration.router.test_router_http_refusals import CHUNKED_POST, CHUNKS, OTHERS, SMUGGLED
from tests.integration.router.test_router_http_workers import BROKEN, NO_ANSWERS, SURPLUS
from tests.support.mock_engine import MockEngine, Peer, Received
from tests.support.proxy_rig import Rig, on_loop, post, proxy_rig

ROUNDS = 2000 if SOAK else 15
CLIENTS = 20
LIMITS = Limits(body_bytes_max=1 << 16, worker_silence_s=300.0)
TOKENS = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b": ",
    b";",
    b"0\r\n\r\n",
    b"HTTP/1.1",
    b"Transfer-Encoding: chunked\r\n",
    b"\xff",
)

_GOOD_REQUESTS = [*REQUESTS.values(), GET, post(b"x" * 300), GET.replace(b"GET", b"HEAD"), b"\r\n\r\n"]
_BAD_REQUESTS = [*SMUGGLED.values(), *(value for value, _ in OTHERS.values() if len(value) < 10_000)]
_BAD_REQUESTS += [CHUNKED_POST + chunk for chunk in CHUNKS.values()]
_GOOD_ANSWERS = list(ANSWERS.values())
_BAD_ANSWERS = [*BROKEN.values(), *NO_ANSWERS.values(), *SURPLUS.values()]

_SENT_ON = re.compile(
    rb"[A-Z-]+ /[!-~]* HTTP/1\.1\r\nHost: 127\.0\.0\.1:\d+\r\n"
    rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [\t -~\x80-\xff]*\r\n)*\r\n"
)


def mutated(random_: random.Random, data: bytes) -> bytes:
    """Return the data with a few bytes lost, doubled, changed or put in."""
    for _ in range(random_.choice((0, 0, 1, 1, 2, 5))):
        start = random_.randrange(len(data) + 1)
        end = start + random_.choice((0, 1, 1, 2, 8))
        kind = random_.randrange(4)
        if kind == 0:
            data = data[:start] + data[end:]
        elif kind == 1:
            data = data[:end] + data[start:]
        elif kind == 2:
            data = data[:start] + random_.randbytes(1) + data[start + 1 :]
        else:
            data = data[:start] + random_.choice(TOKENS) + data[start:]
    return data


def check_sent_on(request: Received) -> None:
    """Assert that a worker can read this request in one way only."""
    assert _SENT_ON.fullmatch(request.head), request.head
    names = Counter(line.partition(b":")[0].lower() for line in request.head.split(b"\r\n")[1:-2])
    assert names[b"host"] == names[b"x-request-id"] == 1, request.head
    assert names[b"content-length"] <= 1, request.head
    assert not names.keys() & {b"transfer-encoding", b"connection", b"expect", b"upgrade", b"te"}, request.head


def nonsense(random_: random.Random) -> MockEngine:
    """An engine that answers anything, in any pieces, or leaves."""

    async def script(peer: Peer, request: Received) -> None:
        check_sent_on(request)
        data = random_.choice(_GOOD_ANSWERS * 4 + _BAD_ANSWERS)
        data = mutated(random_, data) if random_.random() < 0.3 else data
        for piece in pieces(random_, data):
            peer.send(piece)
            await asyncio.sleep(0)
        if random_.random() < 0.3:
            random_.choice((peer.abort, peer.close))()

    return MockEngine(f"w{random_.randrange(1 << 30)}", script)


def pieces(random_: random.Random, data: bytes) -> list[bytes]:
    cuts = sorted(random_.randrange(len(data) + 1) for _ in range(random_.choice((0, 0, 1, 3, 20))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]


async def misbehave(rig: Rig, random_: random.Random) -> None:
    """One client that sends a few requests, good and bad, reads or not, and leaves in some way."""
    client = await rig.client()
    chosen = random_.choices(_GOOD_REQUESTS * 20 + _BAD_REQUESTS, k=random_.choice((1, 1, 2, 6)))
    data = b"".join(mutated(random_, one) if random_.random() < 0.3 else one for one in chosen)
    try:
        for piece in pieces(random_, data):
            client.send(piece)
            await asyncio.sleep(0)
        for _ in range(random_.choice((0, 5, 50))):
            await asyncio.sleep(0)
        if random_.random() < 0.6:
            # Reads to the end, which the proxy makes: after this request, or when time runs out.
            client.send(GET.replace(b"Host", b"Connection: close\r\nHost"))
            await client.rest()
    except (ConnectionError, RuntimeError):
        pass  # The proxy has closed already.
    client.abort()


async def hurry(rig: Rig) -> None:
    """Let time run, so that what waits for bytes that never come ends."""
    while True:
        await asyncio.sleep(0.03)
        rig.pass_time(LIMITS.client_body_s + 1)


async def check_well(rig: Rig) -> None:
    """Assert that nothing is held, and that the next good request works."""
    await rig.check_idle()
    rig.clients.clear()
    engines = rig.dispatcher.engines
    rig.dispatcher.engines = engines[-1:]
    assert (await rig.ask(post(b"still well?")))[1] == b"still well?"
    rig.dispatcher.engines = engines
    rig.placements.clear()
    rig.meter.answers.clear()


@pytest.mark.timeout(3600 if SOAK else 300)
@on_loop
async def test_nonsense_from_both_sides_leaves_nothing_over() -> None:
    """After each round no connection, request, placement or byte is held, and what was sent on was well-formed."""
    seed = random.randrange(1 << 32) if SOAK else 5
    print(f"seed {seed}")
    random_ = random.Random(seed)
    engines = [nonsense(random_), nonsense(random_), MockEngine("good")]
    async with proxy_rig(*engines, limits=LIMITS) as rig:
        done = 0
        for turn in range(ROUNDS):
            rig.dispatcher.engines[:2] = random_.sample(rig.dispatcher.engines[:2], 2)
            rig.dispatcher.slow = asyncio.Event() if turn % 3 == 2 else None
            if rig.dispatcher.slow is not None:
                asyncio.get_running_loop().call_later(0.01, rig.dispatcher.slow.set)
            hurrying = asyncio.ensure_future(hurry(rig))
            await asyncio.gather(*(misbehave(rig, random_) for _ in range(CLIENTS)))
            hurrying.cancel()
            done += sum(place.outcome is Outcome.DONE for place in rig.placements)
            rig.dispatcher.slow = None
            await check_well(rig)
            for engine in engines:
                engine.received.clear()
        assert done > ROUNDS, "hardly a good request among them"
