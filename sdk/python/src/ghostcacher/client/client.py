"""The two clients: one that waits, for threads, and one for asyncio."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, Unpack, overload

import httpx

from ghostcacher.client import options
from ghostcacher.client.admin import Admin, AsyncAdmin
from ghostcacher.client.arguments import Provider
from ghostcacher.client.async_resources import (
    AsyncAnthropicMessages,
    AsyncChat,
    AsyncChatCompletions,
    AsyncCompletions,
)
from ghostcacher.client.options import ClientArguments
from ghostcacher.client.resources import AnthropicMessages, Chat, ChatCompletions, Completions
from ghostcacher.client.transport import AsyncTransport, Transport

M = TypeVar("M", AnthropicMessages, ChatCompletions)
N = TypeVar("N", AsyncAnthropicMessages, AsyncChatCompletions)


class GhostCacherClient(Generic[M]):
    """A client of one router; may be used from several threads. Close it, or use it in a with statement.

    messages: the provider's API, with system text, tools, documents and messages. chat, completions: OpenAI's APIs,
    whichever the provider is. admin: the router's own.
    """

    messages: M

    @overload
    def __init__(
        self: GhostCacherClient[AnthropicMessages],
        *,
        provider: Literal["anthropic"],
        ghostcacher_url: str,
        http_client: httpx.Client | None = None,
        **given: Unpack[ClientArguments],
    ) -> None: ...
    @overload
    def __init__(
        self: GhostCacherClient[ChatCompletions],
        *,
        provider: Literal["openai"],
        ghostcacher_url: str,
        http_client: httpx.Client | None = None,
        **given: Unpack[ClientArguments],
    ) -> None: ...
    def __init__(
        self,
        *,
        provider: Provider,
        ghostcacher_url: str,
        http_client: httpx.Client | None = None,
        **given: Unpack[ClientArguments],
    ) -> None:
        """Set it up; nothing is sent. Raises ArgumentError.

        provider: whose API `messages` speaks. ghostcacher_url: of the router. http_client: a client of httpx that is
        set up otherwise (certificates, a proxy); it is closed with this one. given: see `ClientArguments`.
        """
        self._options = options.checked(provider, ghostcacher_url, given)
        self._transport = Transport(self._options, http_client)
        self.chat = Chat(ChatCompletions(self._options, self._transport))
        self.completions = Completions(self._options, self._transport)
        self.admin = Admin(self._options, self._transport)
        messages: Any = self.chat.completions
        if provider == "anthropic":
            messages = AnthropicMessages(self._options, self._transport)
        self.messages = messages

    def __repr__(self) -> str:
        return f"GhostCacherClient({self._options!r})"

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncGhostCacherClient(Generic[N]):
    """A client of one router, on one event loop. Close it, or use it in an async with statement.

    messages, chat, completions, admin: as of `GhostCacherClient`, to be awaited.
    """

    messages: N

    @overload
    def __init__(
        self: AsyncGhostCacherClient[AsyncAnthropicMessages],
        *,
        provider: Literal["anthropic"],
        ghostcacher_url: str,
        http_client: httpx.AsyncClient | None = None,
        **given: Unpack[ClientArguments],
    ) -> None: ...
    @overload
    def __init__(
        self: AsyncGhostCacherClient[AsyncChatCompletions],
        *,
        provider: Literal["openai"],
        ghostcacher_url: str,
        http_client: httpx.AsyncClient | None = None,
        **given: Unpack[ClientArguments],
    ) -> None: ...
    def __init__(
        self,
        *,
        provider: Provider,
        ghostcacher_url: str,
        http_client: httpx.AsyncClient | None = None,
        **given: Unpack[ClientArguments],
    ) -> None:
        """Set it up; nothing is sent. Raises ArgumentError. Arguments: as of `GhostCacherClient`."""
        self._options = options.checked(provider, ghostcacher_url, given)
        self._transport = AsyncTransport(self._options, http_client)
        self.chat = AsyncChat(AsyncChatCompletions(self._options, self._transport))
        self.completions = AsyncCompletions(self._options, self._transport)
        self.admin = AsyncAdmin(self._options, self._transport)
        messages: Any = self.chat.completions
        if provider == "anthropic":
            messages = AsyncAnthropicMessages(self._options, self._transport)
        self.messages = messages

    def __repr__(self) -> str:
        return f"AsyncGhostCacherClient({self._options!r})"

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
