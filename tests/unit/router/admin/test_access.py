"""Who may use the admin API."""

from __future__ import annotations

import pytest

from ghostcacher_router.admin.access import Access, is_loopback_host
from ghostcacher_router.app import Router
from ghostcacher_router.config import RouterSettings
from ghostcacher_router.http.protocol.refusal import Refusal

TOKEN = "correct horse battery"


LOCAL = {b"host": b"127.0.0.1:8000"}


BEARER = {b"authorization": f"Bearer {TOKEN}".encode()}


def status_of(access: Access, headers: dict[bytes, bytes], peer: str | None = None) -> int:
    try:
        access.check(headers, peer)
    except Refusal as refusal:
        return refusal.status
    return 200


@pytest.mark.parametrize(
    ("token", "listen", "warnings"),
    [(None, "127.0.0.1:0", 1), (TOKEN, "127.0.0.1:0", 0), (None, "0.0.0.0:0", 0)],
)
def test_router_warns_of_what_is_open(
    token: str | None, listen: str, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a token, a proxy on this machine cannot be told from a program on it."""
    Router(RouterSettings(listen=listen, admin_token=token, redis=False, workers=("http://127.0.0.1:1",)))
    assert sum("set admin_token" in message for message in caplog.messages) == warnings


@pytest.mark.parametrize(
    ("token", "loopback", "headers", "status"),
    [
        (TOKEN, False, BEARER, 200),
        (TOKEN, False, {b"authorization": f"bEARER  {TOKEN} ".encode()}, 200),
        (TOKEN, False, {}, 401),
        (TOKEN, False, {b"authorization": b"Bearer "}, 401),
        (TOKEN, False, {b"authorization": TOKEN.encode()}, 401),
        (TOKEN, False, {b"authorization": f"Basic {TOKEN}".encode()}, 401),
        (TOKEN, False, {b"authorization": f"Bearer {TOKEN}x".encode()}, 401),
        (TOKEN, False, {b"authorization": b"Bearer \xff\xfe"}, 401),
        (TOKEN, False, LOCAL, 401),
        (TOKEN, True, LOCAL, 401),
        (TOKEN, True, BEARER, 200),
        (None, False, LOCAL, 403),
        (None, False, BEARER, 403),
        (None, True, LOCAL, 200),
        (None, True, {}, 403),
        (None, True, {b"host": b"evil.example"}, 403),
        (None, True, LOCAL | {b"origin": b"http://evil.example"}, 403),
        (None, True, LOCAL | {b"origin": b"null"}, 403),
        (None, True, LOCAL | {b"origin": b"http://127.0.0.1:8000"}, 200),
        (None, True, LOCAL | {b"origin": b"http://127.0.0.1:8000", b"sec-fetch-site": b"same-origin"}, 200),
        (None, True, LOCAL | {b"origin": b"http://127.0.0.1:8000", b"sec-fetch-site": b"cross-site"}, 403),
        (None, True, LOCAL | {b"origin": b"http://127.0.0.1:8001"}, 403),
        (None, True, LOCAL | {b"origin": b"https://127.0.0.1:8000"}, 403),
        (None, True, LOCAL | {b"origin": b"http://127.0.0.1"}, 403),
        (None, True, LOCAL | {b"origin": b""}, 403),
        (None, True, {b"host": b"evil.example", b"origin": b"http://evil.example"}, 403),
        (None, True, LOCAL | {b"sec-fetch-site": b"none"}, 200),
        (None, True, LOCAL | {b"sec-fetch-site": b"same-origin"}, 200),
        (None, True, LOCAL | {b"sec-fetch-site": b"same-site"}, 403),
        (None, True, LOCAL | {b"sec-fetch-site": b"cross-site"}, 403),
        (None, True, LOCAL | {b"sec-fetch-site": b"none, cross-site"}, 403),
        (TOKEN, True, BEARER | {b"sec-fetch-site": b"cross-site"}, 200),
        (None, True, LOCAL | {b"x-forwarded-for": b"192.0.2.1"}, 403),
    ],
)
def test_access(token: str | None, loopback: bool, headers: dict[bytes, bytes], status: int) -> None:
    """A token where there is one; else programs on this machine only."""
    assert status_of(Access(token=token, loopback=loopback), headers) == status


def test_peer_from_afar_is_refused_without_token() -> None:
    """Whatever the router believes of its own address."""
    access = Access(token=None, loopback=True)
    assert [status_of(access, LOCAL, peer) for peer in ("127.0.0.1", "::1", "192.0.2.1")] == [200, 200, 403]


def test_refusal_names_the_setting_and_repr_no_secret() -> None:
    """Who runs it learns what to set; the log does not learn the token."""
    with pytest.raises(Refusal, match="GC_ROUTER_ADMIN_TOKEN"):
        Access(token=None, loopback=False).check({}, None)
    assert TOKEN not in repr(Access(token=TOKEN, loopback=False))


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:8000"])
def test_loopback_hosts(host: str) -> None:
    """Every spelling that a program on this machine uses."""
    assert is_loopback_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "h",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@h",
        "::1",
        "[::1]x",
        "0.0.0.0",
        "10.0.0.1",
    ],
)
def test_other_hosts(host: str) -> None:
    """Names that only look like loopback are not."""
    assert not is_loopback_host(host)
