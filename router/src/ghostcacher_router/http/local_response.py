"""One request's life that the router answers itself: one task, bounded in time, cancelled when the client leaves."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ghostcacher_router.http.errors import Refusal
from ghostcacher_router.http.exchange import CLIENT_LEFT
from ghostcacher_router.http.local import LocalRequest
from ghostcacher_router.http.protocol.head import RequestHead
from ghostcacher_router.http.protocol.responses import own_answer

if TYPE_CHECKING:
    from ghostcacher_router.http.client_connection import ClientConnection
    from ghostcacher_router.http.proxy import Front

logger = logging.getLogger(__name__)


class OwnAnswer:
    """A request that `LocalEndpoints` matched. The same duties to its client's connection as an Exchange."""

    __slots__ = ("_body", "_client", "_front", "_head", "_task", "request_id")
    passed_bytes = 0
    """Nothing moves before the answer is whole, which `worker_silence_s` bounds."""

    def __init__(self, front: Front, client: ClientConnection, head: RequestHead, body: bytes) -> None:
        self._front = front
        self._client = client
        self._head = head
        self._body = body
        self._task: asyncio.Task[None] | None = None
        self.request_id = head.request_id or front.next_request_id()

    def __repr__(self) -> str:
        return f"OwnAnswer({self._head.method} {self._head.path})"

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._answer())

    def cancel(self) -> None:
        self._stop()
        self._front.meter.answered(self._head.path, CLIENT_LEFT)

    def expire(self) -> None:
        self._stop()
        self._client.exchange_refused(Refusal(504, "the router did not answer in time", code="timeout"))

    def pause(self) -> None:
        """Nothing to hold back: the answer is written at once."""

    def resume(self) -> None: ...

    async def _answer(self) -> None:
        head, client = self._head, self._client
        request = LocalRequest(head.method, head.path, head.query, head.headers, self._body, client.peer)
        try:
            answer = await self._front.local.handle(request)
            keep = client.may_keep_alive
            data = own_answer(
                answer.status,
                answer.headers,
                answer.body,
                request_id=self.request_id,
                keep_alive=keep,
                no_body=head.method == "HEAD",
            )
        except Exception:
            logger.exception("%s failed in an unforeseen way", self)
            self._stop()
            client.exchange_refused(Refusal(500, "the router failed", code="internal_error"))
            return
        self._stop()
        self._front.meter.answered(head.path, answer.status)
        if self._front.access_log:
            self._front.log_access(client.peer, head, answer.status, self.request_id)
        client.write(data)
        client.exchange_done(keep)

    def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
