"""A router before servers in the places of OpenAI and Anthropic, on a loop of their own in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import uvloop

from tests.support.providers.anthropic_api import AnthropicApi
from tests.support.providers.openai_api import OpenAiApi
from tests.support.providers.routed import routed
from tests.support.providers.server import Authority, ProviderServer

KEY = "sk-of-the-test"
START_S = 60.0


class Hosted(NamedTuple):
    """The router of `hosting`."""

    url: str
    """Without a path."""


class _Running(NamedTuple):
    hosted: Hosted
    loop: asyncio.AbstractEventLoop
    stop: asyncio.Event


@contextmanager
def hosting(authority: Authority) -> Iterator[Hosted]:
    """Serve; what a server could not read is an error in the end."""
    began: Future[_Running] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        async with (
            ProviderServer(authority, OpenAiApi(KEY)) as openai,
            ProviderServer(authority, AnthropicApi(key=KEY)) as anthropic,
            routed(authority, ("openai", openai), ("anthropic", anthropic)) as router,
        ):
            began.set_result(_Running(Hosted(router.url), asyncio.get_running_loop(), stop))
            await stop.wait()

    with ThreadPoolExecutor(1) as thread:
        serving = thread.submit(lambda: uvloop.run(serve()))
        serving.add_done_callback(
            lambda done: began.done() or began.set_exception(done.exception() or OSError("ended"))
        )
        running = began.result(START_S)
        try:
            yield running.hosted
        finally:
            running.loop.call_soon_threadsafe(running.stop.set)
        serving.result(START_S)
