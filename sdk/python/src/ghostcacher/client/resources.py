"""The calls of a client that waits: one class for each API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeVar, Unpack, overload

from ghostcacher.client.answers import Answer, ChatChunk, ChatCompletion, Completion, Message, MessageEvent
from ghostcacher.client.arguments import ChatArguments, CompletionArguments, MessageArguments
from ghostcacher.client.calls import CHAT, COMPLETIONS, MESSAGES, Api, PromptRequest, engine_call, prompt_request
from ghostcacher.client.options import Options
from ghostcacher.client.replies import EventReader, answer_of
from ghostcacher.client.streams import Stream
from ghostcacher.client.transport import Transport

A = TypeVar("A", bound=Answer)
E = TypeVar("E", bound=ChatChunk | Completion | MessageEvent)


class Resource(Generic[A, E]):
    """One API of the engines behind one router."""

    def __init__(self, options: Options, transport: Transport, api: Api[A, E]) -> None:
        self._options, self._transport, self._api = options, transport, api

    def _create(self, given: Mapping[str, Any], stream: object) -> A | Stream[E]:
        call = engine_call(self._options, self._api, given, stream=stream)
        if stream:
            response = self._transport.open(call)
            return Stream(response, EventReader(self._api, response.headers), call)
        data, headers = self._transport.whole(call)
        return answer_of(self._api.answer, data, headers)


class AnthropicMessages(Resource[Message, MessageEvent]):
    """Anthropic's API: /v1/messages."""

    def __init__(self, options: Options, transport: Transport) -> None:
        super().__init__(options, transport, MESSAGES)

    @overload
    def create(self, *, stream: Literal[False] = False, **given: Unpack[MessageArguments]) -> Message: ...
    @overload
    def create(self, *, stream: Literal[True], **given: Unpack[MessageArguments]) -> Stream[MessageEvent]: ...
    def create(self, *, stream: bool = False, **given: Unpack[MessageArguments]) -> Message | Stream[MessageEvent]:
        """Have the next message written. Raises GhostCacherError."""
        return self._create(given, stream)

    def prepare(self, **given: Unpack[MessageArguments]) -> PromptRequest:
        """Return what `create` would send, for `admin`. Raises ArgumentError."""
        return prompt_request(self._api, given)


class ChatCompletions(Resource[ChatCompletion, ChatChunk]):
    """OpenAI's API: /v1/chat/completions."""

    def __init__(self, options: Options, transport: Transport) -> None:
        super().__init__(options, transport, CHAT)

    @overload
    def create(self, *, stream: Literal[False] = False, **given: Unpack[ChatArguments]) -> ChatCompletion: ...
    @overload
    def create(self, *, stream: Literal[True], **given: Unpack[ChatArguments]) -> Stream[ChatChunk]: ...
    def create(self, *, stream: bool = False, **given: Unpack[ChatArguments]) -> ChatCompletion | Stream[ChatChunk]:
        """Have the next message written. Raises GhostCacherError."""
        return self._create(given, stream)

    def prepare(self, **given: Unpack[ChatArguments]) -> PromptRequest:
        """Return what `create` would send, for `admin`. Raises ArgumentError."""
        return prompt_request(self._api, given)


class Completions(Resource[Completion, Completion]):
    """OpenAI's API: /v1/completions."""

    def __init__(self, options: Options, transport: Transport) -> None:
        super().__init__(options, transport, COMPLETIONS)

    @overload
    def create(self, *, stream: Literal[False] = False, **given: Unpack[CompletionArguments]) -> Completion: ...
    @overload
    def create(self, *, stream: Literal[True], **given: Unpack[CompletionArguments]) -> Stream[Completion]: ...
    def create(self, *, stream: bool = False, **given: Unpack[CompletionArguments]) -> Completion | Stream[Completion]:
        """Have a text continued. Raises GhostCacherError."""
        return self._create(given, stream)

    def prepare(self, **given: Unpack[CompletionArguments]) -> PromptRequest:
        """Return what `create` would send, for `admin`. Raises ArgumentError."""
        return prompt_request(self._api, given)


class Chat:
    """What OpenAI's API has below chat."""

    def __init__(self, completions: ChatCompletions) -> None:
        self.completions = completions
        """/v1/chat/completions."""
