"""Reports prompts to routers: which of their requests it is, some of its block hashes, and when its blocks are there.

A router names a request by the ``X-Request-Id`` that it sends. vLLM's API server makes its own id around it, and the
engine's front end makes that unique; here it is taken out again:

    cmpl-<id>-<prompt>-<8 hex>     /v1/completions; embd-, pooling-, classify- and score- likewise
    chatcmpl-<id>-<8 hex>          /v1/chat/completions, /v1/messages; generate-tokens- likewise
    resp_<32 hex>_<turn>-<8 hex>   /v1/responses, which does not use the header
    <child>_<one of these>         each of several samples of one prompt

Only the first prompt of a request and its first sample are reported. ``/v1/responses`` names a request by the id of its
answer, which the router finds in the answer, and counts the turns with tools of its own: the first is reported.

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from ghostcacher_connector.core.coordination.base import REQUEST_CHARS_MAX
from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked, shareable
from ghostcacher_connector.publish.prompt_chain import PromptSink, prompt_chain

if TYPE_CHECKING:
    from vllm.v1.request import Request

UNIQUE_CHARS = len("-01234567")
_FORMS = re.compile(
    r"(?:0_)?(?:(?:chatcmpl|generate-tokens)-(.+)|(?:cmpl|embd|pooling|classify|score)-(.+)-0|(resp_.+)_0)", re.DOTALL
)
_UNIQUE = re.compile(r"-[0-9a-f]{8}")


def ids_are_unique() -> bool:
    """Say whether vLLM appends random digits to each request's id."""
    return os.environ.get("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "0") in ("", "0")


def router_request_id(request_id: str, *, unique: bool = True) -> str | None:
    """Return the router's id of a request, None when there is none. unique: see `ids_are_unique`."""
    if unique:
        if not _UNIQUE.fullmatch(request_id, len(request_id) - UNIQUE_CHARS):
            return None
        request_id = request_id[:-UNIQUE_CHARS]
    match = _FORMS.fullmatch(request_id)
    if match is None:
        return None
    found = match[1] or match[2] or match[3]
    return found if len(found) <= REQUEST_CHARS_MAX else None


class PromptReporter:
    """Follows each request from its arrival until its prompt's blocks are published."""

    def __init__(self, sink: PromptSink, block_tokens: int) -> None:
        self._sink = sink
        self._block_tokens = block_tokens
        self._unique = ids_are_unique()

    def arrived(self, tracked: Tracked) -> None:
        """Report the chain of a new request's prompt, if it is a router's and means the same on every worker."""
        request = tracked.request
        if not self._sink.listening or not shareable(request):
            return
        name = router_request_id(request.request_id, unique=self._unique)
        if name is None:
            return
        hashes = request.block_hashes[: self._full_blocks(request)]
        chain = prompt_chain(name, request.num_prompt_tokens, hashes, self._block_tokens)
        if chain is not None:
            tracked.reported_as = name
            self._sink.chain(chain)

    def published(self, tracked: Tracked) -> None:
        """Report a prompt as computed, once, when all of its full blocks are, those that it was given included.

        To be called when a step of the request's own is done.
        """
        name = tracked.reported_as
        if name is not None and tracked.evidence.sound >= self._full_blocks(tracked.request):
            tracked.reported_as = None
            self._sink.computed(name)

    def _full_blocks(self, request: Request) -> int:
        tokens: int = request.num_prompt_tokens
        return min(len(request.block_hashes), tokens // self._block_tokens)
