"""The id at the beginning of an answer: found in whatever pieces it comes, and never waited for."""

from __future__ import annotations

import json

import pytest

from ghostcacher_router.http.protocol.answer_id import LOOK_BYTES_MAX, AnswerIdFinder

HEAD = b'HTTP/1.1 200 OK\r\nx-odd: {"id": "head"}\r\n\r\n'
JSON = HEAD + b'{"id":"resp_1","object":"response","previous_response_id":"resp_0"}'
VLLM_EVENT = b'event: response.created\ndata: {"response":{"id":"resp_1","created_at":1},"type":"response.created"}\n\n'
OPENAI_EVENT = (
    b'event: response.created\ndata: {"type": "response.created", "response": {"id": "resp_1", "x": 1}}\n\n'
    b'data: {"item": {"id": "msg_2"}}\n\n'
)
FILE = HEAD + b'{ "object": "file", "bytes": 1, "id": "file-abc" }'


def fed(*pieces: bytes) -> tuple[list[str], list[bytes]]:
    ids: list[str] = []
    passed: list[bytes] = []
    finder = AnswerIdFinder(passed.append, ids.append)
    for piece in pieces:
        finder(piece)
    return ids, passed


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (JSON, "resp_1"),
        (HEAD + VLLM_EVENT, "resp_1"),
        (HEAD + b"5c\r\n" + OPENAI_EVENT, "resp_1"),
        (FILE, "file-abc"),
        (HEAD + json.dumps({"id": "a name of the client's own!"}, indent=2).encode(), None),
        (HEAD + b'{"id":"plain"}', "plain"),
        (HEAD + b'"a6e0"', "a6e0"),
        (HEAD + b'["a6e0"]', None),
        (HEAD + b'{"object":"list","data":[]}', None),
        (HEAD + b'{"id":""}', None),
        (HEAD + b'{"id":"resp_' + b"x" * 300 + b'"}', None),
    ],
)
def test_id_is_found_in_any_pieces(answer: bytes, expected: str | None, size: int) -> None:
    """Once, in the body only; every piece is passed on as it comes."""
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    ids, passed = fed(*pieces)
    assert passed == pieces
    assert ids == ([] if expected is None else [expected])


def test_id_is_looked_for_at_the_beginning_only() -> None:
    """What lies further back is not looked at, and nothing is kept of it."""
    ids, passed = fed(HEAD, *[b" " * 1000] * (LOOK_BYTES_MAX // 1000 + 1), b'{"id":"resp_late"}')
    assert ids == []
    assert b"".join(passed).endswith(b'resp_late"}')


def test_id_is_known_before_the_bytes_are_passed_on() -> None:
    """The client's next request may come at once."""
    order: list[object] = []
    AnswerIdFinder(order.append, order.append)(JSON)
    assert order == ["resp_1", JSON]
