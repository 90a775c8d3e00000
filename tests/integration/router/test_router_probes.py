"""Probes over real sockets: whatever comes back, a probe ends and says what was wrong."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine
from typing import Any

import pytest

from ghostcacher_router.fleet.probes import HttpProber, ProbeFailed
from tests.support.mock_engine import MiniEngine, content


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 280))


CHUNKED = b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\n{"data":[\r\n2\r\n]}\r\n0\r\n\r\n'
UNFRAMED = b'HTTP/1.1 200 OK\r\n\r\n{"data":[]}'


@pytest.mark.parametrize("raw", [CHUNKED, UNFRAMED, content(b"", status=404)])
def test_every_framing_is_read(raw: bytes) -> None:
    """Chunked, or up to the end of the connection; a server without models serves none by name."""

    async def main() -> None:
        async with MiniEngine() as engine:
            engine.api.raw = raw
            assert await HttpProber().models(engine.endpoint) == ()

    run(main())


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "closed before"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "closed before"),
        (b"SSH-2.0-x\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5 << 20), "expected at most"),
        (content(b"", status=500), "got 500"),
        (content(b"<html>", status=200), "JSON"),
    ],
)
def test_odd_answers_are_failed_probes(raw: bytes, message: str) -> None:
    """Whatever comes back, the probe ends, and says what was wrong."""

    async def main() -> None:
        async with MiniEngine() as engine:
            engine.api.raw = raw
            with pytest.raises(ProbeFailed, match=message):
                await HttpProber().models(engine.endpoint)

    run(main())


def test_mute_server_is_given_up() -> None:
    """A server that takes the connection and says nothing costs the time-out, and counts as slow, not as gone."""

    async def main() -> None:
        async with MiniEngine() as engine:
            engine.api.mute = True
            with pytest.raises(ProbeFailed, match=r"within 0\.05 s") as caught:
                await HttpProber(timeout_s=0.05).health(engine.endpoint)
            assert not caught.value.certain

    run(main())


def test_key_of_the_engines_is_sent() -> None:
    """Engines that ask for a key get it; without it the message says which setting is missing."""

    async def main() -> None:
        async with MiniEngine(key="k") as engine:
            with pytest.raises(ProbeFailed, match="engine_api_key"):
                await HttpProber().models(engine.endpoint)
            prober = HttpProber(headers={"authorization": "Bearer k"})
            assert len(await prober.models(engine.endpoint)) == 1
            assert "Bearer" not in repr(prober)

    run(main())


def test_plain_server_is_not_spoken_to_over_tls() -> None:
    """https to a server without TLS is a failed probe, not an unencrypted one."""

    async def main() -> None:
        async with MiniEngine() as engine:
            with pytest.raises(ProbeFailed):
                await HttpProber(tls=ssl.create_default_context()).health(engine.endpoint._replace(tls=True))

    run(main())


@pytest.mark.parametrize(("status", "certain"), [(503, True), (500, False), (404, False)])
def test_worker_that_says_that_it_takes_no_requests_is_believed(status: int, certain: bool) -> None:
    """503 is what engines answer that are about to end, or whose core has ended; another status may be a slip."""

    async def main() -> None:
        async with MiniEngine() as engine:
            engine.api.status = status
            with pytest.raises(ProbeFailed, match=f"got {status}") as caught:
                await HttpProber().health(engine.endpoint)
            assert caught.value.certain is certain

    run(main())
