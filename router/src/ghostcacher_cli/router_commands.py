"""The router's commands of `ghostcacher`: router, up, status and top. Each returns an exit code.

Reached through router/src/ghostcacher_cli/main.py, which imports this when one of them is asked for.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import from_text, types_of
from ghostcacher_router.config import RouterSettings, load_router_settings

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
DEFAULT_URL = "http://127.0.0.1:8000"
TOKEN_VARIABLE = "GC_ROUTER_ADMIN_TOKEN"  # noqa: S105 - the name, not the token
EXIT_INTERRUPTED = 130


def run_command(name: str, words: Sequence[str]) -> int:
    """Run one of `COMMANDS` with the words that follow it. Raises GhostCacherError for what people can mend."""
    return COMMANDS[name](words)


def router_options(words: Sequence[str], environ: Mapping[str, str]) -> RouterSettings:
    """Return the settings that a command line, the file that it names and the environment give."""
    given = vars(_router_parser().parse_args(words))
    file = given.pop("config")
    types = types_of(RouterSettings)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if value is not None:
            values[key] = from_text(option_of(key), value, types[key]) if isinstance(value, str) else value
    return load_router_settings(values, file, environ)


def option_of(key: str) -> str:
    """Return the command-line option of a setting."""
    return "--worker" if key == "workers" else "--" + key.replace("_", "-")


def _router_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ghostcacher router",
        description="Run the router: it sends each request to the worker with the lowest forecast time to first token.",
        epilog="Secrets are given by --config or the environment: GC_ROUTER_ADMIN_TOKEN, GC_INDEX_KEY, GC_REDIS_URL.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML, or in JSON (*.json)")
    for field in msgspec.structs.fields(RouterSettings):
        if field.name in RouterSettings.masked:
            continue
        kind: dict[str, Any] = {"metavar": "URL" if field.name in RouterSettings.urls else "VALUE"}
        if isinstance(field.default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        elif field.name == "workers":
            kind |= {"action": "append"}
        parser.add_argument(option_of(field.name), dest=field.name, default=None, help=_help_of(field), **kind)
    return parser


def _help_of(field: msgspec.structs.FieldInfo) -> str:
    info = msgspec.inspect.type_info(field.type)
    assert isinstance(info, msgspec.inspect.Metadata)
    text = str((info.extra_json_schema or {})["description"])
    default = "" if field.default in (None, ()) else f" (default: {field.default})"
    return (text + default).replace("%", "%%")


def _router(words: Sequence[str]) -> int:
    settings = router_options(words, os.environ)
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    from ghostcacher_router.app import run  # noqa: PLC0415 - late: bad options are told before anything is loaded

    return run(settings)


def _up(words: Sequence[str]) -> int:
    from ghostcacher_cli.up.run import main  # noqa: PLC0415 - what only this command needs

    return main(words, os.environ)


def _status(words: Sequence[str]) -> int:
    from ghostcacher_cli.terminal.show import show_status  # noqa: PLC0415 - what only this command needs

    parser = _fleet_parser("status", "Show a router's fleet once.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(words)
    return show_status(options.url, _token(options.token_env), as_json=options.json)


def _top(words: Sequence[str]) -> int:
    from ghostcacher_cli.terminal.show import show_top  # noqa: PLC0415 - what only this command needs

    options = _fleet_parser("top", "Show a router's fleet, anew each second; q or Ctrl-C ends.").parse_args(words)
    return show_top(options.url, _token(options.token_env))


def _fleet_parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"ghostcacher {name}", description=description, allow_abbrev=False)
    parser.add_argument("--url", default=DEFAULT_URL, help="the router's base URL (default: %(default)s)")
    parser.add_argument(
        "--token-env",
        metavar="NAME",
        help=f"environment variable that holds the admin token (default: {TOKEN_VARIABLE}, when it is set)",
    )
    return parser


def _token(variable: str | None) -> str | None:
    """Return the admin token; None without one. Raises ConfigError when a variable was named and is not set."""
    token = os.environ.get(variable or TOKEN_VARIABLE)
    if variable is not None and not token:
        raise ConfigError(f"--token-env: expected the variable {variable} to be set, it is not")
    return token or None


COMMANDS = {"router": _router, "up": _up, "status": _status, "top": _top}
