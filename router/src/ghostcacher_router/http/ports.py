"""What the front's parts ask of one another, and of whoever counts. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ghostcacher_router.http.protocol.responses import AnswerHead


class Running(Protocol):
    """What is under way for a client: `Exchange` or `OwnAnswer`."""

    request_id: bytes

    @property
    def passed_bytes(self) -> int: ...

    def start(self) -> None: ...

    def cancel(self) -> None: ...

    def expire(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Receiver(Protocol):
    """Who gets an answer. After `answer_end` or `answer_lost` it hears no more of it."""

    no_body: bool
    plain: bool
    """Takes no chunks: they are taken out of their framing."""

    def answer_head(
        self, head: AnswerHead, length: int | None, *, whole: bool
    ) -> tuple[bytes, Callable[[bytes], None]]:
        """Return the head for the client, and what takes it and then the body. length: that the worker names.

        whole: the end of the answer follows at once.
        """

    def answer_first_byte(self) -> None: ...

    def answer_passed_on(self) -> None:
        """The head is about to be given to what takes it; until then the answer can still become an error."""

    def answer_end(self, *, clean: bool) -> None:
        """The answer is whole. clean: nothing came behind it."""

    def answer_lost(self, error: str, *, began: bool) -> None:
        """The connection broke. began: bytes of an answer had come. Never follows `answer_end`."""

    def answer_bad(self, error: str) -> None:
        """What came is no answer that can be passed on."""


class Observed(Protocol):
    def observe(self, value: float) -> None: ...


class Counted(Protocol):
    def inc(self, *labels: str) -> None: ...


class Meter(Protocol):
    """latency_ms: from a request's last byte to the request written. retries: by reason, "refused" or "broke"."""

    @property
    def latency_ms(self) -> Observed: ...

    @property
    def retries(self) -> Counted: ...

    def answered(self, path: str, status: int) -> None:
        """Count a request that has ended; 499: the client left."""
