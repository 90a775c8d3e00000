"""The front at its own limits: descriptors and ports that run out are no worker's fault."""

from __future__ import annotations

import errno
import json
import os
import resource

import pytest

from ghostcacher_router.types import Endpoint, Outcome
from tests.support.front_rig import Rig, front_rig, on_loop, post
from tests.support.mock_engine import MockEngine


async def overloaded(rig: Rig, answer: tuple[bytes, bytes]) -> None:
    """Assert that the client is to come again, and that no worker is blamed or asked instead."""
    head, body = answer
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1\r\n" in head
    assert json.loads(body)["error"]["code"] == "router_overloaded"
    assert [(place.worker, place.outcome) for place in rig.placements] == [("w0", Outcome.FAILED)]
    assert rig.meter.reasons == []


@on_loop
async def test_router_without_descriptors_blames_no_worker() -> None:
    """The request fails, its client may go on, and so may the next request."""
    async with front_rig(MockEngine("w0"), MockEngine("w1")) as rig:
        client = await rig.client()
        await client.ask(post(b"first"))
        await rig.front.pools.close()
        rig.placements.clear()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
        try:
            answer = await client.ask(post(b"second"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await overloaded(rig, answer)
        assert (await client.ask(post(b"third")))[1] == b"third"


@pytest.mark.parametrize("number", [errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM])
@on_loop
async def test_what_the_router_lacks_blames_no_worker(number: int) -> None:
    """Ports and memory, as descriptors."""

    async def lacking(endpoint: Endpoint) -> object:
        raise OSError(number, os.strerror(number))

    async with front_rig(MockEngine("w0"), MockEngine("w1")) as rig:
        rig.front.pools.connect = lacking  # type: ignore[method-assign, assignment]
        await overloaded(rig, await rig.ask(post(b"{}")))
