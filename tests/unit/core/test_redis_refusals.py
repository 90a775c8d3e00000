"""How Redis refuses us, in words, without a secret."""

from __future__ import annotations

import pytest
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from ghostcacher_connector.core.redis.client import text_of


@pytest.mark.parametrize("password", ["wrong", "password", "user"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AuthenticationError("invalid username-password pair or user is disabled."), "wrong user or password"),
        (NoPermissionError("this wrong user has no password"), "this user lacks a permission (NOPERM)"),
    ],
)
def test_refusals_are_named_whatever_the_password(error: RedisError, said: str, password: str) -> None:
    """A password that is a common word hides none of our own words."""
    assert text_of(error, (password,)).startswith(said)


def test_what_redis_said_is_left_out_where_it_repeats_a_secret() -> None:
    error = ResponseError("unknown command 'AUTH', with args beginning with: 'pw-of-us'")
    assert text_of(error, ("pw-of-us",)) == "ResponseError"
    assert text_of(error, ("another",)) == f"ResponseError: {error}"
