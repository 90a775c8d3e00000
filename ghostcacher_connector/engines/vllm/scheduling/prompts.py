"""Reports prompts to routers: which of their requests it is, some of its block hashes, and when its blocks are there.

Only the first prompt of a request and its first sample are reported (request_names.py).

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

from ghostcacher_connector.engines.vllm.scheduling.request_names import ids_are_unique, router_request_id
from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked, shareable
from ghostcacher_connector.publish.prompt_chain import PromptSink, prompt_chain


class PromptReporter:
    """Follows each request from its arrival until its prompt's blocks are published."""

    def __init__(self, sink: PromptSink, block_tokens: int) -> None:
        self._sink = sink
        self._block_tokens = block_tokens
        self._unique = ids_are_unique()

    def arrived(self, tracked: Tracked) -> None:
        """Report the chain of a new request's prompt, if it is a router's and means the same on every worker."""
        request = tracked.request
        if not self._sink.listening or not shareable(tracked):
            return
        name = router_request_id(request.request_id, unique=self._unique)
        if name is None:
            return
        hashes = tracked.blocks[: self._full_blocks(tracked)]
        chain = prompt_chain(name, request.num_prompt_tokens, hashes, self._block_tokens)
        if chain is not None:
            tracked.reported_as = name
            self._sink.chain(chain)

    def published(self, tracked: Tracked) -> None:
        """Report a prompt as computed, once, when all of its full blocks are, those that it was given included.

        To be called when a step of the request's own is done.
        """
        name = tracked.reported_as
        if name is not None and tracked.evidence.sound >= self._full_blocks(tracked):
            tracked.reported_as = None
            self._sink.computed(name)

    def _full_blocks(self, tracked: Tracked) -> int:
        tokens: int = tracked.request.num_prompt_tokens
        return min(len(tracked.blocks), tokens // self._block_tokens)
