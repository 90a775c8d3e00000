"""What is looked for in an answer that makes an object, while it is passed on."""

from __future__ import annotations

from ghostcacher_router.http.protocol.answer_id import AnswerIdFinder
from ghostcacher_router.http.protocol.output_begin import OutputFinder
from ghostcacher_router.types import Placement
from ghostcacher_router.upstreams.response_receiver import Sink


def looked_into(sink: Sink, placement: Placement, *, events: bool) -> Sink:
    """Return what takes the answer for `sink`, and tells the placement the object's id.

    events: whether it is a stream of events; then the placement is also told of the first byte of output, which is not
    the answer's.
    """
    found = AnswerIdFinder(sink, placement.answer_id)
    return OutputFinder(found, placement.first_byte) if events else found
