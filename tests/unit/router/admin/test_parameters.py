"""What the requests to the admin API mean."""

from __future__ import annotations

import json

import pytest

from ghostcacher_connector.core.types import FlushScope
from ghostcacher_router.admin.parameters import (
    CHAT,
    COMPLETIONS,
    FlushTarget,
    PrefetchTarget,
    draining_of,
    explain_of,
    flush_of,
    prefetch_of,
)
from ghostcacher_router.http.protocol.local_response import LocalRequest
from ghostcacher_router.http.protocol.refusal import Refusal


def ask(method: str = "POST", query: str = "", body: object = None) -> LocalRequest:
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return LocalRequest(method, "/gc/x", query, {}, data, None)


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
        ({"scope": "tools"}, FlushTarget(FlushScope.TOOLS)),
        ({"scope": "prefix", "blocks": ["00ff", "aa"]}, FlushTarget(FlushScope.PREFIX, blocks=(b"\x00\xff", b"\xaa"))),
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
        ({"scope": "prefix", "key": "00", "blocks": ["00"]}, "request"),
        ({"scope": "tools", "blocks": ["00"]}, "blocks"),
        *(({"scope": "doc", "blocks": blocks}, "blocks") for blocks in ([], "00", ["xy"], [""], [1], ["00" * 129], {})),
        ({"scope": "doc", "blocks": ["00"] * 4097}, "blocks"),
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


def test_prefetch_is_understood() -> None:
    """The body of a request; where it goes, and to whom, is ours."""
    assert prefetch_of(ask(body={"messages": [1], "worker": "w"})) == PrefetchTarget(CHAT, {"messages": [1]}, "w")
    assert prefetch_of(ask(body={"model": "m", "prompt": "x"})) == PrefetchTarget(
        COMPLETIONS, {"model": "m", "prompt": "x"}, None
    )
    given = {"path": "/v1/messages", "messages": [1]}
    assert prefetch_of(ask(body=given)).path == "/v1/messages"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], None),
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"prompt": ""}, "prompt"),
        ({"input": "x"}, "path"),
        ({"path": "/v1/embeddings", "prompt": "x"}, "path"),
        ({"prompt": "x", "worker": ""}, "worker"),
        ({"prompt": "x", "worker": 1}, "worker"),
    ],
)
def test_bad_prefetch_names_the_field(body: object, field: str | None) -> None:
    """Before anybody computes anything."""
    with pytest.raises(Refusal) as caught:
        prefetch_of(ask(body=body))
    assert (caught.value.status, caught.value.param) == (400, field)
