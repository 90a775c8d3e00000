"""A request's priority in its body, where engines look for it: vLLM's field `priority`, lower goes first."""

from __future__ import annotations

from ghostcacher_router.types import Body, LongBody, Turn

PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"})
"""Those whose bodies have such a field."""

_SPACE = b" \t\r\n"


def prioritised(body: Body, path: str, turn: Turn | None) -> Body:
    """Return the body of a request as an engine gets it: with its priority, where engines are to be told of it."""
    return body if turn is None or turn.tells is None else with_priority(body, path, turn.tells)


def with_priority(body: Body, path: str, priority: int) -> Body:
    """Return a body that names a priority, whatever it named before: of two fields of one name the last one counts.

    A body that is no object in UTF-8, or of another API, is returned as it is.
    """
    if path not in PATHS:
        return body
    pieces = (body,) if isinstance(body, bytes) else body.pieces
    last = pieces[-1].rstrip(_SPACE)
    if not (pieces[0].lstrip(_SPACE).startswith(b"{") and last.endswith(b"}")) or last[:-1].rstrip(_SPACE) == b"{":
        return body
    last = b'%b,"priority":%d}' % (last[:-1], priority)
    return last if isinstance(body, bytes) else LongBody((*pieces[:-1], last))
