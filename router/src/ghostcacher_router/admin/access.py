"""Decides who may use /gc/*.

    a token is set          whoever sends it, from anywhere: `Authorization: Bearer <token>`
    none, on loopback       programs on this machine, but no web page that a browser on it shows, except the dashboard
    none, beyond loopback   nobody

What comes through a proxy on this machine is recognised by the headers that most proxies add. A proxy that adds none,
and sends a loopback address as Host (nginx with its default settings does both), looks like a program on this machine.
So where a proxy on the same host forwards to the router, set a token.

The dashboard's own files (/gc/ui) are open, and hold no data: a browser that opens a page sends no token.

/health, /ready, /metrics and /v1/models are open, as load balancers, Prometheus and clients expect. They show the names
of workers and models, and counts; no prompt, no session, no secret.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping

from ghostcacher_router.http.protocol.refusal import Refusal

TOKEN_SETTING = "admin_token (GC_ROUTER_ADMIN_TOKEN)"  # noqa: S105 - the name of a setting

_OWN_SITES = frozenset({b"none", b"same-origin"})
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")


class Access:
    """Decides on requests to /gc/*. loopback: whether the router listens on loopback addresses only."""

    def __init__(self, *, token: str | None, loopback: bool) -> None:
        self._token = None if token is None else token.encode()
        self._loopback = loopback

    def __repr__(self) -> str:
        return f"Access(token={'none' if self._token is None else '***'}, loopback={self._loopback})"

    @property
    def open_here(self) -> bool:
        """Whether any program on this machine may pass, and so whatever a proxy on it lets through."""
        return self._token is None and self._loopback

    def check(self, headers: Mapping[bytes, bytes], peer: str | None) -> None:
        """Return if a request may pass; raise Refusal, 401 or 403, saying what is missing. peer: its address."""
        if self._token is not None:
            self._check_token(self._token, headers.get(b"authorization", b""))
        elif not self._loopback:
            raise Refusal(403, f"/gc/* is off: set {TOKEN_SETTING}, or listen on 127.0.0.1 only", code="no_admin_token")
        else:
            _check_local(headers, peer)

    @staticmethod
    def _check_token(token: bytes, authorization: bytes) -> None:
        scheme, _, given = authorization.strip().partition(b" ")
        # Constant time in the token's characters: how long a refusal takes must not tell how much was right.
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), token):
            raise Refusal(401, "/gc/*: expected 'Authorization: Bearer <admin_token>'", code="invalid_admin_token")


def _check_local(headers: Mapping[bytes, bytes], peer: str | None) -> None:
    """Refuse what only seems to come from this machine.

    A browser adds Origin to what a page of another site sends, but not to all of it (images, links); it says in
    Sec-Fetch-Site whose page asks, and "none" where a person has typed the address. To what the dashboard POSTs it adds
    this router's own origin, which no page of another site or port has. A page whose name was made to lead
    here (DNS rebinding) still sends its own name as Host. A proxy in front lets anybody through, and often says so, but
    not always.
    """
    host = headers.get(b"host", b"").decode("latin-1")
    site = headers.get(b"sec-fetch-site", b"none")
    own = f"http://{host}".encode("latin-1")
    if headers.get(b"origin", own) != own or site not in _OWN_SITES or not is_loopback_host(host):
        raise Refusal(403, f"/gc/* from a web page or for another host: set {TOKEN_SETTING}", code="not_local")
    if any(name in headers for name in _FORWARDED) or not (peer is None or is_loopback_address(peer)):
        raise Refusal(403, f"/gc/* through a proxy or from afar: set {TOKEN_SETTING}", code="not_local")


def is_loopback_host(host: str) -> bool:
    """Say whether a Host header, with or without a port, names this machine's loopback."""
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
    else:
        name, _, rest = host.partition(":")
        rest = f":{rest}" if rest else ""
    if rest and not (rest.startswith(":") and rest[1:].isdecimal()):
        return False
    if name.lower() == "localhost":
        return True
    return is_loopback_address(name)


def is_loopback_address(address: str) -> bool:
    """Say whether an IP address is one of this machine's loopback; a name is none."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
