"""What the APIs answer, typed. Fields that are not here are in `raw`."""

from __future__ import annotations

from typing import Any

import msgspec

from ghostcacher.client.cache_info import CacheInfo


class Answer(msgspec.Struct, kw_only=True):
    """What all answers have."""

    cache: CacheInfo = msgspec.field(default_factory=CacheInfo, name="x-gc-cache")
    """What the shared cache did for the request."""
    raw: dict[str, Any] = msgspec.field(default_factory=dict, name="x-gc-raw")
    """The answer as it came."""


class FunctionCall(msgspec.Struct):
    """What the model calls. In a stream each delta has a piece of it."""

    name: str | None = None
    """Of the function."""
    arguments: str | None = None
    """JSON, as the model wrote it: it may be malformed."""


class ToolCall(msgspec.Struct):
    """A call of a tool."""

    function: FunctionCall
    """What is called."""
    id: str | None = None
    """By which its result is told apart from those of other calls."""
    type: str | None = None
    """function."""
    index: int | None = None
    """In a stream: which of the calls this is a piece of."""


class ChatMessage(msgspec.Struct):
    """What the model said; in a stream, a piece of it."""

    role: str | None = None
    """assistant."""
    content: str | None = None
    """Text; None when it only calls tools."""
    tool_calls: list[ToolCall] | None = None
    """None or empty when it calls none."""
    reasoning_content: str | None = None
    """What it thought before, where the engine tells that apart."""
    refusal: str | None = None
    """Why it does not answer."""


class PromptTokensDetails(msgspec.Struct):
    """What became of a prompt's tokens."""

    cached_tokens: int | None = None
    """Those that were in a cache. vLLM tells it with ``--enable-prompt-tokens-details``."""


class Usage(msgspec.Struct):
    """Tokens of a request, as OpenAI's API counts them."""

    prompt_tokens: int = 0
    """Of the prompt, cached ones included."""
    completion_tokens: int | None = None
    """Of the answer."""
    total_tokens: int = 0
    """Both."""
    prompt_tokens_details: PromptTokensDetails | None = None
    """None where the engine does not tell."""

    @property
    def cached_tokens(self) -> int | None:
        """Return how many tokens of the prompt were in a cache; None where the engine does not tell."""
        return None if self.prompt_tokens_details is None else self.prompt_tokens_details.cached_tokens


class ChatChoice(msgspec.Struct):
    """One of the answers that were asked for."""

    message: ChatMessage
    """What the model said."""
    index: int = 0
    """Which of them, from 0."""
    finish_reason: str | None = None
    """stop, length, tool_calls or content_filter."""
    logprobs: Any = None
    """Log-probabilities, where they were asked for."""


class ChatCompletion(Answer, kw_only=True):
    """Answers /v1/chat/completions."""

    id: str
    """The engine's name for it."""
    model: str
    """Who answered."""
    choices: list[ChatChoice]
    """One for each answer that was asked for."""
    created: int = 0
    """When, in s since 1970."""
    usage: Usage | None = None
    """What it cost."""

    @property
    def text(self) -> str:
        """Return the text of the first choice; empty when it only calls tools."""
        return (self.choices[0].message.content or "") if self.choices else ""


class ChatDelta(msgspec.Struct):
    """A piece of one of the answers that were asked for."""

    delta: ChatMessage
    """What is new."""
    index: int = 0
    """Which of them, from 0."""
    finish_reason: str | None = None
    """With the last piece: stop, length, tool_calls or content_filter."""
    logprobs: Any = None
    """Log-probabilities, where they were asked for."""


class ChatChunk(msgspec.Struct, kw_only=True):
    """One event of a streamed /v1/chat/completions."""

    id: str = ""
    """The engine's name for the answer."""
    model: str = ""
    """Who answers."""
    choices: list[ChatDelta]
    """What is new; empty in the event that has the usage."""
    usage: Usage | None = None
    """In the last event, when ``stream_options`` asks for it."""

    @property
    def text(self) -> str:
        """Return what is new in the text of the first choice."""
        return "".join(choice.delta.content or "" for choice in self.choices if choice.index == 0)


