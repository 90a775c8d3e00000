"""The calls of a client of asyncio: one class for each API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeVar, Unpack, overload

from ghostcacher.client.answers import Answer, ChatChunk, ChatCompletion, Completion, Message, MessageEvent
from ghostcacher.client.arguments import ChatArguments, CompletionArguments, MessageArguments
from ghostcacher.client.calls import CHAT, COMPLETIONS, MESSAGES, Api, PromptRequest, engine_call, prompt_request
from ghostcacher.client.options import Options
from ghostcacher.client.replies import EventReader, answer_of
from ghostcacher.client.streams import AsyncStream
from ghostcacher.client.transport import AsyncTransport

A = TypeVar("A", bound=Answer)
E = TypeVar("E", bound=ChatChunk | Completion | MessageEvent)


class AsyncResource(Generic[A, E]):
    """One API of the engines behind one router."""

    def __init__(self, options: Options, transport: AsyncTransport, api: Api[A, E]) -> None:
        self._options, self._transport, self._api = options, transport, api

    async def _create(self, given: Mapping[str, Any], stream: object) -> A | AsyncStream[E]:
        call = engine_call(self._options, self._api, given, stream=stream)
        if stream:
            response = await self._transport.open(call)
            return AsyncStream(response, EventReader(self._api, response.headers), call)
        data, headers = await self._transport.whole(call)
        return answer_of(self._api.answer, data, headers)


class AsyncAnthropicMessages(AsyncResource[Message, MessageEvent]):
    """Anthropic's API: /v1/messages."""

    def __init__(self, options: Options, transport: AsyncTransport) -> None:
        super().__init__(options, transport, MESSAGES)

    @overload
    async def create(self, *, stream: Literal[False] = False, **given: Unpack[MessageArguments]) -> Message: ...
    @overload
    async def create(
        self, *, stream: Literal[True], **given: Unpack[MessageArguments]
    ) -> AsyncStream[MessageEvent]: ...
    async def create(
        self, *, stream: bool = False, **given: Unpack[MessageArguments]
    ) -> Message | AsyncStream[MessageEvent]:
        """Have the next message written. Raises GhostCacherError."""
        return await self._create(given, stream)

    def prepare(self, **given: Unpack[MessageArguments]) -> PromptRequest:
        """Return what `create` would send, for `admin`. Raises ArgumentError."""
        return prompt_request(self._api, given)


class AsyncChatCompletions(AsyncResource[ChatCompletion, ChatChunk]):
    """OpenAI's API: /v1/chat/completions."""

    def __init__(self, options: Options, transport: AsyncTransport) -> None:
        super().__init__(options, transport, CHAT)

    @overload
    async def create(self, *, stream: Literal[False] = False, **given: Unpack[ChatArguments]) -> ChatCompletion: ...
    @overload
    async def create(self, *, stream: Literal[True], **given: Unpack[ChatArguments]) -> AsyncStream[ChatChunk]: ...
    async def create(
        self, *, stream: bool = False, **given: Unpack[ChatArguments]
    ) -> ChatCompletion | AsyncStream[ChatChunk]:
        """Have the next message written. Raises GhostCacherError."""
        return await self._create(given, stream)

    def prepare(self, **given: Unpack[ChatArguments]) -> PromptRequest:
        """Return what `create` would send, for `admin`. Raises ArgumentError."""
        return prompt_request(self._api, given)


class AsyncCompletions(AsyncResource[Completion, Completion]):
    """OpenAI's API: /v1/completions."""

    def __init__(self, options: Options, transport: AsyncTransport) -> None:
        super().__init__(options, transport, COMPLETIONS)

    @overload
    async def create(self, *, stream: Literal[False] = False, **given: Unpack[CompletionArguments]) -> Completion: ...
    @overload
    async def create(
        self, *, stream: Literal[True], **given: Unpack[CompletionArguments]
    ) -> AsyncStream[Completion]: ...
    async def create(
        self, *, stream: bool = False, **given: Unpack[CompletionArguments]
    ) -> Completion | AsyncStream[Completion]:
        """Have a text continued. Raises GhostCacherError."""
        return await self._create(given, stream)

    def prepare(self, **given: Unpack[CompletionArguments]) -> PromptRequest:
        """Return what `create` would send, for `admin`. Raises ArgumentError."""
        return prompt_request(self._api, given)


class AsyncChat:
    """What OpenAI's API has below chat."""

    def __init__(self, completions: AsyncChatCompletions) -> None:
        self.completions = completions
        """/v1/chat/completions."""
