"""Takes the router's id of a request out of SGLang's.

hooks.py names a request ``<X-Request-Id>-<8 hex>``; SGLang appends ``_<number>`` to it for each prompt of a batch, and
names further samples of a prompt anew. Only the first prompt of a request has a name. A request to ``/v1/responses``
is named by the id of its answer, ``resp_<32 hex>``, which the router finds in the answer.
"""

from __future__ import annotations

import re

from ghostcacher_connector.core.coordination.base import REQUEST_CHARS_MAX

_FORM = re.compile(r"(.+)-[0-9a-f]{8}(?:_0)?|(resp_[0-9a-f]{32})", re.DOTALL)


def router_request_id(rid: str) -> str | None:
    """Return the router's id of a request, None when there is none."""
    match = _FORM.fullmatch(rid)
    found = None if match is None else match[1] or match[2]
    return found if found is not None and len(found) <= REQUEST_CHARS_MAX else None
