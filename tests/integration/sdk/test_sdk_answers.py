"""Answers through a real router, whole and streamed: typed, with what the shared cache did; documents and sessions."""

from __future__ import annotations

from typing import Any

import pytest

from ghostcacher_connector.core.sections import Hint, decode_hint
from tests.integration.sdk.conftest import Used
from tests.support.index_parts import wait_until
from tests.support.spoken_engine import PIECES, TEXT

ANTHROPIC = {"provider": "anthropic"}
CALLS: list[Any] = [
    pytest.param("messages.create", ANTHROPIC, {"max_tokens": 9}, id="anthropic"),
    pytest.param("messages.create", {}, {}, id="openai"),
    pytest.param("chat.completions.create", ANTHROPIC, {}, id="chat"),
    pytest.param("completions.create", {}, {}, id="completions"),
]
LONG = "A long document that is shared. " * 200


@pytest.mark.parametrize(("call", "client", "given"), CALLS)
def test_answer_has_its_text_and_its_worker(use: Used, call: str, client: Any, given: Any) -> None:
    answer = use(call, client=client, **given)
    assert (answer["text"], answer["model"]) == (TEXT, "m")
    assert answer["cache"]["worker"] == "w"
    assert answer["cache"]["request_id"]
    assert answer["cache"]["cached_tokens"] == 0


@pytest.mark.parametrize(("call", "client", "given"), CALLS)
def test_stream_has_the_same_text(use: Used, call: str, client: Any, given: Any) -> None:
    """However its bytes are cut on their way."""
    result = use(call, client=client, stream=True, **given)
    assert [text for text in result["texts"] if text] == list(PIECES)
    assert result["cache"]["worker"] == "w"


def test_cache_info_has_what_router_and_engine_say(use: Used) -> None:
    """Of a prompt that is cached: forecast, saved time and tokens, whole and streamed."""
    given = {"messages": [{"role": "user", "content": LONG + str(use)}]}
    use(**given)
    # The router learns from the worker's report what the prompt became.
    wait_until(lambda: use(**given)["cache"]["forecast_cached_tokens"])
    cache = use(**given)["cache"]
    assert cache["cached_tokens"] > 1000
    assert cache["forecast_ms"] >= 0
    assert cache["saved_ms"] > 0
    streamed = use(stream=True, stream_options={"include_usage": True}, **given)["cache"]
    assert streamed["cached_tokens"] == cache["cached_tokens"]
    streamed = use(client=ANTHROPIC, max_tokens=9, stream=True, **given)["cache"]
    assert streamed["cached_tokens"] is not None


def hint_of(use: Used) -> Hint:
    return decode_hint(use.engine.header("x-request-id"))


DOCUMENTS = ["zebra", {"title": "Apes", "text": "ape"}, "\N{GRINNING FACE}", "\uffff", "ape", "zebra"]
SORTED = ["Apes\n\nape", "ape", "zebra", "\uffff", "\N{GRINNING FACE}"]


@pytest.mark.parametrize("order", [1, -1])
def test_documents_come_sorted_and_once_and_the_router_knows_them(use: Used, order: int) -> None:
    """In the order of their bytes in UTF-8, behind the system text; the engine gets no word of how they are told."""
    use(system="Be brief.", documents=DOCUMENTS[::order], tools=[{"type": "function", "function": {"name": "f"}}])
    system, documents, question = use.engine.body()["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert [part["text"] for part in documents["content"]] == SORTED
    assert question == {"role": "user", "content": "Why?"}
    assert [end.section.name for end in hint_of(use).ends] == ["TOOLS", "SYS", "DOC", "USER"]
    assert use.engine.header("x-gc-sections") is None
    assert use.engine.body().keys() == {"model", "messages", "tools"}


def test_documents_with_anthropics_api(use: Used) -> None:
    """The system text stays beside the messages; what a document is to be kept for goes with it."""
    kept = {"text": "b", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    use(client=ANTHROPIC, max_tokens=9, system="Be brief.", documents=["b", kept, "a"])
    body = use.engine.body()
    assert body["system"] == "Be brief."
    assert body["messages"][0]["content"] == [{"type": "text", "text": "a"}, {"type": "text", **kept}]
    ends = hint_of(use).ends
    assert [end.section.name for end in ends] == ["SYS", "DOC", "USER"]
    assert ends[1].retain_s == 3600


def test_without_documents_nothing_is_added(use: Used) -> None:
    use(documents=[], system="")
    assert use.engine.body() == {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}


def test_session_of_the_call_goes_before_that_of_the_client(use: Used) -> None:
    """The router tells the worker its tag; the name itself goes no further than the router."""
    messages = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "?"},
    ]
    tags = []
    for options in ({}, {"session": "bob"}, {"session": "alice"}):
        use(client={"session": "alice"}, options=options, messages=messages)
        assert use.engine.header("x-gc-session") is None
        tags.append(hint_of(use).session)
    assert tags[0] == tags[2] != tags[1]
    assert None not in tags


def test_keys_go_to_engines_and_tokens_to_the_router_alone(use: Used) -> None:
    keys = {"api_key": "key", "admin_token": "token", "headers": {"X-Mine": "1"}}
    use(client=keys, options={"headers": {"X-Other": "2"}})
    headers = use.engine.asked[-1].headers
    assert (headers[b"authorization"], headers[b"x-mine"], headers[b"x-other"]) == (b"Bearer key", b"1", b"2")
    assert b"x-api-key" not in headers
    use(client=keys | ANTHROPIC, max_tokens=9)
    headers = use.engine.asked[-1].headers
    assert (headers[b"authorization"], headers[b"x-api-key"]) == (b"Bearer key", b"key")
    assert headers[b"anthropic-version"] == b"2023-06-01"
    assert not any(b"token" in request.head for request in use.engine.asked)


def test_fields_that_only_an_engine_knows_get_through(use: Used) -> None:
    use(options={"extra_body": {"cache_salt": "s"}}, temperature=0)
    assert use.engine.body()["cache_salt"] == "s"
    assert use.engine.body()["temperature"] == 0
