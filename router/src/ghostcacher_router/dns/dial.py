"""Connects to the first of a host's addresses that answers, as browsers do ("happy eyeballs")."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from ghostcacher_router.dns.resolver import Resolver

T = TypeVar("T")

STAGGER_S = 0.25
"""Head start of each address before the next one, as RFC 8305 recommends: one that does not answer costs no more."""


async def dial(
    resolver: Resolver,
    host: str,
    connect: Callable[[str], Coroutine[Any, Any, T]],
    discard: Callable[[T], object],
) -> T:
    """Return a connection to a host: the first that is made, to any of its addresses. Raises OSError.

    connect: connects to one address, or raises OSError. discard: closes a connection that came too late.
    The caller bounds the time. Where no address could be connected to, the name is looked up again.
    """
    addresses = await resolver.addresses(host)
    connected = False
    try:
        if len(addresses) == 1:
            connection = await connect(addresses[0])
        else:
            address, connection = await _race(addresses, connect, discard)
            resolver.prefer(host, address)
        connected = True
    finally:
        if not connected:
            resolver.doubt(host)
    return connection


async def _race(
    addresses: Sequence[str], connect: Callable[[str], Coroutine[Any, Any, T]], discard: Callable[[T], object]
) -> tuple[str, T]:
    """Return the address that was connected to first, and the connection."""
    error = OSError("no address")
    running: dict[asyncio.Task[T], str] = {}
    left = list(reversed(addresses))
    try:
        while left or running:
            if left:
                address = left.pop()
                running[asyncio.create_task(connect(address))] = address
            done, _ = await asyncio.wait(
                running, timeout=STAGGER_S if left else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                address = running.pop(task)
                try:
                    return address, task.result()
                except OSError as exc:
                    error = exc
        raise error
    finally:
        for task in running:
            task.add_done_callback(lambda late: _drop(late, discard))
            task.cancel()


def _drop(task: asyncio.Task[T], discard: Callable[[T], object]) -> None:
    if not task.cancelled() and task.exception() is None:
        discard(task.result())
