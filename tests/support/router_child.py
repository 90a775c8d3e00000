"""A process of a router and its supervisor, each at one end of a socket of which a test has the other end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import msgspec

from ghostcacher_router.http.proxy_ports import LocalEndpoints
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.processes.child import Child
from ghostcacher_router.processes.control_lines import LINE_BYTES_MAX
from ghostcacher_router.processes.membership import Membership
from ghostcacher_router.processes.seat import Seat
from ghostcacher_router.processes.whole_router import Fared, WholeRouter
from tests.support.kept_history import KeptHistory


async def for_ever() -> int:
    """As a process is waited for that does not end."""
    await asyncio.Event().wait()
    return 0


class _First(msgspec.Struct):
    """The first message to it."""

    name: str = "0.1"


class _Process:
    pid = 1

    def __init__(self, wait: Callable[[], Awaitable[int]]) -> None:
        self.wait = wait


async def supervised(
    wait: Callable[[], Awaitable[int]] = for_ever, *, limit: int = LINE_BYTES_MAX
) -> tuple[Child, socket.socket]:
    """Return a child as its supervisor sees it, and the socket at which it talks.

    wait: returns when it has ended, its exit status. limit: bytes of a line that is heard.
    """
    ours, theirs = socket.socketpair()
    connection = await asyncio.open_connection(sock=ours, limit=limit)
    return Child(cast(Any, _First()), cast(Any, _Process(wait)), *connection), theirs


async def member(
    folder: Path, metrics: RouterMetrics, *, local: LocalEndpoints | None = None, fared: Fared | None = None
) -> tuple[Membership, WholeRouter, asyncio.StreamReader, asyncio.StreamWriter]:
    """Return process 0.1 of two as it sees itself, and the end of the socket at which its supervisor talks.

    folder: of the processes' sockets. metrics, local, fared: its own.
    """
    ours, theirs = socket.socketpair()
    membership = Membership(Seat(0, 1, 2, "r", str(folder), ()), theirs)
    kept = fared or KeptHistory(metrics)
    whole = membership.whole(cast(LocalEndpoints, local), metrics, kept, lambda: ["a"], shared=False)
    return membership, whole, *await asyncio.open_connection(sock=ours)
