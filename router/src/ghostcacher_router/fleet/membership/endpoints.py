"""Reads the base URLs of workers."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.types import Endpoint

URL_CHARS_MAX = 200
"""The longest URL: a worker's name may be made of it."""

_PORTS = {"http": 80, "https": 443}


def parse_endpoint(url: str, setting: str = "http_url") -> Endpoint:
    """Return where a base URL leads; raise ConfigError, naming the setting, unless it is http[s]://host[:port][/path].

    The path is what stands before `/v1`. A URL that ends in `/v1`, as clients are given it, means the same server.
    """
    try:
        parts = urlsplit(url.strip())
        port, host = parts.port, parts.hostname
    except ValueError:
        parts, port, host = urlsplit(""), None, None
    plain = url.isascii() and url.isprintable() and not any(mark in url.strip() for mark in ' "<>\\^`{|}?#@')
    if parts.scheme not in _PORTS or not host or port == 0 or not plain or len(url) > URL_CHARS_MAX:
        shown = url.rpartition("@")[2][:200] if "@" in url else url[:200]
        raise ConfigError(f"{setting}: expected http[s]://host[:port][/path] without user or query, got {shown!r}")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return Endpoint(host, port or _PORTS[parts.scheme], parts.scheme == "https", path)


def parse_roles(entries: Iterable[str], setting: str) -> dict[Endpoint, PdRole]:
    """Return what engines do, by `same_server` of their URLs.

    Raises ConfigError, naming the setting, unless each entry is URL=prefill or URL=decode.
    """
    roles = {}
    for entry in entries:
        url, _, name = entry.rpartition("=")
        if name not in set(PdRole):
            raise ConfigError(f"{setting}: expected URL=prefill or URL=decode, got {entry[:200]!r}")
        roles[same_server(parse_endpoint(url, setting))] = PdRole(name)
    return roles


def same_server(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint to compare by: localhost and 127.0.0.1 are one host. Other names are not resolved."""
    return endpoint._replace(host="127.0.0.1") if endpoint.host == "localhost" else endpoint
