"""How a request names the sections of its messages: in a header or the metadata, by the new name or the old one."""

from __future__ import annotations

from typing import Any

import pytest

from ghostcacher_router.prompt import BadBody
from tests.support.prompts import LONG, chat, say, sections

HEADERS = [b"x-gc-sections", b"x-gc-blocks"]
FIELDS = ["gc_sections", "gc_blocks"]
TALK = [say("system", "s"), say("user", LONG), say("assistant", "ok"), say("user", "x")]
PLAIN = ["SYS", "SESSION", "USER"]
DOCUMENT = ["SYS", "DOC", "SESSION", "USER"]


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        *(({"metadata": {field: "doc=1"}}, {}) for field in FIELDS),
        *(({}, {header: b"session=2 doc=1"}) for header in HEADERS),
        *(({}, {header: b"doc=1"}) for header in HEADERS),
    ],
)
def test_request_names_its_documents(fields: Any, headers: Any) -> None:
    """A message that is named a document ends a section and is part of the prefix key; the text stays."""
    named, plain = chat(*TALK, headers=headers, **fields), chat(*TALK)
    assert (sections(named), sections(plain)) == (DOCUMENT, PLAIN)
    assert set(plain.digests) <= set(named.digests)
    assert named.prefix_key != plain.prefix_key
    other = [*TALK[:1], say("user", LONG + "!"), *TALK[2:]]
    assert chat(*other, headers=headers, **fields).prefix_key != named.prefix_key


@pytest.mark.parametrize("other", [b"session=1", b"malformed", b"doc=99"])
def test_new_header_counts_before_its_alias(other: bytes) -> None:
    """The old header is not read at all, not even to find it wrong, whichever of them comes first."""
    one = {b"x-gc-sections": b"doc=1", b"x-gc-blocks": other}
    two = {b"x-gc-blocks": other, b"x-gc-sections": b"doc=1"}
    assert sections(chat(*TALK, headers=one)) == sections(chat(*TALK, headers=two)) == DOCUMENT


@pytest.mark.parametrize("other", ["session=1", "malformed", 5])
def test_new_field_counts_before_its_alias(other: Any) -> None:
    """The same in the metadata; a new name that says null was not given."""
    assert sections(chat(*TALK, metadata={"gc_blocks": other, "gc_sections": "doc=1"})) == DOCUMENT
    assert sections(chat(*TALK, metadata={"gc_blocks": "doc=1", "gc_sections": None})) == DOCUMENT


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("field", FIELDS)
def test_header_counts_before_the_body(header: bytes, field: str) -> None:
    """Whoever stands between client and router can name sections without touching the body."""
    assert sections(chat(*TALK, headers={header: b"doc=1"}, metadata={field: "session=1"})) == DOCUMENT
    assert sections(chat(*TALK, headers={header: b""}, metadata={field: "doc=1"})) == PLAIN


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("text", [b"doc", b"doc=", b"doc=1;", b"doc=-1", b"doc=4", b"user=\xb2", b"doc=1 " * 1000])
def test_malformed_header_is_refused_by_the_name_that_was_sent(text: bytes, header: bytes) -> None:
    """A header that cannot be followed is an error, never a guess."""
    with pytest.raises(BadBody) as caught:
        chat(*(say("user", "x") for _ in range(4)), headers={header: text})
    assert caught.value.param == header.decode()
    assert f"'{header.decode()}'" in caught.value.message


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [5, "doc=1", "tools=0"])
def test_malformed_field_is_refused_by_the_name_that_was_sent(value: Any, field: str) -> None:
    """So the client finds it in what it wrote."""
    with pytest.raises(BadBody) as caught:
        chat(say("user", "x"), metadata={field: value})
    assert caught.value.param == f"metadata.{field}"
    assert f"'metadata.{field}'" in caught.value.message
