"""The fields of a body that routing reads, and how a wrong one is reported.

Fields that are not named here are ignored. A field that has a type here is refused when its value has another one, as
every engine would refuse it; a field that is Any is checked, or passed over, where it is used.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec import Raw

from ghostcacher_router.prompt.transfers import TRANSFER_FIELDS

B = TypeVar("B", bound="Body")

ABSENT: Final = Raw()
"""The value of a raw field that the body does not have."""

DEPTH_MAX: Final = 128
"""The deepest nesting of a body that is passed on. vLLM hands fields such as kv_transfer_params to its engine core,
which dies of some 900 levels; a widely used library (Rust's serde_json) takes no more than 128 either."""

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
        got = "null" if value is None else in_words_of_json(type(value).__name__)
        return cls(f"Invalid type for '{param}': expected {expected}, got {got}.", param)


class TooDeep(BadBody):
    """A body that is nested too deeply."""

    def __init__(self) -> None:
        super().__init__(f"The body of the request is nested too deeply: expected at most {DEPTH_MAX} levels.", None)


class TakesLong(Exception):
    """Reading on takes longer than it may."""


def in_words_of_json(name: str) -> str:
    """Return what JSON calls a type of Python."""
    return _WORDS.get(name, name)


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
    session_params: Any = None
    priority: Any = None
    kv_transfer_params: Any = None
    ec_transfer_params: Any = None
    vllm_xargs: Any = None
    bootstrap_host: Any = None
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
    """The body of /v1/chat/completions and /v1/messages (with `system`)."""

    messages: list[Any] | None = None
    system: str | list[Any] | None = None
    documents: Any = None
    tools: Raw = ABSENT
    functions: Raw = ABSENT
    tool_choice: Any = None


class RawMessages(msgspec.Struct):
    """The messages of a chat, as they stand in its body."""

    messages: list[Raw] = []


class EmbeddingsBody(ChatBody, gc=False):
    """The body of /v1/embeddings: `input` or `messages`."""

    input: Any = None


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


Scalar = str | int | float | bool | None
_SCALARS: Final = """
stream user session_id prompt_cache_key
temperature top_p top_k min_p n best_of seed max_tokens max_completion_tokens max_output_tokens min_tokens
presence_penalty frequency_penalty repetition_penalty logprobs top_logprobs prompt_logprobs echo ignore_eos
skip_special_tokens add_generation_prompt continue_final_message include_reasoning return_token_ids priority
request_id parallel_tool_calls store service_tier safety_identifier verbosity truncation background
encoding_format dimensions
"""
"""Fields whose values have nothing inside: the first four and `priority` are read here, too, and the others by engines
alone."""


def ordinary(body: type[B]) -> type[B]:
    """Return a type for bodies of well-known fields alone, with shallow values in those that routing does not walk."""
    fields: dict[str, Any] = dict.fromkeys(_SCALARS.split(), Scalar)
    fields |= dict.fromkeys(("stop", "stop_sequences", "stop_token_ids", "include"), Scalar | list[Scalar])
    fields |= dict.fromkeys(("metadata", "stream_options"), dict[str, Scalar] | None)
    fields["tool_choice"] = Scalar | dict[str, Scalar | dict[str, Scalar]]
    fields |= dict.fromkeys(("documents", *TRANSFER_FIELDS))
    defined = [(name, field, None) for name, field in fields.items()]
    made = msgspec.defstruct("Ordinary", defined, bases=(body,), forbid_unknown_fields=True, gc=False)
    return cast(type[B], made)
