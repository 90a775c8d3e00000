"""Where values lie in a JSON text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.providers.bodies import json_places
from ghostcacher_router.providers.bodies.json_places import Insertion, JsonPlaces, Place, Unclear, inserted

TEXTS = st.text(alphabet='ab"\\{}[],: \n\u20ac', max_size=6)
KEYS = st.text(alphabet="ab{}[],: \u20ac", max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.sampled_from([None, 0, 2]), st.sampled_from([(",", ":"), (" , ", "\t:\r\n")]), st.booleans())
def test_every_value_is_found_where_it_lies(
    value: Any, indent: int | None, signs: tuple[str, str], ascii: bool
) -> None:
    """Whatever white space lies around it, and whatever signs strings hold."""
    text = JsonPlaces(f" {json.dumps(value, indent=indent, separators=signs, ensure_ascii=ascii)}\n".encode())

    def check(place: Place, expected: Any) -> None:
        assert json.loads(text.bytes_of(place)) == expected
        assert text.bytes_of(place) == text.bytes_of(place).strip()
        if isinstance(expected, dict):
            try:
                fields = text.fields(place)
            except Unclear:
                assert ascii
                return
            assert [key.decode() for key in fields] == list(expected)
            for found, inner in zip(fields.values(), expected.values(), strict=True):
                check(found, inner)
        elif isinstance(expected, list):
            items = text.items(place)
            assert len(items) == len(expected)
            for found, inner in zip(items, expected, strict=True):
                check(found, inner)

    check(text.top, value)


@pytest.mark.parametrize("body", [b'{"a": 1, "a": 2}', b'{"\\u0061": 1}', b'{"a": 1, "b\\\\": 2}'])
def test_unusual_keys_are_unclear(body: bytes) -> None:
    text = JsonPlaces(body)
    with pytest.raises(Unclear):
        text.fields(text.top)


def test_text_with_too_many_parts_is_unclear(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is walked of one text counts together."""
    monkeypatch.setattr(json_places, "TOKENS_MAX", 20)
    text = JsonPlaces(b"[1,2,3,4,5]")
    for _ in range(4):
        assert len(text.items(text.top)) == 5
    with pytest.raises(Unclear):
        text.items(text.top)


def test_insertions_are_put_before_their_bytes_in_order() -> None:
    given = [Insertion(3, b"y"), Insertion(0, b"a"), Insertion(1, b"b"), Insertion(1, b"c")]
    assert inserted(b"123", given) == b"a1bc23y"
