"""Connecting to the first of several addresses that answers, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ghostcacher_router.dns.dial import dial
from ghostcacher_router.dns.resolver import Resolver
from tests.support.mock_engine import until


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 280))


class Attempts:
    """Attempts at addresses, each as it is told to end. discarded: addresses of connections that came too late."""

    def __init__(self, **ends: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.ends = {f"10.0.0.{name[1:]}": end for name, end in ends.items()}
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.discarded: list[str] = []
        self.resolver = Resolver(lookup=lambda _: list(self.ends))

    async def connect(self, address: str) -> str:
        self.begun.append(address)
        try:
            await self.ends[address]()
        except asyncio.CancelledError:
            self.cancelled.append(address)
            raise
        return address

    async def dial(self) -> str:
        return await dial(self.resolver, "a", self.connect, self.discarded.append)


async def works() -> None:
    """A connection is made at once."""


async def fails() -> None:
    raise OSError("refused")


async def hangs() -> None:
    await asyncio.Event().wait()


def test_only_address_is_connected_to() -> None:
    """And its error passes on as it is."""

    async def main() -> None:
        assert await Attempts(a1=works).dial() == "10.0.0.1"
        with pytest.raises(OSError, match="refused"):
            await Attempts(a1=fails).dial()

    run(main())


def test_address_that_hangs_gives_way_to_the_next_which_is_remembered() -> None:
    """A host of which one address does not answer is no slower from the second time on."""

    async def main() -> None:
        attempts = Attempts(a1=hangs, a2=fails, a3=works)
        assert await attempts.dial() == "10.0.0.3"
        await until(lambda: attempts.cancelled == ["10.0.0.1"])
        attempts.begun.clear()
        assert await attempts.dial() == "10.0.0.3"
        assert attempts.begun == ["10.0.0.3"]

    run(main())


def test_all_addresses_that_fail_are_the_last_error() -> None:
    """Each is tried once."""

    async def main() -> None:
        attempts = Attempts(a1=fails, a2=fails)
        with pytest.raises(OSError, match="refused"):
            await attempts.dial()
        assert attempts.begun == ["10.0.0.1", "10.0.0.2"]

    run(main())


def test_connection_that_comes_too_late_is_discarded() -> None:
    """Two are made in the same turn of the loop: one is used, the other closed."""

    async def main() -> None:
        both = asyncio.Event()
        attempts = Attempts(a1=lambda: _wait(both), a2=lambda: _wait(both))
        dialling = asyncio.ensure_future(attempts.dial())
        await until(lambda: len(attempts.begun) == 2)
        both.set()
        used = await dialling
        await until(lambda: sorted([used, *attempts.discarded]) == ["10.0.0.1", "10.0.0.2"])

    run(main())


def test_who_gives_up_leaves_nothing_behind() -> None:
    """Every attempt ends with the caller."""

    async def main() -> None:
        attempts = Attempts(a1=hangs, a2=hangs)
        dialling = asyncio.ensure_future(attempts.dial())
        await until(lambda: len(attempts.begun) == 2)
        dialling.cancel()
        await until(lambda: sorted(attempts.cancelled) == ["10.0.0.1", "10.0.0.2"])
        assert dialling.cancelled()

    run(main())


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
