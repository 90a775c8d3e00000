"""What vLLM's flag for the connector is checked for, as soon as it is parsed."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.engines.vllm.plugin import CONNECTOR, RefusedFlag, checking


def complete(config: Any) -> None:
    """Stand for vLLM's own ``__post_init__``, which fills in what was left out."""
    config.completed = True


def parsed(extra: dict[str, Any], connector: str | None = CONNECTOR) -> Any:
    """Return vLLM's configuration of a connector, as it is after the flags are parsed."""
    config = SimpleNamespace(kv_connector=connector, kv_connector_extra_config=extra)
    checking(complete)(config)
    return config


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"pul": "auto"}, "GhostCacher: unknown setting pul: did you mean pull?"),
        ({"pull": "sometimes"}, "GhostCacher: pull: expected one of "),
    ],
)
def test_wrong_key_is_refused_when_flags_are_parsed(extra: dict[str, Any], named: str) -> None:
    """Callers get a ConfigError, argparse an error that it prints without a traceback."""
    with pytest.raises(RefusedFlag, match=named) as caught:
        parsed(extra)
    assert isinstance(caught.value, ConfigError)
    assert isinstance(caught.value, argparse.ArgumentTypeError)


def test_wrong_variable_is_refused_when_the_connector_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines without the connector load the plugin, too: a wrong variable must not stop them."""
    monkeypatch.setenv("GC_REDIS_ULR", "redis://redis:6379/0")
    with pytest.raises(RefusedFlag, match="GC_REDIS_ULR: did you mean GC_REDIS_URL"):
        parsed({})
    assert parsed({"pul": "auto"}, "NixlConnector").completed
    assert parsed({}, None).completed


def test_right_settings_pass() -> None:
    """vLLM's own part is done first."""
    assert parsed({"pull": "always"}).completed


def test_what_vllm_passes_is_passed_on() -> None:
    """A later vLLM may give its own method more arguments: they are not ours to judge."""
    seen: list[tuple[object, ...]] = []
    config = SimpleNamespace(kv_connector="NixlConnector")
    checking(lambda *args, **kwargs: seen.append((args, kwargs)))(config, 1, more=2)
    assert seen == [((config, 1), {"more": 2})]
