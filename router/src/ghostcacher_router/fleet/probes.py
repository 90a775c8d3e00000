"""Asks a worker whether it is well, what it serves, and how much its cache holds: GETs, each bounded in time and size.

A probe opens a connection of its own, so that it finds what a new request would find, and closes it afterwards. The
worker's name is resolved as it is for requests.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple, Protocol

import httptools
import msgspec

from ghostcacher_router.dns.dial import dial
from ghostcacher_router.dns.resolver import Resolver
from ghostcacher_router.fleet.engine_metrics import AdapterUse, adapter_use_of, cache_tokens_of
from ghostcacher_router.types import Endpoint

HTTP_OK = 200
HTTP_NOT_FOUND = 404
HTTP_UNAVAILABLE = 503
NOT_ALLOWED = (401, 403)

ANSWER_BYTES_MAX = 4 << 20
MODELS_MAX = 4096
READ_BYTES = 1 << 16

_decode_json = msgspec.json.Decoder(dict[str, Any]).decode


class ProbeFailed(Exception):
    """A worker is not well.

    certain: whether nobody speaks HTTP there, or it says itself that it takes no requests; if not, it may just be slow.
    silent: whether it did not answer in time: it hangs, or its host is gone without a word.
    """

    def __init__(self, message: str, *, certain: bool = False, silent: bool = False) -> None:
        super().__init__(message)
        self.certain = certain
        self.silent = silent


class Answer(NamedTuple):
    """A whole answer of a worker."""

    status: int
    """The status in its head."""
    body: bytes
    """Decoded from its framing."""


class Prober(Protocol):
    """Asks workers. Raises ProbeFailed, and nothing else."""

    async def health(self, endpoint: Endpoint) -> None:
        """Return when the worker says that it is well."""

    async def models(self, endpoint: Endpoint) -> tuple[Mapping[str, object], ...]:
        """Return the models that the worker serves, as it describes them, each id once."""

    async def cache_tokens(self, endpoint: Endpoint) -> int | None:
        """Return how many tokens the worker's cache holds, as its metrics say; None when they do not."""

    async def adapter_use(self, endpoint: Endpoint) -> AdapterUse | None:
        """Return which LoRA adapters are in use at the worker, as its metrics say; None when they do not."""


