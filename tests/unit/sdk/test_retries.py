"""Which requests are sent again, and when."""

from __future__ import annotations

import pytest

from ghostcacher.client.errors import AnswerBroken, AnswerTimeout, ConnectFailed, GhostCacherError, StatusError
from ghostcacher.client.retries import (
    PAUSE_FIRST_S,
    PAUSE_MAX_S,
    RETRY_AFTER_MAX_S,
    pause_before_retry,
    retry_after_s_of,
)

NOW_S = 1_000_000_000.0


def status(code: int, retry_after_s: float | None = None) -> StatusError:
    return StatusError(code, "", retry_after_s=retry_after_s)


@pytest.mark.parametrize("failure", [status(429), status(503), status(529), ConnectFailed()])
def test_pauses_double_up_to_a_bound_and_retries_end(failure: GhostCacherError) -> None:
    for attempt in range(20):
        pause_s = pause_before_retry(failure, attempt, 20)
        longest_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2**attempt)
        assert pause_s is not None
        assert longest_s / 2 <= pause_s <= longest_s
    assert pause_before_retry(failure, 20, 20) is None


@pytest.mark.parametrize("failure", [status(502, 1.0), status(500), status(404), AnswerTimeout(), AnswerBroken("")])
def test_what_may_be_under_way_or_wrong_is_not_sent_again(failure: GhostCacherError) -> None:
    assert pause_before_retry(failure, 0, 9) is None


@pytest.mark.parametrize(("asked_s", "pause_s"), [(0.0, 0.0), (7.0, 7.0), (RETRY_AFTER_MAX_S + 1, None)])
def test_server_says_when(asked_s: float, pause_s: float | None) -> None:
    assert pause_before_retry(status(429, asked_s), 0, 9) == pause_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        (" 0 ", 0.0),
        ("Sun, 09 Sep 2001 01:46:45 GMT", 5.0),
        ("Sun, 09 Sep 2001 01:46:35 GMT", 0.0),
        ("-1", None),
        ("soon", None),
        ("", None),
    ],
)
def test_header_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_s_of(value, NOW_S) == seconds
