"""Reads a file of settings: TOML, or JSON when its name ends in .json; one flat table."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from ghostcacher_connector.core.errors import ConfigError

FILE_BYTES_MAX = 1 << 20


def read_file(path: Path) -> dict[str, object]:
    """Return the table in a TOML or JSON file. Raises ConfigError, which quotes nothing that the file holds."""
    try:
        with path.open("rb") as stream:
            data = stream.read(FILE_BYTES_MAX + 1)
    except OSError as exc:
        raise ConfigError(f"--config: {path} cannot be read: {exc.strerror}") from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"--config: {path}: expected at most {FILE_BYTES_MAX} bytes, got more")
    form = "JSON" if path.suffix == ".json" else "TOML"
    try:
        table = json.loads(data) if form == "JSON" else tomllib.loads(data.decode())
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"--config: {path}: expected {form}: {_safely(exc)}") from None
    if not isinstance(table, dict):
        raise ConfigError(f"--config: {path}: expected one object of settings, got {type(table).__name__}")
    return table


def _safely(exc: Exception) -> str:
    """Say where a file is wrong. tomllib quotes at most one character; anything else could be a secret."""
    return str(exc) if isinstance(exc, tomllib.TOMLDecodeError | json.JSONDecodeError) else type(exc).__name__
