"""The server of simulated engines, over real sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.support.mock_engine import MockEngine
from tests.support.proxy_rig import on_loop


@on_loop
async def test_port_of_a_server_that_refuses_is_given_to_nobody_else() -> None:
    """Else another server of this machine could be asked in its place, or keep it from listening again."""
    engine = MockEngine("w0")
    await engine.start()
    port = engine.port
    await engine.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    await engine.start()
    assert engine.port == port
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    await engine.stop()
