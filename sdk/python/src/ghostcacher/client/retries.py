"""Decides whether a failed request is sent again, and when. Pure.

Sent again is what nothing came of: no connection, none that lived until an answer began, or an answer that asks for it
(429, 503 and 529). The router has by then tried other workers itself, so 500, 502 and 504 are final: the request itself
may be what engines fail at.
"""

from __future__ import annotations

import random
from email.utils import parsedate_to_datetime

from ghostcacher.client.errors import ConnectFailed, GhostCacherError, StatusError

RETRIED_STATUSES = frozenset({429, 503, 529})
PAUSE_FIRST_S = 0.5
PAUSE_MAX_S = 8.0
RETRY_AFTER_MAX_S = 60.0
"""A server that wants a longer pause gets no second request: the error says when to try again."""


def pause_before_retry(failure: GhostCacherError, attempt: int, retries_max: int) -> float | None:
    """Return how long to wait before a request is sent again, in s; None when it is not.

    attempt: how often it was sent before this failure, from 0.
    """
    if attempt >= retries_max:
        return None
    if isinstance(failure, StatusError):
        if failure.status not in RETRIED_STATUSES:
            return None
        if failure.retry_after_s is not None:
            return failure.retry_after_s if failure.retry_after_s <= RETRY_AFTER_MAX_S else None
    elif not isinstance(failure, ConnectFailed):
        return None
    longest_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2**attempt)
    # So that clients that failed together do not come back together.
    return random.uniform(longest_s / 2, longest_s)  # noqa: S311


def retry_after_s_of(value: str | None, now_s: float) -> float | None:
    """Return the seconds that a ``retry-after`` header asks for, be it a number or a date; None when it is neither.

    now_s: the time, in s since 1970.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None
