"""SIGHUP: which settings are taken over, and which are named since they need a restart."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator

import msgspec
import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.app import Router
from ghostcacher_router.config import RouterSettings
from ghostcacher_router.process_signals import RELOADED, ProcessSignals
from tests.support.proxy_rig import eventually, on_loop

FIRST = RouterSettings(redis=False, workers=("http://127.0.0.1:1",))


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Put back what a router sets for its process."""
    root = logging.getLogger()
    before = root.level
    yield
    root.setLevel(before)


def reloading(
    taken: list[RouterSettings], caplog: pytest.LogCaptureFixture
) -> Callable[[RouterSettings | str], Awaitable[None]]:
    """Handle signals; return what sends one, with the settings as they are given then, or why they are bad."""
    given: list[RouterSettings | str] = []

    def read_again() -> RouterSettings:
        if isinstance(given[-1], str):
            raise ConfigError(given[-1])
        return given[-1]

    signals = ProcessSignals(FIRST, read_again=read_again, take_over=taken.append, cut=lambda: None)
    signals.install()

    async def reload(settings: RouterSettings | str) -> None:
        given.append(settings)
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(lambda: sum(map(_ends_one, caplog.messages)) == len(given))

    return reload


def _ends_one(message: str) -> bool:
    """Say whether a line of the log is the last one of a SIGHUP."""
    return message.startswith(("SIGHUP: settings read again", "SIGHUP: the settings stay"))


@on_loop
async def test_each_change_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """Compared with what was given the last time: what still needs a restart is not said again."""
    caplog.set_level("INFO")
    taken: list[RouterSettings] = []
    reload = reloading(taken, caplog)
    second = msgspec.structs.replace(FIRST, retries_max=1, access_log=True)
    for settings in (second, second, "bad", FIRST):
        await reload(settings)
    said = [record.getMessage() for record in caplog.records if "SIGHUP" in record.getMessage()]
    assert said == [
        "SIGHUP: these settings have changed, and need a restart: retries_max",
        "SIGHUP: settings read again; changed: access_log",
        "SIGHUP: settings read again; changed: none",
        "SIGHUP: the settings stay as they are: bad",
        "SIGHUP: these settings have changed, and need a restart: retries_max",
        "SIGHUP: settings read again; changed: access_log",
    ]
    assert taken == [second, second, FIRST]


@on_loop
async def test_router_takes_over_what_changes_nothing_in_flight() -> None:
    """All of that, and nothing else."""
    router = Router(FIRST)
    wanted = {"log_level": "error", "access_log": True, "access_log_prompts": True, "drain_timeout_s": 7.5}
    assert wanted.keys() == set(RELOADED)
    router.take_over(msgspec.structs.replace(FIRST, retries_max=1, **wanted))
    assert (router.drain_timeout_s, router._proxy.state.access_log) == (7.5, True)
    assert logging.getLogger().level == logging.ERROR
    assert router._settings == msgspec.structs.replace(FIRST, **wanted)
    await router.stop()
