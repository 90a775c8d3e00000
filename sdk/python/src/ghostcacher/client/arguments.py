"""What calls take, and the checks of it. A wrong argument raises ArgumentError, which names it, and nothing is sent."""

# Annotations are evaluated here: which arguments are required is read from them at run time.

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Required, TypedDict
from urllib.parse import urlsplit

from ghostcacher.client.errors import ArgumentError

Provider = Literal["anthropic", "openai"]
PROVIDERS = ("anthropic", "openai")
Json = Mapping[str, Any]
"""An object as JSON has it."""
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_SESSION = re.compile(r"[\x21-\x7e]{1,256}")


class Document(TypedDict, total=False):
    """A text that requests share."""

    text: Required[str]
    """What the model reads."""
    title: str
    """Printed before the text."""
    cache_control: Json
    """Anthropic's wish to keep everything up to here: ``{"type": "ephemeral", "ttl": "1h"}``."""


class CallArguments(TypedDict, total=False):
    """What every call takes beside the fields of its API."""

    session: str | None
    """Your name for the conversation, for this call; the client's otherwise."""
    timeout_s: float | None
    """As the client's, for this call."""
    retries_max: int | None
    """As the client's, for this call."""
    headers: Mapping[str, str]
    """More headers."""
    extra_body: Json
    """More fields of the body: those of your engine that the API does not have, such as ``cache_salt``."""


class CompletionArguments(CallArguments, total=False):
    """What completions.create takes."""

    model: Required[str]
    prompt: Required[str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]]
    """Text, or token ids, or several of either."""
    suffix: str
    max_tokens: int
    temperature: float
    top_p: float
    n: int
    seed: int
    stop: str | Sequence[str]
    echo: bool
    logprobs: int
    presence_penalty: float
    frequency_penalty: float
    stream_options: Json
    user: str
    metadata: Mapping[str, str]


class PromptArguments(CallArguments, total=False):
    """What both APIs with messages take."""

    model: Required[str]
    messages: Required[Sequence[Json]]
    system: str | Sequence[Json]
    """System text, or parts of it."""
    tools: Sequence[Json]
    """In the form of the API."""
    documents: Sequence[str | Document]
    """Texts that requests share. They are sent in an order of their own, without doubles, as one message before yours,
    so that equal sets of them begin equal prompts; and the router is told which message that is."""
    temperature: float
    top_p: float
    metadata: Json


class MessageArguments(PromptArguments, total=False):
    """What messages.create takes with Anthropic's API."""

    max_tokens: Required[int]
    top_k: int
    stop_sequences: Sequence[str]
    tool_choice: Json
    thinking: Json


class ChatArguments(PromptArguments, total=False):
    """What chat.completions.create takes; with OpenAI's API messages.create, too."""

    max_tokens: int
    max_completion_tokens: int
    tool_choice: str | Json
    parallel_tool_calls: bool
    n: int
    seed: int
    stop: str | Sequence[str]
    logprobs: bool
    top_logprobs: int
    logit_bias: Mapping[str, float]
    presence_penalty: float
    frequency_penalty: float
    response_format: Json
    reasoning_effort: str
    stream_options: Json
    user: str
    prompt_cache_key: str


CALL_NAMES = frozenset(CallArguments.__annotations__)


def check_known(given: Collection[str], known: Collection[str]) -> None:
    """Raise ArgumentError for a name that is not known."""
    for name in given:
        if name not in known:
            raise ArgumentError(name, "unknown; fields that only your engine knows go into extra_body")


def check_present(given: Mapping[str, object], required: Collection[str]) -> None:
    """Raise ArgumentError for an argument that is missing."""
    for name in sorted(required):
        if name not in given:
            raise ArgumentError(name, "expected it, got nothing")


def text(field: str, value: object) -> str:
    """Return a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ArgumentError(field, f"expected a text, got {shown(value)}")
    return value


def count(field: str, value: object, *, at_least: int) -> int:
    """Return a whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ArgumentError(field, f"expected a whole number from {at_least}, got {shown(value)}")
    return value


def seconds(field: str, value: object) -> float:
    """Return a time."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ArgumentError(field, f"expected a number of seconds above 0, got {shown(value)}")
    return float(value)


def objects(field: str, value: object) -> list[Json]:
    """Return a list of objects."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ArgumentError(field, f"expected a list, got {shown(value)}")
    for index, each in enumerate(value):
        if not isinstance(each, Mapping):
            raise ArgumentError(f"{field}[{index}]", f"expected an object, got {shown(each)}")
    return list(value)


def messages(value: object) -> list[Json]:
    """Return messages, each of which has a role."""
    found = objects("messages", value)
    if not found:
        raise ArgumentError("messages", "expected at least one, got none")
    for index, message in enumerate(found):
        text(f"messages[{index}].role", message.get("role"))
    return found


def session(field: str, value: object) -> str:
    """Return the name of a session, which is sent in a header."""
    if not isinstance(value, str) or not _SESSION.fullmatch(value):
        raise ArgumentError(field, f"expected 1 to 256 printable ASCII characters without spaces, got {shown(value)}")
    return value


def headers(field: str, value: object) -> dict[str, str]:
    """Return headers by their names in small letters."""
    if not isinstance(value, Mapping):
        raise ArgumentError(field, f"expected an object, got {shown(value)}")
    for name, one in value.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ArgumentError(field, f"expected the name of a header, got {shown(name)}")
        header_value(f"{field}.{name}", one)
    return {name.lower(): one for name, one in value.items()}


def header_value(field: str, value: object, *, secret: bool = False) -> str:
    """Return the value of a header. secret: it is not to be shown."""
    if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
        raise ArgumentError(field, f"expected printable ASCII characters{'' if secret else f', got {shown(value)}'}")
    return value


def router_url(field: str, value: object) -> str:
    """Return the base URL of a router, without a path /v1."""
    url = text(field, value).rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(url)
        fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        fine = False
    if not fine or parts.query or parts.fragment or parts.username is not None:
        raise ArgumentError(field, f"expected a URL such as http://router:8000, got {shown(value)}")
    return url


def json_of(body: Json) -> bytes:
    """Return a body as JSON. Raises ArgumentError, which names the field that JSON cannot have."""
    pieces = []
    for name, value in body.items():
        try:
            pieces.append(f"{json.dumps(name)}:{json.dumps(value, allow_nan=False, ensure_ascii=False)}".encode())
        except (TypeError, ValueError, RecursionError) as exc:
            raise ArgumentError(name, f"expected what JSON has, got something else: {exc}") from None
    return b"{" + b",".join(pieces) + b"}"


def shown(value: object) -> str:
    """Return a value for a message."""
    return repr(value)[:100]
