"""What the SGLang linker's settings must be, and how a process ends whose flags give others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.engines.sglang.flags import check_flags, check_secrets, check_waits, linker_settings


def arguments(extra: dict[str, object] | None = None, **changes: Any) -> Any:
    """Return what SGLang makes of flags that ask for the linker, with these settings."""
    linker = {"linker": "GhostCacherLinker", "linker_module_path": "ghostcacher_connector.engines.sglang"}
    found = {
        "enable_unified_cache_external_linker": True,
        "unified_cache_external_linker_config": {**linker, "linker_extra_config": extra},
        "watchdog_timeout": 300.0,
    }
    return SimpleNamespace(**(found | changes))


@pytest.mark.parametrize(
    "extra",
    [
        {"index_key": "k" * 16},
        {"relay_token": "t" * 16},
        {"redis_url": "redis://user:secret@redis:6379/0"},
        {"redis_url": "unix:///run/redis.sock?password=secret"},
    ],
)
def test_secrets_are_refused_where_sglang_shows_them(extra: dict[str, object]) -> None:
    """SGLang logs its configuration and serves it; the message names the variable, and not the secret."""
    key = next(iter(extra))
    with pytest.raises(ConfigError, match=f"GC_{key.upper()}") as caught:
        check_secrets(extra)
    assert str(extra[key]) not in str(caught.value)
    with pytest.raises(ConfigError, match=f"GC_{key.upper()}"):
        linker_settings(extra, {}, None)


def test_longest_wait_is_bounded_by_the_watchdog() -> None:
    """An engine whose scheduler waits for long is ended by SGLang."""
    check_waits(Settings(pull_timeout_s=9.0), 30.0)
    check_waits(Settings(pull_timeout_s=10.0), None)
    with pytest.raises(ConfigError, match="pull_timeout_s: expected at most 10 s together"):
        check_waits(Settings(pull_timeout_s=10.0), 30.0)
    with pytest.raises(ConfigError, match="pull_timeout_s: expected at most 10 s together"):
        linker_settings({"pull_timeout_s": 10.0}, {}, 30.0)


@pytest.mark.parametrize(
    ("extra", "variable", "named"),
    [
        ({"pul": "auto"}, None, "unknown setting pul: did you mean pull?"),
        ({"pull_timeout_s": 200.0}, None, "watchdog_timeout=300"),
        ({}, "GC_REDIS_ULR", "unknown environment variable GC_REDIS_ULR: did you mean GC_REDIS_URL?"),
        (None, "GC_REDIS_ULR", "unknown environment variable GC_REDIS_ULR: did you mean GC_REDIS_URL?"),
    ],
)
def test_wrong_settings_end_the_process_with_the_reason_last(
    extra: dict[str, object] | None,
    variable: str | None,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is loaded, with the status that argparse has for a wrong flag."""
    if variable is not None:
        monkeypatch.setenv(variable, "redis://redis:6379/0")
    with pytest.raises(SystemExit) as caught:
        check_flags(arguments(extra))
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: argument --unified-cache-external-linker-config: GhostCacher: ")
    assert named in last


@pytest.mark.parametrize(
    "changes",
    [
        {"enable_unified_cache_external_linker": False},
        {"unified_cache_external_linker_config": None},
        {"unified_cache_external_linker_config": {"linker": "Another", "linker_extra_config": {"pul": 1}}},
    ],
)
def test_engines_without_the_linker_are_left_alone(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin is loaded by every SGLang: a variable of ours that is wrong is no concern of theirs."""
    monkeypatch.setenv("GC_REDIS_ULR", "redis://redis:6379/0")
    check_flags(arguments(**changes))


def test_right_settings_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag wins over the environment."""
    monkeypatch.setenv("GC_PULL", "never")
    check_flags(arguments({"pull": "always"}))
    assert linker_settings({"pull": "always"}, {"GC_PULL": "never"}, None).pull == "always"
