"""The limit of open files: raised as far as it goes, and told when it is not enough."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from ghostcacher_router.http.open_files import PER_CLIENT, RESERVED, allow_clients

SOFT = 512


@pytest.fixture
def hard() -> Iterator[int]:
    """The hard limit, with a soft limit below it for the length of the test."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_limit_is_raised_as_far_as_it_goes(hard: int, caplog: pytest.LogCaptureFixture) -> None:
    """What fits below it is no reason to complain."""
    assert hard > SOFT
    allow_clients((hard - RESERVED) // PER_CLIENT)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert caplog.messages == []


def test_more_clients_than_descriptors_are_warned_of(hard: int, caplog: pytest.LogCaptureFixture) -> None:
    """With both numbers."""
    fitting = (hard - RESERVED) // PER_CLIENT
    allow_clients(fitting + 1)
    (message,) = caplog.messages
    assert f"connections_max is {fitting + 1}" in message
    assert f"about {fitting} clients" in message


def test_limit_that_cannot_be_raised_stays(
    hard: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router starts all the same."""

    def refuse(*_: object) -> None:
        raise ValueError("not allowed")

    with monkeypatch.context() as patch:
        patch.setattr(resource, "setrlimit", refuse)
        allow_clients(1)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (SOFT, hard)
    assert len(caplog.messages) == 1
