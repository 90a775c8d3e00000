"""Takes the router's id of a request out of vLLM's.

A router names a request by the ``X-Request-Id`` that it sends. vLLM's API server makes its own id around it, and the
engine's front end makes that unique; here it is taken out again:

    cmpl-<id>-<prompt>-<8 hex>     /v1/completions; embd-, pooling-, classify- and score- likewise
    chatcmpl-<id>-<8 hex>          /v1/chat/completions, /v1/messages; generate-tokens- likewise
    resp_<32 hex>_<turn>-<8 hex>   /v1/responses, which does not use the header
    <child>_<one of these>         each of several samples of one prompt

Only the first prompt of a request and its first sample have a name. ``/v1/responses`` names a request by the id of its
answer, which the router finds in the answer, and counts the turns with tools of its own: the first has a name.
"""

from __future__ import annotations

import os
import re

from ghostcacher_connector.core.coordination.base import REQUEST_CHARS_MAX

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
