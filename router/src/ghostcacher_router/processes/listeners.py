"""The sockets of all slots: each address once for each of them, and the kernel spreads new connections over them."""

from __future__ import annotations

import contextlib
import socket

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import Listen


class Listeners:
    """Bound sockets, by slot. Whoever accepts calls `listen`; until then, connections of that slot are refused."""

    def __init__(self, listen: Listen, slots: int) -> None:
        """Bind. Raises ConfigError when the address is taken, also by another router in several processes."""
        self.slots: list[list[socket.socket]] = [[] for _ in range(slots)]
        self.port = listen.port
        try:
            for family, _, _, _, address in sorted(set(_addresses(listen))):
                self._bind(family, str(address[0]), slots)
        except OSError as exc:
            self.close()
            raise ConfigError(f"listen: expected a free address, got {str(listen)!r}: {exc.strerror or exc}") from exc

    def __repr__(self) -> str:
        return f"Listeners(port={self.port}, slots={len(self.slots)})"

    def numbers(self) -> tuple[tuple[int, ...], ...]:
        """Return the file numbers, by slot."""
        return tuple(tuple(bound.fileno() for bound in slot) for slot in self.slots)

    def close(self) -> None:
        """Close them; children have them still. Idempotent."""
        for slot in self.slots:
            for bound in slot:
                bound.close()

    def _bind(self, family: int, host: str, slots: int) -> None:
        # SO_REUSEPORT lets any other program of this user in that has it, too, such as a second router by mistake.
        # Without it a bind fails where somebody listens.
        with _socket(family) as probe:
            probe.bind((host, self.port))
            self.port = probe.getsockname()[1]
        for slot in self.slots[:slots]:
            bound = _socket(family)
            slot.append(bound)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind((host, self.port))


def _addresses(listen: Listen) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    flags = socket.AI_PASSIVE
    return [
        (int(family), int(kind), protocol, name, tuple(address))
        for family, kind, protocol, name, address in socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=flags
        )
    ]


def _socket(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        with contextlib.suppress(OSError):
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made
