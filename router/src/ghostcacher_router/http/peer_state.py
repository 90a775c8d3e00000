"""Whether the other side of a connection has closed it, although it is not read from."""

from __future__ import annotations

import asyncio
import socket

_CLOSED_STATES = frozenset({7, 8})
"""Linux's TCP_CLOSE and TCP_CLOSE_WAIT: the other side has closed."""


def peer_has_closed(transport: asyncio.Transport) -> bool:
    """Say whether the peer has closed, behind bytes of it that are not read yet. False where the system cannot say."""
    if not hasattr(socket, "TCP_INFO"):
        return False
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except OSError:
        return False
    return info[0] in _CLOSED_STATES
