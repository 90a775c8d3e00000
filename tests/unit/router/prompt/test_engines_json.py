"""JSON that engines read is read, too, and gives the same prompt: encodings, marks, numbers that are none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ghostcacher_router.prompt import BadBody, parse_body, parse_now
from ghostcacher_router.types import RequestShape
from tests.support.prompts import CHAT, COMPLETIONS, EMBEDDINGS, KNOWN, LONG, SEED, say, shape

TEXT = json.dumps({"model": "m", "messages": [say("user", "häßlich 😀 " + LONG)]}, ensure_ascii=False)
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encoding_changes_no_prompt(encoding: str) -> None:
    """Whatever Python's json detects; read at once or not."""
    plain = parse_body(CHAT, TEXT.encode(), {}, SEED)
    assert plain.prompt is not None
    for parse in (parse_body, parse_now):
        assert parse(CHAT, TEXT.encode(encoding), {}, SEED) == plain


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_number_that_is_none_is_read_over(number: str) -> None:
    """In a field that routing does not read, and in one that it does."""
    plain = parse_body(CHAT, TEXT.encode(), {}, SEED)
    marked = TEXT.replace('"model"', f'"temperature":{number},"model"').encode()
    assert parse_now(CHAT, marked, {}, SEED) == parse_body(CHAT, marked, {}, SEED) == plain
    assert parse_body("/tokenize", f'{{"model":{number}}}'.encode(), {}, SEED).model is None
    tool = TEXT.replace('"model"', f'"tools":[{{"x":{number}}}],"model"').encode()
    assert parse_body(CHAT, tool, {}, SEED).prompt is not None


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_model_of_another_path_is_read_in_any_encoding(encoding: str) -> None:
    """As everywhere."""
    body = '{"model": "m", "x": NaN}'.encode(encoding)
    assert parse_body("/tokenize", body, {}, SEED) == RequestShape("m", False, None, None)


@pytest.mark.parametrize(
    "body",
    [b'{"model":"m",}', b'{"a":1} x', b"{'a':1}", b'{"a":\xff}', b'\xff\xfe{"', b'{"a":"\0"}', b"NaN x"],
)
@pytest.mark.parametrize("path", KNOWN)
def test_what_engines_do_not_read_is_refused(path: str, body: bytes) -> None:
    """Lenient is not careless."""
    with pytest.raises(BadBody) as caught:
        parse_body(path, body, {}, SEED)
    assert "not valid JSON" in caught.value.message


@pytest.mark.parametrize(
    "given", [[{"type": "text", "text": "x"}], [{"text": "a", "image": "http://x/a.png"}, {"image": "http://x/b.png"}]]
)
def test_multimodal_input_of_embeddings_is_the_engines_affair(given: Any) -> None:
    """It has no prompt that another one shares."""
    assert shape(EMBEDDINGS, {"model": "m", "input": given}) == RequestShape("m", False, None, None)


def test_whole_numbers_with_a_point_are_token_ids() -> None:
    """Engines convert them; what is no whole number they refuse."""
    assert shape(COMPLETIONS, {"prompt": [1, 2.0, 3e0]}) == shape(COMPLETIONS, {"prompt": [1, 2, 3]})
    for wrong in (1.5, -1.0, 1e300, "1", [1]):
        with pytest.raises(BadBody, match="token ids"):
            shape(COMPLETIONS, {"prompt": [1, wrong]})
