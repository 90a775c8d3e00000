"""Sends requests, again where nothing came of them, and reads whole answers: once for threads, once for asyncio."""

from __future__ import annotations

import asyncio
import time
from itertools import count

import httpx

from ghostcacher.client.calls import Call
from ghostcacher.client.errors import AnswerMalformed, GhostCacherError
from ghostcacher.client.options import Options
from ghostcacher.client.replies import ANSWER_BYTES_MAX, NOT_OK, OK, failure_of, status_error
from ghostcacher.client.retries import pause_before_retry

CONNECTIONS_MAX = 1024
IDLE_MAX = 64
LIMITS = httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=IDLE_MAX)


class Transport:
    """Talks to one router; may be used from several threads. http: a client of httpx that is set up otherwise."""

    def __init__(self, options: Options, http: httpx.Client | None) -> None:
        self._options = options
        self._http = http or httpx.Client(limits=LIMITS)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def open(self, call: Call) -> httpx.Response:
        """Return an answer that has begun, and is no error. Its reader closes it. Raises GhostCacherError."""
        for attempt in count():
            try:
                return self._try(call)
            except GhostCacherError as failure:
                pause_s = pause_before_retry(failure, attempt, call.retries_max)
                if pause_s is None:
                    raise
            time.sleep(pause_s)
        raise AssertionError("count() has no end")

    def whole(self, call: Call) -> tuple[bytes, httpx.Headers]:
        """Return the whole body of an answer, and its headers. Raises GhostCacherError."""
        response = self.open(call)
        return self._read(response, call), response.headers

    def _try(self, call: Call) -> httpx.Response:
        try:
            response = self._http.send(request_of(self._http, call, self._options), stream=True)
        except httpx.RequestError as exc:
            raise failure_of(exc, call) from exc
        if OK <= response.status_code < NOT_OK:
            return response
        raise status_error(response.status_code, response.headers, self._read(response, call))

    def _read(self, response: httpx.Response, call: Call) -> bytes:
        body = bytearray()
        try:
            for data in response.iter_bytes():
                append(body, data)
        except httpx.RequestError as exc:
            raise failure_of(exc, call, begun=True) from exc
        finally:
            response.close()
        return bytes(body)


class AsyncTransport:
    """Talks to one router, on one event loop. http: a client of httpx that is set up otherwise."""

    def __init__(self, options: Options, http: httpx.AsyncClient | None) -> None:
        self._options = options
        self._http = http or httpx.AsyncClient(limits=LIMITS)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def open(self, call: Call) -> httpx.Response:
        """Return an answer that has begun, and is no error. Its reader closes it. Raises GhostCacherError."""
        for attempt in count():
            try:
                return await self._try(call)
            except GhostCacherError as failure:
                pause_s = pause_before_retry(failure, attempt, call.retries_max)
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)
        raise AssertionError("count() has no end")

    async def whole(self, call: Call) -> tuple[bytes, httpx.Headers]:
        """Return the whole body of an answer, and its headers. Raises GhostCacherError."""
        response = await self.open(call)
        return await self._read(response, call), response.headers

    async def _try(self, call: Call) -> httpx.Response:
        try:
            response = await self._http.send(request_of(self._http, call, self._options), stream=True)
        except httpx.RequestError as exc:
            raise failure_of(exc, call) from exc
        if OK <= response.status_code < NOT_OK:
            return response
        raise status_error(response.status_code, response.headers, await self._read(response, call))

    async def _read(self, response: httpx.Response, call: Call) -> bytes:
        body = bytearray()
        try:
            async for data in response.aiter_bytes():
                append(body, data)
        except httpx.RequestError as exc:
            raise failure_of(exc, call, begun=True) from exc
        finally:
            await response.aclose()
        return bytes(body)


def request_of(http: httpx.Client | httpx.AsyncClient, call: Call, options: Options) -> httpx.Request:
    """Return a request as httpx has it."""
    timeout = httpx.Timeout(call.timeout_s, connect=options.connect_timeout_s, pool=options.connect_timeout_s)
    return http.build_request(call.method, call.url, headers=dict(call.headers), content=call.body, timeout=timeout)


def append(body: bytearray, data: bytes) -> None:
    """Append a part of an answer. Raises AnswerMalformed when it becomes too long."""
    if len(body) + len(data) > ANSWER_BYTES_MAX:
        raise AnswerMalformed(f"expected an answer of at most {ANSWER_BYTES_MAX} bytes, got a longer one")
    body += data
