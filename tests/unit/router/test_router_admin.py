"""Who may use /gc/*, and what its requests mean."""

from __future__ import annotations

import json

import pytest

from ghostcacher_connector.core.admin_api import FlushScope
from ghostcacher_router.admin.access import Access, is_loopback_host
from ghostcacher_router.admin.parameters import CHAT, COMPLETIONS, FlushTarget, draining_of, explain_of, flush_of
from ghostcacher_router.app import Router
from ghostcacher_router.config import RouterSettings
from ghostcacher_router.http.protocol.local_response import LocalRequest
from ghostcacher_router.http.protocol.refusal import Refusal

TOKEN = "correct horse battery"
LOCAL = {b"host": b"127.0.0.1:8000"}
BEARER = {b"authorization": f"Bearer {TOKEN}".encode()}


def ask(method: str = "POST", query: str = "", body: object = None) -> LocalRequest:
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return LocalRequest(method, "/gc/x", query, {}, data, None)


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


@pytest.mark.parametrize(
    ("request_", "draining"),
    [
        (ask(), True),
        (ask(query="drain=true"), True),
        (ask(query="drain=FALSE"), False),
        (ask("DELETE"), False),
        (ask("DELETE", "drain=true"), False),
    ],
)
def test_drain_or_not(request_: LocalRequest, draining: bool) -> None:
    """POST drains, DELETE and ?drain=false take it back."""
    assert draining_of(request_) is draining


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"scope": "all"}, FlushTarget(FlushScope.ALL)),
        ({"scope": "session", "session": "s"}, FlushTarget(FlushScope.SESSION, session="s")),
        ({"scope": "prefix", "key": "00ff"}, FlushTarget(FlushScope.PREFIX, key=b"\x00\xff")),
        (
            {"scope": "doc", "request": {"prompt": "x"}},
            FlushTarget(FlushScope.DOC, None, COMPLETIONS, b'{"prompt": "x"}'),
        ),
        (
            {"scope": "doc", "request": {}, "path": "/v1/messages"},
            FlushTarget(FlushScope.DOC, None, "/v1/messages", b"{}"),
        ),
    ],
)
def test_flush_is_understood(body: dict[str, object], expected: FlushTarget) -> None:
    """Each scope with what names it."""
    assert flush_of(ask(body=body)) == expected


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
        ([], None),
        ({}, "scope"),
        ({"scope": []}, "scope"),
        ({"scope": "everything"}, "scope"),
        ({"scope": "all", "sesion": "x"}, "sesion"),
        ({"scope": "session"}, "session"),
        ({"scope": "session", "session": 1}, "session"),
        ({"scope": "prefix"}, "request"),
        ({"scope": "prefix", "request": {}, "key": "00"}, "request"),
        ({"scope": "prefix", "request": []}, "request"),
        ({"scope": "prefix", "key": "xy"}, "key"),
        ({"scope": "prefix", "key": "00" * 65}, "key"),
    ],
)
def test_bad_flush_names_the_field(body: object, field: str | None) -> None:
    """Nothing is flushed that was not asked for clearly."""
    with pytest.raises(Refusal) as caught:
        flush_of(ask(body=body))
    assert (caught.value.status, caught.value.param) == (400, field)


def test_explain_is_understood() -> None:
    """A prompt in the query, or a whole body, for the path that it fits or the one that is named."""
    by_query = explain_of(ask("GET", "model=m&prompt=a%20b"))
    assert (by_query.path, json.loads(by_query.body)) == (COMPLETIONS, {"model": "m", "prompt": "a b"})
    assert explain_of(ask(body={"messages": []})).path == CHAT
    assert explain_of(ask(body={"input": "x"})).path == "/v1/responses"
    assert explain_of(ask(query="path=/v1/messages", body={"messages": []})).path == "/v1/messages"


@pytest.mark.parametrize("query", ["", "model=m", "prompt=a&prompt=b", "prompt=a&temperature=1", "prompt", "&" * 100])
def test_bad_explain_is_refused(query: str) -> None:
    """A field too many, too few or twice."""
    with pytest.raises(Refusal) as caught:
        explain_of(ask("GET", query))
    assert caught.value.status == 400
