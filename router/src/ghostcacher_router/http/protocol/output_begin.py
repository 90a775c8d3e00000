"""Finds where the model's output begins in a stream of /v1/responses. No I/O.

Such a stream begins with events that say what was asked for (created, queued, in_progress): engines send them before
they compute anything. The first byte of the answer says nothing of the prompt, then; the first other event does.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_OUTPUT = re.compile(rb"[\r\n]event: response\.(?!(?:created|queued|in_progress)[\r\n])[a-z_.]{1,64}[\r\n]")
_LINE_BYTES_MAX = len(b"\nevent: response.") + 64


class OutputFinder:
    """Takes the bytes of one stream and hands them to `sink`; calls `begun` once, when the output begins."""

    __slots__ = ("_begun", "_last", "_looking", "_sink")

    def __init__(self, sink: Callable[[bytes], None], begun: Callable[[], None]) -> None:
        self._sink = sink
        self._begun = begun
        self._last = b""
        self._looking = True

    def __call__(self, data: bytes) -> None:
        if self._looking:
            seen = self._last + data
            if _OUTPUT.search(seen) is None:
                self._last = seen[-_LINE_BYTES_MAX:]
            else:
                self._looking, self._last = False, b""
                self._begun()
        self._sink(data)
