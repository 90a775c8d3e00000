"""Taps that read along while the answer to a request passes through: the object's id, and where output begins."""

from __future__ import annotations

from ghostcacher_router.http.protocol.answer_id import AnswerIdFinder
from ghostcacher_router.http.protocol.output_begin import OutputFinder
from ghostcacher_router.types import Placement
from ghostcacher_router.upstreams.response_receiver import Sink


def tapped(sink: Sink, placement: Placement, *, events: bool) -> Sink:
    """Return what takes an answer that makes an object for `sink`, and tells the placement the object's id.

    events: whether it is a stream of events; then the placement is also told of the first byte of output, which is not
    the answer's.
    """
    found = AnswerIdFinder(sink, placement.answer_id)
    return OutputFinder(found, placement.first_byte) if events else found
