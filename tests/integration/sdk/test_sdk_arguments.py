"""Arguments that make no sense are refused before anything is sent, by name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.sdk.conftest import Used

GIVEN: list[tuple[dict[str, Any], str, str]] = [
    ({"model": ""}, "model", "expected a text, got "),
    ({"messages": []}, "messages", "expected at least one, got none"),
    ({"messages": "Why?"}, "messages", "expected a list, got "),
    ({"messages": ["Why?"]}, "messages[0]", "expected an object, got "),
    ({"messages": [{"role": "user", "content": "a"}, {"content": "b"}]}, "messages[1].role", "expected a text, got "),
    ({"system": 7}, "system", "expected a list, got 7"),
    ({"system": ["Be brief."]}, "system[0]", "expected an object, got "),
    ({"tools": {}}, "tools", "expected a list, got {}"),
    ({"tools": [1]}, "tools[0]", "expected an object, got 1"),
    ({"max_tokens": 0}, "max_tokens", "expected a whole number from 1, got 0"),
    ({"stream": "yes"}, "stream", "expected true or false, got "),
    ({"metadata": "m"}, "metadata", "expected an object, got "),
    ({"documents": "text"}, "documents", "expected a list, got "),
    ({"documents": ["a", ""]}, "documents[1]", "expected a text, got "),
    ({"documents": [7]}, "documents[0]", "expected a text, or an object with a text, got 7"),
    ({"documents": [{"title": "t"}]}, "documents[0].text", "expected a text, got "),
    ({"documents": [{"text": "a", "title": 1}]}, "documents[0].title", "expected a text, got 1"),
    ({"documents": [{"text": "a", "name": "b"}]}, "documents[0].name", "unknown; known are text, title, cache_control"),
    ({"documents": [{"text": "a", "cache_control": "1h"}]}, "documents[0].cache_control", "expected an object, got "),
    ({"documents": ["a\ud83d"]}, "documents[0]", "expected Unicode, got half of a surrogate pair"),
    (
        {"documents": ["a"], "metadata": {"gc_sections": "doc=0"}},
        "metadata.gc_sections",
        "expected none beside documents",
    ),
    ({"documnts": ["a"]}, "documnts", "unknown; "),
]
CLIENT: list[tuple[dict[str, Any], str, str]] = [
    ({"provider": "bedrock"}, "provider", "expected one of anthropic, openai, got "),
    ({"ghostcacher_url": "router:8000"}, "ghostcacher_url", "expected a URL such as http://router:8000, got "),
    ({"ghostcacher_url": "http://a:b@c"}, "ghostcacher_url", "expected a URL such as http://router:8000, got "),
    ({"api_key": "a\nb"}, "api_key", "expected printable ASCII characters"),
    ({"session": "a b"}, "session", "expected 1 to 256 printable ASCII characters without spaces, got "),
    ({"timeout_s": 0}, "timeout_s", "expected a number of "),
    ({"timeout_s": "1"}, "timeout_s", "expected a number of "),
    ({"retries_max": -1}, "retries_max", "expected a whole number from 0, got -1"),
    ({"headers": {"a b": "c"}}, "headers", "expected the name of a header, got "),
    ({"headers": {"a": "b\r\nc"}}, "headers.a", "expected printable ASCII characters, got "),
    ({"colour": "red"}, "colour", "unknown; known are "),
]
OPTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"session": ""}, "session", "expected 1 to 256 printable ASCII characters without spaces, got "),
    ({"timeout_s": -1}, "timeout_s", "expected a number of "),
    ({"retries_max": 1.5}, "retries_max", "expected a whole number from 0, got 1.5"),
    ({"headers": {"a": 1}}, "headers.a", "expected printable ASCII characters, got 1"),
    ({"headers": {"X-GC-Sections": "doc=0"}}, "headers.x-gc-sections", "expected none beside documents"),
    ({"extra_body": {"documents": []}}, "extra_body.documents", "expected it as an argument of its own"),
    ({"extra_body": {"model": "n"}}, "extra_body.model", "expected it as an argument of its own"),
]
NODES = {
    "ghostcacher_url": "ghostcacherUrl",
    "api_key": "apiKey",
    "timeout_s": "timeoutMs",
    "retries_max": "retriesMax",
    "extra_body.documents": "extraBody.documents",
    "extra_body.model": "extraBody.model",
}
"""Fields that Node's client calls otherwise."""


def check(use: Used, what: dict[str, Any], field: str, why: str) -> None:
    asked = len(use.engine.asked)
    result = use(**what)
    assert result["error"] == "ArgumentError", result
    assert result["field"] in {field, NODES.get(field)}
    assert result["message"].startswith(f"{result['field']}: {why}")
    assert len(use.engine.asked) == asked


@pytest.mark.parametrize(("given", "field", "why"), GIVEN, ids=lambda value: str(value)[:30])
def test_field_of_the_api(use: Used, given: dict[str, Any], field: str, why: str) -> None:
    check(use, given, field, why)


@pytest.mark.parametrize(("client", "field", "why"), CLIENT, ids=lambda value: str(value)[:30])
def test_setting_of_the_client(use: Used, client: dict[str, Any], field: str, why: str) -> None:
    check(use, {"client": client}, field, why)


@pytest.mark.parametrize(("options", "field", "why"), OPTIONS, ids=lambda value: str(value)[:30])
def test_option_of_the_call(use: Used, options: dict[str, Any], field: str, why: str) -> None:
    check(use, {"options": options, "documents": ["a"]}, field, why)


def test_what_anthropics_api_requires(use: Used) -> None:
    check(use, {"client": {"provider": "anthropic"}}, "max_tokens", "expected it, got nothing")


def test_secret_is_not_shown(use: Used) -> None:
    assert "hunter2" not in use(client={"api_key": "hunter2\n"})["message"]