class HttpProber:
    """Asks over HTTP/1.1.

    timeout_s: the longest that a question may take, from connecting to the last byte.
    headers: sent with every question, such as the key that engines ask for; never shown.
    tls: used for https; None for one with the system's certificates.
    resolver: finds workers by their names; None for one of its own.
    """

    def __init__(
        self,
        *,
        resolver: Resolver | None = None,
        timeout_s: float = 3.0,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._resolver = resolver or Resolver()
        self._timeout_s = timeout_s
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._tls = tls

    def __repr__(self) -> str:
        return f"HttpProber(timeout_s={self._timeout_s:g})"

    async def health(self, endpoint: Endpoint) -> None:
        answer = await self._get(endpoint, "/health")
        if answer.status != HTTP_OK:
            # 503 is what vLLM says whose engine has ended, and SGLang from SIGTERM on.
            certain = answer.status == HTTP_UNAVAILABLE
            raise ProbeFailed(f"/health: expected status 200, got {answer.status}", certain=certain)

    async def models(self, endpoint: Endpoint) -> tuple[Mapping[str, object], ...]:
        answer = await self._get(endpoint, "/v1/models")
        if answer.status == HTTP_NOT_FOUND:
            return ()  # Not an OpenAI-compatible server: it serves requests that name no model.
        if answer.status in NOT_ALLOWED:
            raise ProbeFailed(f"/v1/models: got status {answer.status}: it asks for a key: set engine_api_key")
        if answer.status != HTTP_OK:
            raise ProbeFailed(f"/v1/models: expected status 200, got {answer.status}")
        return parse_models(answer.body)

    async def cache_tokens(self, endpoint: Endpoint) -> int | None:
        answer = await self._get(endpoint, "/metrics")
        return cache_tokens_of(answer.body) if answer.status == HTTP_OK else None

    async def adapter_use(self, endpoint: Endpoint) -> AdapterUse | None:
        answer = await self._get(endpoint, "/metrics")
        return adapter_use_of(answer.body) if answer.status == HTTP_OK else None

    async def _get(self, endpoint: Endpoint, path: str) -> Answer:
        resolved = False
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._resolver.addresses(endpoint.host)
                resolved = True
                return await self._exchange(endpoint, path)
        except TimeoutError as exc:
            what = "no answer" if resolved else f"the name {endpoint.host} was not resolved"
            raise ProbeFailed(f"{path}: {what} within {self._timeout_s:g} s", silent=resolved) from exc
        except (OSError, ValueError) as exc:
            raise ProbeFailed(f"{path}: {exc or type(exc).__name__}", certain=True) from exc
        except httptools.HttpParserError as exc:
            raise ProbeFailed(f"{path}: no HTTP: {exc}", certain=True) from exc

    async def _exchange(self, endpoint: Endpoint, path: str) -> Answer:
        tls = None if not endpoint.tls else self._tls or _system_tls()
        name = None if tls is None else endpoint.host
        reader, writer = await dial(
            self._resolver,
            endpoint.host,
            lambda address: asyncio.open_connection(address, endpoint.port, ssl=tls, server_hostname=name),
            lambda late: late[1].transport.abort(),
        )
        try:
            writer.write(self._request(endpoint, path))
            return await read_answer(reader)
        finally:
            writer.close()
            writer.transport.abort()  # The answer or the failure is known, so the other side's close is not waited for.

    def _request(self, endpoint: Endpoint, path: str) -> bytes:
        host = endpoint.url.partition("://")[2].removesuffix(endpoint.path)
        lines = f"GET {endpoint.path}{path} HTTP/1.1\r\nhost: {host}\r\naccept: application/json\r\n"
        return f"{lines}connection: close\r\n{self._headers}\r\n".encode("latin-1")


class _Answer:
    """Collects httptools' events of one answer."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.framed = self.headers_done = self.done = False

    def on_header(self, name: bytes, _value: bytes) -> None:
        self.framed |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self.headers_done = True

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done = True


async def read_answer(reader: asyncio.StreamReader, bytes_max: int = ANSWER_BYTES_MAX) -> Answer:
    """Return an answer. Raises ValueError when it is cut off or too long, HttpParserError when it is no HTTP."""
    events, size = _Answer(), 0
    parser = httptools.HttpResponseParser(events)
    while not events.done and (data := await reader.read(READ_BYTES)):
        size += len(data)
        if size > bytes_max:
            raise ValueError(f"expected at most {bytes_max} bytes")
        parser.feed_data(data)
    # Without a length the end of the connection is the end of the answer.
    if not events.done and (events.framed or not events.headers_done):
        raise ValueError("the connection closed before the answer was whole")
    return Answer(parser.get_status_code(), bytes(events.body))


def parse_models(body: bytes) -> tuple[Mapping[str, object], ...]:
    """Return the models of an OpenAI model list, each id once. Raises ProbeFailed when it is not one."""
    try:
        data = _decode_json(body).get("data")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ProbeFailed(f"/v1/models: expected a JSON object: {exc}") from exc
    if not isinstance(data, list) or len(data) > MODELS_MAX:
        raise ProbeFailed(f"/v1/models: expected a list `data` of up to {MODELS_MAX} models")
    found: dict[str, Mapping[str, object]] = {}
    for model in data:
        if not isinstance(model, dict) or not isinstance(model.get("id"), str):
            raise ProbeFailed("/v1/models: expected each model to be an object with an `id`")
        found.setdefault(model["id"], model)
    return tuple(found.values())


@cache
def _system_tls() -> ssl.SSLContext:
    return ssl.create_default_context()
