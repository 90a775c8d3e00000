"""Errors that the router answers with itself, in OpenAI's shape, or in Anthropic's under /v1/messages."""

from __future__ import annotations

import json
from http import HTTPStatus

ANTHROPIC_PATH = "/v1/messages"

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    **_OPENAI_TYPES,
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
}
_SERVER_ERRORS = 500
REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


class Refusal(Exception):
    """A request that the router answers with an error.

    message: for the client. code: OpenAI's ``error.code``. param: the field of the body that is wrong. retry_after_s:
    when the client may try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


ROUTER_STOPS = Refusal(
    503, "the router stops, and the time that requests have to end is over", code="router_stops", retry_after_s=1
)


def error_body(path: str, refusal: Refusal) -> bytes:
    """Return an error as JSON, in the shape of the API that `path` belongs to."""
    status = refusal.status
    if path.startswith(ANTHROPIC_PATH):
        kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= _SERVER_ERRORS else "invalid_request_error")
        return json.dumps({"type": "error", "error": {"type": kind, "message": refusal.message}}).encode()
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= _SERVER_ERRORS else "invalid_request_error")
    error = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}
    return json.dumps({"error": error}).encode()
