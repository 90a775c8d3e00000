"""What a worker is called in the fleet when nobody has named it."""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from ghostcacher_connector.config import WORKER_PATTERN, Settings


def chosen_name(settings: Settings, engine_id: str) -> str:
    """Return the worker's name: `worker_id`, else host and port of `http_url`, else the engine's own id.

    engine_id: unique, made by the engine at its start.
    """
    if settings.worker_id is not None:
        return settings.worker_id
    return (address_name(settings.http_url) if settings.http_url is not None else None) or engine_id


def address_name(url: str) -> str | None:
    """Return ``host-port`` of a base URL of this machine; None where that would not name one engine, or makes no name.

    Of one machine's addresses no two engines listen on one port. The name of a service, the address of a gateway, and a
    URL without a port or with a path may have several engines behind them, whose names must differ. A loopback address
    means another machine on each: the machine's name stands for it.
    """
    parts = urlsplit(url)
    if parts.port is None or parts.hostname is None or parts.path.strip("/"):
        return None
    host = _own_host(parts.hostname)
    if host is None:
        return None
    name = f"{host}-{parts.port}".replace(":", "-")
    return name if re.match(WORKER_PATTERN, name) else None


def _own_host(host: str) -> str | None:
    """Return what names this machine in the fleet, for one of its names and addresses; None for another one's."""
    machine = socket.gethostname().lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if host != "localhost":
            return host if host.partition(".")[0] == machine.partition(".")[0] else None
    else:
        if not address.is_loopback:
            return host if _is_assigned(address) else None
    return machine if machine.partition(".")[0] != "localhost" else None


def _is_assigned(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Return whether this machine has an address: nobody else's can be bound to. No packet is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004 - the protocol's version
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
