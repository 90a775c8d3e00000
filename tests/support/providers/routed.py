"""A whole router in this process, on uvloop, before servers in the places of providers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from ghostcacher_router.app import Router
from ghostcacher_router.config import RouterSettings
from tests.support.providers.server import Authority, ProviderServer

PATIENCE_S = 60.0


class Routed:
    """A router that listens. url: without a path."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.url = router.url

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self.url)
        return await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 25)

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request on a connection of its own; return status, headers by lower-case name, and the raw body."""
        reader, writer = await self.connect()
        try:
            async with asyncio.timeout(PATIENCE_S):
                writer.write(data)
                status, headers = await read_head(reader)
                if "content-length" in headers:
                    return status, headers, await reader.readexactly(int(headers["content-length"]))
                return status, headers, await reader.readuntil(b"0\r\n\r\n")
        finally:
            writer.transport.abort()

    async def post(self, path: str, body: Any, *lines: str) -> tuple[int, dict[str, str], bytes]:
        return await self.ask(post(path, body, *lines))

    async def get(self, path: str, *lines: str) -> tuple[int, dict[str, str], bytes]:
        return await self.ask("\r\n".join([f"GET {path} HTTP/1.1", "Host: router", *lines, "", ""]).encode())

    async def metrics(self) -> str:
        return (await self.get("/metrics"))[2].decode()

    async def metric(self, name: str) -> float:
        """Return the value of one series, as its page writes it."""
        found = [line for line in (await self.metrics()).splitlines() if line.startswith(name + " ")]
        assert len(found) == 1, (name, found)
        return float(found[0].rpartition(" ")[2])


def post(path: str, body: Any, *lines: str) -> bytes:
    """Return a request. body: bytes as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: router", "Content-Type: application/json", *lines]
    return "\r\n".join([*head, f"Content-Length: {len(data)}", "", ""]).encode() + data


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    return int(first.split(" ")[1]), {
        name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
    }


@asynccontextmanager
async def routed(authority: Authority, *servers: tuple[str, ProviderServer], **settings: Any) -> AsyncIterator[Routed]:
    """A router before these servers, by the names of the providers; without Redis, and without workers unless given."""
    given = {
        "listen": "127.0.0.1:0",
        "redis": False,
        "upstreams": tuple(f"{name}={server.url}" for name, server in servers),
        "provider_ca_file": str(authority.ca),
        "drain_timeout_s": 0.0,
    }
    router = Router(RouterSettings(**(given | settings)))
    await router.start()
    try:
        yield Routed(router)
    finally:
        await router.stop()
