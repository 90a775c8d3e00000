"""The fields of a body that routing reads, and how a wrong one is reported.

Fields that are not named here are ignored. A field that has a type here is refused when its value has another one, as
every engine would refuse it; a field that is Any is checked, or passed over, where it is used.
"""

from __future__ import annotations

import re
from operator import attrgetter
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

B = TypeVar("B")

ABSENT: Final = Raw()
"""The value of a raw field that the body does not have."""

_EXPECTED = re.compile(r"Expected `(.+?)`, got `(.+?)`")
_PATH = re.compile(r" - at `\$\.?(.*)`$")
_WORDS = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}


class BadBody(Exception):
    """A body that no engine could serve.

    message: what is wrong, for the client. param: the field that is wrong; None when it is the body as a whole.
    """

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    @classmethod
    def wrong_type(cls, param: str, expected: str, value: Any) -> BadBody:
        got = "null" if value is None else _word(type(value).__name__)
        return cls(f"Invalid type for '{param}': expected {expected}, got {got}.", param)


class AnyBody(msgspec.Struct, gc=False):
    """Any JSON object that may name a model."""

    model: Any = None
    input_file_id: Any = None


class Body(msgspec.Struct, gc=False):
    """The fields that the bodies of all known APIs share.

    The fields from `cache_salt` on, which `PREAMBLE` lists, change what an engine computes from the first KV block on:
    the hash of the block (cache_salt, a LoRA adapter) or what the template prints at the front. Fields that change only
    the end of the prompt, such as add_generation_prompt, are left out: all that is before the end is shared.
    """

    model: str | None = None
    stream: Any = None
    user: Any = None
    session_id: Any = None
    prompt_cache_key: Any = None
    metadata: Any = None
    cache_salt: Any = None
    extra_key: Any = None
    lora_path: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    reasoning_effort: Any = None
    add_special_tokens: Any = None
    truncate_prompt_tokens: Any = None
    truncation_side: Any = None
    mm_processor_kwargs: Any = None
    media_io_kwargs: Any = None
    thinking: Any = None
    output_config: Any = None
    reasoning: Any = None
    previous_response_id: Any = None
    conversation: Any = None


PREAMBLE: Final = Body.__struct_fields__[Body.__struct_fields__.index("cache_salt") :]
preamble_values = attrgetter(*PREAMBLE)


class ChatBody(Body, gc=False):
    """The body of /v1/chat/completions, /v1/messages (with `system`) and /v1/embeddings (`input` or `messages`)."""

    messages: list[Any] | None = None
    input: Any = None
    system: str | list[Any] | None = None
    documents: Any = None
    tools: Raw = ABSENT
    functions: Raw = ABSENT
    tool_choice: Any = None


class CompletionBody(Body, gc=False):
    """The body of /v1/completions."""

    prompt: Any = None
    suffix: Any = None


class ResponsesBody(Body, gc=False):
    """The body of /v1/responses. Its `prompt` names a template that the server keeps; it is not the text."""

    input: str | list[Any] | None = None
    instructions: str | None = None
    tools: Raw = ABSENT
    tool_choice: Any = None
    prompt: Any = None
    store: Any = None


def decode(decoder: msgspec.json.Decoder[B], body: bytes) -> B:
    """Return the decoded body. Raises BadBody."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as exc:
        raise _explained(str(exc)) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadBody(f"The body of the request is not valid JSON: {exc}.", None) from exc


def _explained(text: str) -> BadBody:
    path = _PATH.search(text)
    param = path[1] if path is not None and path[1] else None
    found = _EXPECTED.match(text)
    if found is None:
        return BadBody(f"Invalid body: {_PATH.sub('', text)}.", param)
    where = "the body" if param is None else f"'{param}'"
    expected = " or ".join(_word(name) for name in found[1].split(" | "))
    return BadBody(f"Invalid type for {where}: expected {expected}, got {_word(found[2])}.", param)


def _word(name: str) -> str:
    return _WORDS.get(name, name)
