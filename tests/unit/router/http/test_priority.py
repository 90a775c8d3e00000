"""A request's priority in its body: where engines look for it, whatever the body said before."""

from __future__ import annotations

import json

import pytest

from ghostcacher_router.http.exchanges.priority import prioritised
from ghostcacher_router.types import Body, LongBody, Turn

PATH = "/v1/chat/completions"


def told(body: Body, path: str = PATH, priority: int | None = -3) -> Body:
    turn = Turn(0.0, len(body))
    turn.tells = priority
    return prioritised(body, path, turn)


@pytest.mark.parametrize("body", [b'{"prompt":"x"}', b' {"a":1, "priority": 99}\r\n ', b'{"text":"}"}'])
def test_last_field_of_the_name_counts(body: bytes) -> None:
    """As it does to every engine's parser; all else stays."""
    found = told(body)
    assert isinstance(found, bytes)
    assert json.loads(found) == json.loads(body) | {"priority": -3}


def test_long_body_stays_in_its_pieces() -> None:
    pieces = [b'{"prompt":"', b"x" * 100, b'"} \n']
    found = told(LongBody(pieces))
    assert isinstance(found, LongBody)
    assert json.loads(found.join()) == {"prompt": "x" * 100, "priority": -3}
    assert len(found) == len(found.join())
    assert found.pieces[1] is pieces[1]


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"{ }", b"[1]", b'"{}', b"x}", '{"a":1}'.encode("utf-16"), '{"a":1}'.encode("utf-16-be")],
)
def test_what_is_no_object_in_utf_8_stays_as_it_is(body: bytes) -> None:
    assert told(body) == body


def test_other_apis_and_requests_without_one_stay_as_they_are() -> None:
    """Anthropic's has no such field, and may refuse it."""
    body = b'{"a":1}'
    assert told(body, "/v1/messages") == body
    assert told(body, priority=None) == body
    assert prioritised(body, PATH, None) == body
