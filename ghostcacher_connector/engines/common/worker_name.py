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
    """Return ``host-port`` of a base URL; None where that would not name one engine, or makes no name.

    An address of this machine that means another engine on each machine is replaced by the machine's name. A URL
    without a port, or with a path, leads to a gateway that may have several engines behind it.
    """
    parts = urlsplit(url)
    if parts.port is None or parts.hostname is None or parts.path.strip("/"):
        return None
    host = socket.gethostname() if _is_local(parts.hostname) else parts.hostname
    name = f"{host}-{parts.port}".replace(":", "-")
    return name if re.match(WORKER_PATTERN, name) else None


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified
