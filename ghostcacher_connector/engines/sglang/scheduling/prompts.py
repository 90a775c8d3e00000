"""Reports prompts to routers: which of their requests it is, some of its page hashes, and when its pages are there.

Only the first prompt of a request is reported (request_names.py).

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

from collections.abc import Callable

from ghostcacher_connector.core.types import BlockHash
from ghostcacher_connector.engines.sglang.scheduling.request_names import router_request_id
from ghostcacher_connector.engines.sglang.scheduling.requests import Tracked
from ghostcacher_connector.publish.prompt_chain import PromptSink, prompt_chain

WAITING_MAX = 4_096
"""Last pages of prompts that are not published yet; beyond, the oldest are forgotten."""
WAITING_AT_MAX = 64
"""Requests for one prompt whose last page is not published yet; those beyond are not reported as computed."""


class PromptReporter:
    """Follows each request from its arrival until its prompt's pages are published."""

    def __init__(self, sink: PromptSink, holds: Callable[[BlockHash], bool], page_tokens: int) -> None:
        """holds: says whether a block is published."""
        self._sink = sink
        self._holds = holds
        self._page_tokens = page_tokens
        self._waiting: dict[BlockHash, list[Tracked]] = {}

    def arrived(self, tracked: Tracked) -> None:
        """Report the chain of a new request's prompt, if it is a router's and means the same on every worker.

        Prompts with an adapter are left out: SGLang takes its name in a field that routers do not know.
        """
        if tracked.adapted or not self._sink.listening or (name := router_request_id(tracked.req.rid)) is None:
            return
        chain = prompt_chain(name, len(tracked.req.origin_input_ids), tracked.chain, self._page_tokens)
        if chain is not None:
            self._wait(tracked, name)
            self._sink.chain(chain)

    def _wait(self, tracked: Tracked, name: str) -> None:
        if tracked.chain[-1] not in self._waiting and len(self._waiting) >= WAITING_MAX:
            for forgotten in self._waiting.pop(next(iter(self._waiting))):
                forgotten.reported_as = None
        waiting = self._waiting.setdefault(tracked.chain[-1], [])
        if len(waiting) < WAITING_AT_MAX:
            tracked.reported_as = name
            waiting.append(tracked)

    def published(self, block: BlockHash) -> None:
        """A block is published: report every prompt that ends with it, once."""
        for tracked in self._waiting.pop(block, ()):
            assert tracked.reported_as is not None
            self._sink.computed(tracked.reported_as)
            tracked.reported_as = None

    def computed(self, tracked: Tracked) -> None:
        """A request has computed its prompt: its pages may have been here before it came."""
        if tracked.reported_as is not None and self._holds(tracked.chain[-1]):
            self.published(tracked.chain[-1])

    def ended(self, tracked: Tracked) -> None:
        """Forget a request that is over. One that has computed its prompt is published after its end: keep it."""
        if tracked.reported_as is None or (tracked.req.finished() and tracked.req.output_ids):
            return
        waiting = self._waiting.get(tracked.chain[-1], [])
        if tracked in waiting:
            waiting.remove(tracked)
        if not waiting:
            self._waiting.pop(tracked.chain[-1], None)
