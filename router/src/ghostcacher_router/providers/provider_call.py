"""One request at a provider. To the HTTP proxy it is a placement, with the request as it is to be sent."""

from __future__ import annotations

import time

from ghostcacher_router.http.protocol.response_head import ResponseHead
from ghostcacher_router.providers.choice import Provider
from ghostcacher_router.providers.costs.accounts import Accounts, Sending
from ghostcacher_router.providers.costs.usage import UsageReader
from ghostcacher_router.providers.costs.usage_tap import UsageTap, reader_of
from ghostcacher_router.types import Body, Endpoint, Forecast, Outcome, Reason
from ghostcacher_router.upstreams.response_receiver import Sink


class ProviderCall:
    """A request as a provider gets it: a `ProviderPlacement` of the HTTP proxy. Loop only.

    head, body: as they are sent. ttft_ms: from then to the answer's first byte; None before it. worker: the provider's
    name, which is where a worker's name would stand.
    """

    data_parallel_rank: int | None = None
    reason = Reason.ONLY
    forecast: Forecast | None = None
    prompt = None
    doubtful = False

    def __init__(
        self, provider: Provider, endpoint: Endpoint, head: bytes, body: Body, sending: Sending, accounts: Accounts
    ) -> None:
        self.worker = provider.value
        self.endpoint = endpoint
        self.head = head
        self.body = body
        self._provider, self._sending, self._accounts = provider, sending, accounts
        self.ttft_ms: float | None = None
        self._sent_at = 0.0
        self._reader: UsageReader | None = None
        self._tap: UsageTap | None = None

    def __repr__(self) -> str:
        return f"ProviderCall({self.worker}, body_bytes={len(self.body)})"  # The head holds a key.

    def tapped(self, sink: Sink, head: ResponseHead, *, plain: bool) -> Sink:
        self._reader = reader_of(head)
        if self._reader is None:
            return sink
        self._tap = UsageTap(sink, self._reader, chunked=head.chunked and not plain)
        return self._tap

    def sent(self) -> None:
        self._sent_at = time.monotonic()
        self._accounts.sent(self._provider, self._sending)

    def first_byte(self) -> None:
        self.ttft_ms = (time.monotonic() - self._sent_at) * 1e3

    def answer_id(self, answer_id: str) -> None: ...

    def ended(self, outcome: Outcome, status: int | None) -> None:  # noqa: ARG002
        usage = None if self._reader is None else self._reader.usage()
        if self._tap is not None:
            self._tap.release()
            self._tap = None
        self._accounts.answered(self._provider, self._sending.model, status, usage)

    def failed(self, *, sure: bool) -> None: ...