class TextChoice(msgspec.Struct):
    """One of the continuations that were asked for; in a stream, a piece of one."""

    text: str
    """What the model wrote."""
    index: int = 0
    """Which of them, from 0."""
    finish_reason: str | None = None
    """stop or length."""
    logprobs: Any = None
    """Log-probabilities, where they were asked for."""


class Completion(Answer, kw_only=True):
    """Answers /v1/completions; in a stream, one event of it."""

    id: str
    """The engine's name for it."""
    model: str
    """Who answered."""
    choices: list[TextChoice]
    """One for each continuation that was asked for."""
    created: int = 0
    """When, in s since 1970."""
    usage: Usage | None = None
    """What it cost; in a stream with the last event, when ``stream_options`` asks for it."""

    @property
    def text(self) -> str:
        """Return the text of the first choice."""
        return "".join(choice.text for choice in self.choices if choice.index == 0)


class ContentBlock(msgspec.Struct):
    """A part of a message in Anthropic's API. Which fields it has, its type says."""

    type: str
    """text, tool_use, thinking or another one."""
    text: str | None = None
    """Of text."""
    id: str | None = None
    """Of tool_use: by which its result is told apart."""
    name: str | None = None
    """Of tool_use: the tool."""
    input: dict[str, Any] | None = None
    """Of tool_use: what it is called with."""
    thinking: str | None = None
    """Of thinking."""
    signature: str | None = None
    """Of thinking."""


class MessageUsage(msgspec.Struct):
    """Tokens of a request, as Anthropic's API counts them."""

    input_tokens: int | None = None
    """Of the prompt, without those of the other two kinds."""
    output_tokens: int | None = None
    """Of the answer."""
    cache_creation_input_tokens: int | None = None
    """Those of the prompt that were put into a provider's cache."""
    cache_read_input_tokens: int | None = None
    """Those of the prompt that were in a cache; None where the engine does not tell."""

    @property
    def cached_tokens(self) -> int | None:
        """Return how many tokens of the prompt were in a cache; None where the engine does not tell."""
        return self.cache_read_input_tokens


class Message(Answer, kw_only=True):
    """Answers /v1/messages."""

    id: str
    """The engine's name for it."""
    model: str
    """Who answered."""
    content: list[ContentBlock]
    """What the model said."""
    role: str = "assistant"
    """assistant."""
    stop_reason: str | None = None
    """end_turn, max_tokens, stop_sequence or tool_use."""
    stop_sequence: str | None = None
    """Which one it was."""
    usage: MessageUsage | None = None
    """What it cost."""

    @property
    def text(self) -> str:
        """Return its text, without what it thought and calls."""
        return "".join(block.text or "" for block in self.content if block.type == "text")


class MessageDelta(msgspec.Struct):
    """What is new in a block, or in the message as a whole."""

    type: str | None = None
    """text_delta, input_json_delta, thinking_delta, signature_delta; None of the message as a whole."""
    text: str | None = None
    """Of text_delta."""
    partial_json: str | None = None
    """Of input_json_delta."""
    thinking: str | None = None
    """Of thinking_delta."""
    signature: str | None = None
    """Of signature_delta."""
    stop_reason: str | None = None
    """Of the message: why it ends."""
    stop_sequence: str | None = None
    """Of the message: which one it was."""


class MessageEvent(msgspec.Struct, kw_only=True):
    """One event of a streamed /v1/messages. Which fields it has, its type says."""

    type: str
    """message_start, _delta or _stop, content_block_start, _delta or _stop, or ping."""
    message: Message | None = None
    """Of message_start: the message, still without content."""
    index: int | None = None
    """Of content_block_...: which block of the message."""
    content_block: ContentBlock | None = None
    """Of content_block_start."""
    delta: MessageDelta | None = None
    """Of content_block_delta and message_delta."""
    usage: MessageUsage | None = None
    """Of message_delta: tokens so far."""

    @property
    def text(self) -> str:
        """Return what is new in the text."""
        return (self.delta.text or "") if self.delta is not None and self.delta.type == "text_delta" else ""
