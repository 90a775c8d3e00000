"""Checks the linker's settings, as SGLang's flags and the environment give them.

They are checked twice: as soon as SGLang has parsed its flags (hooks.py), so that a typing error costs seconds; and
when the linker is made, after the weights are loaded, since SGLang can be started without flags, too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from ghostcacher_connector.config import Settings, load_settings, variable_of
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import redact_url

LINKER = "GhostCacherLinker"
EXIT_STATUS = 2
"""As argparse has it for a wrong flag."""

WATCHDOG_SHARE = 3
"""One pass may wait for so small a part of the watchdog's time: it is not all that a pass does."""


def linker_settings(extra: Mapping[str, object], environ: Mapping[str, str], watchdog_s: float | None) -> Settings:
    """Return the settings of this engine's linker. Raises ConfigError.

    extra: what stands in ``linker_extra_config``.
    watchdog_s: seconds after which SGLang takes a scheduler that does not answer for dead; None or 0 for never.
    """
    settings = load_settings(extra, environ)
    check_secrets(extra)
    check_waits(settings, watchdog_s)
    return settings


def check_secrets(extra: Mapping[str, object]) -> None:
    """Raise ConfigError for a secret where SGLang would show it to others."""
    shown = {key for key in Settings.masked if extra.get(key) is not None}
    shown |= {key for key in Settings.urls if redact_url(str(extra.get(key, ""))) != str(extra.get(key, ""))}
    if shown:
        key = min(shown)
        raise ConfigError(
            f"{key}: expected in the environment variable {variable_of(key)}, found in linker_extra_config, which "
            "SGLang logs and serves at /server_info"
        )


def check_waits(settings: Settings, watchdog_s: float | None) -> None:
    """Raise ConfigError for waits so long that SGLang would take the engine for dead.

    Requests wait in its queue, and hold up no others; but a scheduler that is short of memory waits for pulls.
    """
    wait_s = settings.lookup_deadline_ms / 1e3 + settings.pull_timeout_s
    if watchdog_s and wait_s > watchdog_s / WATCHDOG_SHARE:
        raise ConfigError(
            f"lookup_deadline_ms and pull_timeout_s: expected at most {watchdog_s / WATCHDOG_SHARE:g} s together, got "
            f"{wait_s:g} s: a scheduler that is short of memory waits for pulls, and counts as dead after "
            f"watchdog_timeout={watchdog_s:g} s"
        )


def check_flags(server_args: Any) -> None:
    """End the process when the flags ask for a linker with wrong settings; the reason is the last line of its output.

    server_args: SGLang's ServerArgs, as the command line gave them.
    """
    linker = server_args.unified_cache_external_linker_config
    if not server_args.enable_unified_cache_external_linker or not isinstance(linker, dict):
        return
    if linker.get("linker") != LINKER:
        return
    try:
        linker_settings(linker.get("linker_extra_config") or {}, os.environ, server_args.watchdog_timeout)
    except ConfigError as exc:
        print(f"error: argument --unified-cache-external-linker-config: GhostCacher: {exc}", file=sys.stderr)
        raise SystemExit(EXIT_STATUS) from exc
