"""Equal sets of documents become equal messages, which stand behind the system text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher.client.documents import document_parts, with_documents

USER: dict[str, Any] = {"role": "user", "content": "?"}
SYSTEM: dict[str, Any] = {"role": "system", "content": "!"}
DEVELOPER: dict[str, Any] = {"role": "developer", "content": "!"}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1), st.randoms())
def test_order_and_doubles_do_not_matter(texts: list[str], random: Any) -> None:
    """And equal prefixes of sorted texts are equal prefixes of the message."""
    shuffled = [*texts, random.choice(texts)]
    random.shuffle(shuffled)
    parts = document_parts(shuffled)
    assert parts == document_parts(texts)
    assert [part["text"].encode() for part in parts] == sorted({text.encode() for text in texts})


@pytest.mark.parametrize(
    ("messages", "place"),
    [([USER], 0), ([SYSTEM, USER], 1), ([SYSTEM, DEVELOPER, USER, SYSTEM], 2), ([SYSTEM], 1)],
)
def test_documents_come_behind_the_system_text(messages: list[Any], place: int) -> None:
    found, sections = with_documents(messages, ["d"])
    assert sections == f"doc={place}"
    assert found[place]["content"] == [{"type": "text", "text": "d"}]
    assert [*found[:place], *found[place + 1 :]] == messages
