"""The states of a client's connection, and what it refuses by itself."""

from __future__ import annotations

from enum import IntEnum

from ghostcacher_router.http.protocol.refusal import Refusal


class State(IntEnum):
    """Where a connection is.

    BUSY: a request is answered, or its response has not been read by the client. RESET: a response has broken off; what
    was sent of it is on its way, and then the connection is reset, which would overtake it.
    """

    HEAD = 0
    BODY = 1
    BUSY = 2
    LINGER = 3
    RESET = 4
    CLOSED = 5


TOO_MANY = Refusal(503, "too many connections", code="overloaded", retry_after_s=1)
TOO_MANY_BYTES = Refusal(503, "too many bytes of requests are held", code="overloaded", retry_after_s=1)
LATE_HEAD = Refusal(408, "the request's head did not come in time", code="timeout")
LATE_BODY = Refusal(408, "the request's body did not come in time", code="timeout")
