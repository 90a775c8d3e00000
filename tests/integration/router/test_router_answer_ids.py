"""Answers of /v1/responses on their way: their ids are found, their output is told from what comes before, at once."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_simulator.http_server import LAST_CHUNK, Peer, Received, chunk, content, stream_head
from tests.support.mock_engine import MockEngine, says
from tests.support.proxy_rig import eventually, on_loop, proxy_rig

ASK = b"POST /v1/responses HTTP/1.1\r\nHost: router\r\nContent-Length: 2\r\n\r\n{}"
CREATED = b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_1","output":[]}}\n\n'
IN_PROGRESS = b'event: response.in_progress\ndata: {"type":"response.in_progress","response":{"id":"resp_1"}}\n\n'
OUTPUT = b'event: response.output_item.added\ndata: {"item":{"id":"msg_1"}}\n\n'


class Stepwise:
    """A stream that goes on when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, peer: Peer, _: Received) -> None:
        peer.send(stream_head(), chunk(CREATED), chunk(IN_PROGRESS))
        await self.go_on.wait()
        peer.send(chunk(OUTPUT), LAST_CHUNK)


@on_loop
async def test_events_before_the_output_tell_the_id_alone() -> None:
    """They reach the client at once. The prompt counts as computed with the first event that is output."""
    async with proxy_rig(MockEngine("w0")) as rig:
        script = rig.engine.script = Stepwise()
        client = await rig.client()
        client.send(ASK)
        await client.head()
        begun = chunk(CREATED) + chunk(IN_PROGRESS)
        assert await client.reader.readexactly(len(begun)) == begun
        (placement,) = rig.placements
        assert (placement.answer_ids, placement.told) == (["resp_1"], ["sent"])
        script.go_on.set()
        rest = chunk(OUTPUT) + LAST_CHUNK
        assert await client.reader.readexactly(len(rest)) == rest
        assert (placement.answer_ids, placement.told) == (["resp_1"], ["sent", "first_byte"])


@pytest.mark.parametrize("at", [60, 90, 110])
@on_loop
async def test_id_in_two_packets_is_found(at: int) -> None:
    """Neither is held back for it."""
    answer = content(
        b'{"id": "resp_of_two_packets", "object": "response", "output": []}', b"content-type: application/json"
    )

    async def split(peer: Peer, _: Received) -> None:
        await peer.send_split(answer, at)

    async with proxy_rig(MockEngine("w0", split)) as rig:
        _, body = await rig.ask(ASK)
        assert answer.endswith(body)
        assert rig.placements[0].answer_ids == ["resp_of_two_packets"]
        assert rig.placements[0].told == ["sent", "first_byte"]


@on_loop
async def test_errors_have_no_ids() -> None:
    """Nor has what was not made."""
    body = b'{"id": "resp_1"}'
    async with proxy_rig(MockEngine("w0", says(content(body, status=500)))) as rig:
        await rig.ask(ASK)
        rig.engine.script = says(content(body))
        await rig.ask(ASK.replace(b"POST", b"PUT"))
        await rig.ask(ASK.replace(b"/v1/responses", b"/v1/other"))
        assert [placement.answer_ids for placement in rig.placements] == [[], [], []]


@on_loop
async def test_client_that_leaves_in_between_leaves_nothing() -> None:
    """The engine hears of it."""
    async with proxy_rig(MockEngine("w0", Stepwise())) as rig:
        client = await rig.client()
        client.send(ASK)
        await client.head()
        client.abort()
        await eventually(lambda: rig.placements[0].outcome is not None)
        assert rig.placements[0].told == ["sent"]
