"""From arguments to requests: one function for each API. Nothing is sent here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from ghostcacher.client import arguments
from ghostcacher.client.answers import Answer, ChatChunk, ChatCompletion, Completion, Message, MessageEvent
from ghostcacher.client.arguments import (
    CALL_NAMES,
    ChatArguments,
    CompletionArguments,
    Json,
    MessageArguments,
    check_known,
    check_present,
    json_of,
)
from ghostcacher.client.documents import with_documents
from ghostcacher.client.errors import ArgumentError
from ghostcacher.client.options import Options

A_co = TypeVar("A_co", bound=Answer, covariant=True)
E_co = TypeVar("E_co", bound=ChatChunk | Completion | MessageEvent, covariant=True)

SECTIONS = "x-gc-sections"
"""The header that tells the router which messages are documents. It stays at the router."""
SECTIONS_FIELD = "gc_sections"
"""The same in a body's metadata, where there are no headers: for explain, prefetch and flush."""
SESSION = "x-gc-session"


class Api(NamedTuple, Generic[A_co, E_co]):
    """One API of the engines."""

    path: str
    """Where it is."""
    answer: type[A_co]
    """What it answers."""
    event: type[E_co]
    """What it streams."""
    takes: type
    """The arguments of a call."""


MESSAGES = Api("/v1/messages", Message, MessageEvent, MessageArguments)
CHAT = Api("/v1/chat/completions", ChatCompletion, ChatChunk, ChatArguments)
COMPLETIONS = Api("/v1/completions", Completion, Completion, CompletionArguments)


class Call(NamedTuple):
    """One request, as it is to be sent."""

    method: str
    """Of HTTP."""
    url: str
    """With its path and query."""
    headers: Mapping[str, str]
    """All of them that are ours to set."""
    body: bytes | None
    """JSON; None of a request without a body."""
    timeout_s: float
    """For the answer to begin, and for each next part of it."""
    retries_max: int
    """How often it is sent again."""


class PromptRequest(NamedTuple):
    """A request as it would be sent to engines, for `admin.explain`, `admin.prefetch` and `admin.flush`."""

    path: str
    """Where it would be sent, such as /v1/chat/completions."""
    body: Json
    """Its body."""


def prompt_request(api: Api[Any, Any], given: Mapping[str, Any]) -> PromptRequest:
    """Return what a call would send, with its sections named in the body. Raises ArgumentError."""
    body, sections = _body(api, given)
    if sections is not None:
        body["metadata"] = {**body.get("metadata", {}), SECTIONS_FIELD: sections}
    json_of(body)
    return PromptRequest(api.path, body)


def engine_call(options: Options, api: Api[Any, Any], given: Mapping[str, Any], *, stream: object) -> Call:
    """Return the request of a call to engines. Raises ArgumentError."""
    if not isinstance(stream, bool):
        raise ArgumentError("stream", f"expected true or false, got {arguments.shown(stream)}")
    body, sections = _body(api, given)
    if stream:
        body["stream"] = True
    headers = options.engine_headers() | arguments.headers("headers", given.get("headers") or {})
    session = options.session if (named := given.get("session")) is None else arguments.session("session", named)
    if session is not None:
        headers[SESSION] = session
    if sections is not None:
        if SECTIONS in headers:
            raise ArgumentError(f"headers.{SECTIONS}", "expected none beside documents, whose place it names")
        headers[SECTIONS] = sections
    timeout_s, retries_max = given.get("timeout_s"), given.get("retries_max")
    return Call(
        method="POST",
        url=options.url + api.path,
        headers={"content-type": "application/json", **headers},
        body=json_of(body),
        timeout_s=options.timeout_s if timeout_s is None else arguments.seconds("timeout_s", timeout_s),
        retries_max=options.retries_max
        if retries_max is None
        else arguments.count("retries_max", retries_max, at_least=0),
    )


def admin_call(options: Options, method: str, path: str, body: Json | None = None) -> Call:
    """Return a request to the router itself. Raises ArgumentError."""
    headers = options.admin_headers()
    if body is not None:
        headers["content-type"] = "application/json"
    data = None if body is None else json_of(body)
    return Call(method, options.url + path, headers, data, options.timeout_s, options.retries_max)


def _body(api: Api[Any, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the body of a call, and what the router is to be told of its sections."""
    check_known(given, api.takes.__annotations__)
    check_present(given, api.takes.__required_keys__)  # type: ignore[attr-defined]
    extra = given.get("extra_body") or {}
    if not isinstance(extra, Mapping):
        raise ArgumentError("extra_body", f"expected an object, got {arguments.shown(extra)}")
    body = {name: given[name] for name in given if name not in CALL_NAMES and name != "documents"}
    for name in extra:
        if name in body or name in {"stream", "documents"}:
            raise ArgumentError(f"extra_body.{name}", f"expected it as an argument of its own, {name}")
    arguments.text("model", body["model"])
    if "max_tokens" in body:
        arguments.count("max_tokens", body["max_tokens"], at_least=1)
    if "tools" in body:
        arguments.objects("tools", body["tools"])
    if "metadata" in body and not isinstance(body["metadata"], Mapping):
        raise ArgumentError("metadata", f"expected an object, got {arguments.shown(body['metadata'])}")
    sections = None
    if "messages" in api.takes.__annotations__:
        body["messages"] = arguments.messages(body["messages"])
        if "system" in body:
            _place_system(api, body)
        if given.get("documents") is not None:
            body["messages"], sections = with_documents(body["messages"], given["documents"])
    if sections is not None and SECTIONS_FIELD in body.get("metadata", {}):
        raise ArgumentError(f"metadata.{SECTIONS_FIELD}", "expected none beside documents, whose place it names")
    return {**body, **extra}, sections


def _place_system(api: Api[Any, Any], body: dict[str, Any]) -> None:
    """Put the system text where the API wants it: Anthropic's beside the messages, OpenAI's before them."""
    system = body["system"]
    if not isinstance(system, str):
        system = arguments.objects("system", system)
    if api is not MESSAGES:
        del body["system"]
        if system:
            body["messages"] = [{"role": "system", "content": system}, *body["messages"]]
