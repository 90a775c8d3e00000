"""What a router and its parsing process send each other over a socket.

router -> child:   lengths of ask and body (LENGTHS), ask (msgpack), body
child -> router:   length of the reply (LENGTH), reply (msgpack)
"""

from __future__ import annotations

from struct import Struct
from typing import Final

import msgspec

from ghostcacher_router.prompt import BadBody
from ghostcacher_router.types import RequestShape

LENGTHS: Final = Struct("<QQ")
LENGTH: Final = Struct("<Q")


class ParseAsk(msgspec.Struct):
    """The arguments of `parse_body` beside the body."""

    path: str
    headers: dict[bytes, bytes]
    seed: int
    billing_kept: frozenset[str | None]


class ParseReply(msgspec.Struct):
    """What `parse_body` returned or raised: one of both, or neither when the child's memory did not suffice."""

    shape: RequestShape | None = None
    message: str | None = None
    """Of BadBody."""
    param: str | None = None
    """Of BadBody."""

    def result(self) -> RequestShape | None:
        """Return the shape; None when there is none. Raises BadBody."""
        if self.message is not None:
            raise BadBody(self.message, self.param)
        return self.shape
