"""The HTTP proxy and web pages: which of them may read what the router answers itself."""

from __future__ import annotations

import pytest

from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.types import Forecast
from tests.support.mock_engine import MockEngine, content, says
from tests.support.proxy_rig import Rig, on_loop, post, proxy_rig

APP = "https://app.example"
ALLOWED = f"access-control-allow-origin: {APP}\r\n".encode()
ORIGIN = f"Origin: {APP}".encode()


async def answers(rig: Rig) -> dict[str, bytes]:
    """Return the head of each kind of answer that the router gives itself."""
    heads = {}
    for name, body in (("bad body", b"bad body"), ("a bug", b"bug"), ("too large", b"x" * 2000)):
        heads[name], _ = await rig.ask(post(body, ORIGIN))
    heads["page"], _ = await rig.ask(post(b"", ORIGIN).replace(b"/v1/chat/completions", b"/local/page"))
    heads["bug in a page"], _ = await rig.ask(post(b"", ORIGIN).replace(b"/v1/chat/completions", b"/local/bug"))
    engines, rig.dispatcher.engines = rig.dispatcher.engines, []
    heads["no worker"], _ = await rig.ask(post(b"{}", ORIGIN))
    rig.dispatcher.engines = engines
    return heads


@pytest.mark.parametrize(("allowed", "line"), [((APP,), ALLOWED), (("*",), b"access-control-allow-origin: *\r\n")])
@on_loop
async def test_page_that_is_allowed_may_read_every_answer_of_the_router(allowed: tuple[str, ...], line: bytes) -> None:
    """Errors above all: else the page learns no more than that something failed."""
    async with proxy_rig(limits=Limits(body_bytes_max=1000, allowed_origins=allowed)) as rig:
        for name, head in (await answers(rig)).items():
            assert head.lower().count(line) == 1, name


@pytest.mark.parametrize("allowed", [(), ("https://other.example",)])
@on_loop
async def test_page_that_is_not_allowed_may_read_none(allowed: tuple[str, ...]) -> None:
    """By default no page is."""
    async with proxy_rig(limits=Limits(body_bytes_max=1000, allowed_origins=allowed)) as rig:
        for name, head in (await answers(rig)).items():
            assert b"access-control" not in head, name


@on_loop
async def test_what_an_engine_says_of_origins_is_passed_on_as_it_is() -> None:
    """It answers preflights, too, and has settings of its own."""
    own = b"access-control-allow-origin: https://elsewhere.example"
    async with proxy_rig(MockEngine("w0", says(content(b"", own))), limits=Limits(allowed_origins=("*",))) as rig:
        preflight = post(b"", ORIGIN, b"Access-Control-Request-Method: POST").replace(b"POST", b"OPTIONS", 1)
        for request in (preflight, post(b"{}", ORIGIN)):
            head, _ = await rig.ask(request)
            assert (head.count(b"access-control-allow-origin"), own in head) == (1, True)
        assert [request.method for request in rig.engine.received] == ["OPTIONS", "POST"]
        assert rig.engine.received[0].headers[b"access-control-request-method"] == b"POST"


def exposed(head: bytes) -> set[bytes]:
    """Return the names of the headers that a page may read beside those that it always may."""
    name = b"access-control-expose-headers: "
    lists = [line.removeprefix(name) for line in head.lower().split(b"\r\n") if line.startswith(name)]
    return {each.strip() for one in lists for each in one.split(b",")}


@pytest.mark.parametrize("allowed", [(APP,), ("*",)])
@on_loop
async def test_page_may_read_what_the_router_adds_to_an_engines_answer(allowed: tuple[str, ...]) -> None:
    """Every header of it, beside those that the engine exposes itself; whole and streamed."""
    lines = (b"access-control-allow-origin: *", b"access-control-expose-headers: X-Own")
    async with proxy_rig(MockEngine("w0", says(content(b"{}", *lines))), limits=Limits(allowed_origins=allowed)) as rig:
        rig.dispatcher.forecast = Forecast("w0", 30.0, 5.0, 0.0, 0.0, 7.0, 0.0, 8.0, 9.0, 64, 16, 20)
        head, _ = await rig.ask(post(b"{}", ORIGIN))
        named = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")}
        added = {name for name in named if name.startswith(b"x-gc-")} | {b"x-request-id"}
        assert len(added) == 5
        assert added | {b"x-own"} <= exposed(head)


@on_loop
async def test_headers_are_exposed_to_pages_that_are_allowed_alone() -> None:
    """And to nobody by default, whatever the engine allows; clients that are no pages get no such line."""
    engine_allows_all = says(content(b"{}", b"access-control-allow-origin: *"))
    for allowed, line in (((), ORIGIN), (("https://other.example",), ORIGIN), (("*",), b"X-A: b")):
        async with proxy_rig(MockEngine("w0", engine_allows_all), limits=Limits(allowed_origins=allowed)) as rig:
            head, _ = await rig.ask(post(b"{}", line))
            assert exposed(head) == set(), allowed
            assert b"x-gc-worker: w0" in head
