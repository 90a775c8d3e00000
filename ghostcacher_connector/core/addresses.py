"""What an address is good for, and the ports of ranks that were all given one."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import PORT_MAX, Listen


def port_of_rank(port: int, offset: int, key: str) -> int:
    """Return the port that is one rank's own: `offset` above the one that all ranks were given. 0, which is any, stays.

    Raises ConfigError, naming the setting, when there is no such port.
    """
    if port == 0:
        return 0
    if port + offset > PORT_MAX:
        raise ConfigError(
            f"{key}: expected a port of at most {PORT_MAX - offset}, since this rank's own port is {offset} above it "
            f"(each rank of an engine has one); got {port}"
        )
    return port + offset


def is_unspecified(host: str) -> bool:
    """Return whether a host is no address of a machine but stands for all of its own: 0.0.0.0, ``::``, or nothing."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return (getattr(address, "ipv4_mapped", None) or address).is_unspecified
    try:
        # What connects and listens also takes shorter forms, such as 0 and 0x0.
        return not any(socket.inet_aton(host))
    except OSError:
        return not host


def is_loopback_url(url: str) -> bool:
    """Return whether a base URL leads to the machine on which it is used."""
    return Listen(urlsplit(url).hostname or "", 0).loopback


def check_reachable(key: str, url: str) -> None:
    """Raise ConfigError when a base URL, which has been checked, names no machine that others could reach."""
    host = urlsplit(url).hostname or ""
    if is_unspecified(host):
        raise ConfigError(
            f"{key}: expected the address at which other machines reach this server, got {url!r}: {host} is every "
            "address of whichever machine uses it, good to listen on and not to connect to"
        )
