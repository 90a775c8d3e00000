"""Workers are told of the sections of a prompt behind the id of the request, over real sockets."""

from __future__ import annotations

import asyncio
import json

import pytest

from ghostcacher_connector.core.sections import decode_hint
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.prompt import parse_body
from tests.support.proxy_rig import Rig, eventually, on_loop, post, proxy_rig


async def ask_with_sections(rig: Rig, *headers: bytes) -> bytes:
    """Ask with a prompt of two sections; return the head of the answer."""
    asked = asyncio.create_task(rig.ask(post(b"long", *headers)))
    await eventually(lambda: rig.parser.waiting)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    body = json.dumps({"model": "m", "messages": messages}).encode()
    rig.parser.waiting[0].set_result(parse_body("/v1/chat/completions", body, {}, 7))
    return (await asked)[0]


@pytest.mark.parametrize(("given", "own"), [((), b"gc-t-1"), ((b"X-Request-Id: mine.1",), b"mine.1")])
@on_loop
async def test_worker_is_told_of_sections_behind_the_id(given: tuple[bytes, ...], own: bytes) -> None:
    """Only the worker sees it, and what waits for its report: the client gets the id that it knows."""
    async with proxy_rig() as rig:
        head = await ask_with_sections(rig, *given)
        seen = rig.engine.received[0].headers[b"x-request-id"]
        assert seen.startswith(own + b".gc1.")
        assert [end.section.name for end in decode_hint(seen.decode()).ends] == ["SYS", "USER"]
        assert rig.placements[0].ask.request_id == seen.decode()
        assert b"\r\nx-request-id: %b\r\n" % own in head


@on_loop
async def test_worker_is_told_nothing_where_that_is_off() -> None:
    """For clients that compare the ids of answers with their own."""
    async with proxy_rig(limits=Limits(section_hints=False)) as rig:
        await ask_with_sections(rig, b"X-Request-Id: mine.1")
        assert rig.engine.received[0].headers[b"x-request-id"] == b"mine.1"
