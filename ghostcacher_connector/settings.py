"""What the settings of a worker and of a router have in common: checked however made, and fit to be printed.

Every value is checked against its field's type and range, also when a struct is made in code. Secrets never appear in
`repr`, in `redacted` or in messages.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, ClassVar, NamedTuple, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from ghostcacher_connector.conversion import checked, from_text
from ghostcacher_connector.errors import ConfigError

MASK = "***"
SECRET_CHARS_MIN = 16
"""Whoever can reach a port or read Redis can try secrets against what they see: they must withstand it."""

Seconds = float
Milliseconds = float
Text = Annotated[str, Meta(min_length=1, max_length=4096)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
Secret = Annotated[str, Meta(min_length=SECRET_CHARS_MIN, max_length=4096)]


class CheckedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all settings. Any way to construct one checks it; raises ConfigError naming the setting.

    masked: secrets of which nothing is shown. urls: may hold a user and a password; of these the rest is shown.
    """

    masked: ClassVar[frozenset[str]] = frozenset()
    urls: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for key, annotation in types_of(type(self)).items():
            checked(key, getattr(self, key), annotation, secret=key in self.masked | self.urls)
        self.check_together()

    def __repr__(self) -> str:
        defaults = {field.name: field.default for field in msgspec.structs.fields(self)}
        changed = {key: value for key, value in self.redacted().items() if value != defaults[key]}
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in changed.items())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return list(self.redacted().items())

    def redacted(self) -> dict[str, object]:
        """Return every setting by name, fit for a log: secrets are masked."""
        return {key: self._fit_for_log(key, getattr(self, key)) for key in self.__struct_fields__}

    def check_together(self) -> None:
        """Check what one type cannot say; raise ConfigError. Called when every value fits its own type."""

    def _fit_for_log(self, key: str, value: object) -> object:
        if value is None:
            return None
        if key in self.masked:
            return MASK
        return _redacted(value) if key in self.urls else value


class Listen(NamedTuple):
    """An address to listen on. Port 0 means any free port."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Say whether only this machine can connect. A name other than localhost counts as reachable from afar."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@cache
def types_of(kind: type[CheckedSettings]) -> dict[str, Any]:
    """Return the annotated type of every setting, by name."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in kind.__struct_fields__}


def from_mapping(kind: type[CheckedSettings], values: Mapping[str, object]) -> dict[str, Any]:
    """Return typed values, each checked. Raises ConfigError naming the key, what was expected and what came."""
    types = types_of(kind)
    found = {}
    for key, value in values.items():
        if key not in types:
            raise ConfigError(unknown("setting", str(key), list(types)))
        found[key] = checked(key, value, types[key], secret=key in kind.masked | kind.urls)
    return found


def from_environment(
    kind: type[CheckedSettings], environ: Mapping[str, str], names: Iterable[str], variables: Mapping[str, str]
) -> dict[str, Any]:
    """Return the values of these environment variables, by setting. Raises ConfigError for one that names none.

    names: those to read. variables: setting by the name of its variable.
    """
    types = types_of(kind)
    found = {}
    for name in sorted(names):
        if name not in variables:
            raise ConfigError(unknown("environment variable", name, list(variables)))
        key = variables[name]
        found[key] = from_text(name, environ[name], types[key], secret=key in kind.masked | kind.urls)
    return found


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """Return the message about a name that is not among the known ones, with the one that was probably meant."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
    return f"unknown {what} {name}: {hint}"


def parse_listen(text: str, key: str) -> Listen:
    """Return the parts of ``host:port`` or ``[ipv6]:port``. Raises ConfigError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65_535:  # noqa: PLR2004 - the largest port
        raise ConfigError(f'{key}: expected "host:port" with a port from 0 to 65535, got {text!r}')
    return Listen(match[1] or match[2], int(match[3]))


def check_redis_url(url: str | None) -> None:
    """Raise ConfigError, without the URL's secrets, unless it has a scheme that Redis clients know."""
    if url is not None and not re.match(r"(redis|unix)[a-z+]*://", url):
        raise ConfigError("redis_url: expected a URL such as redis://host:6379/0 or unix:///path, got no such scheme")


def check_http_url(key: str, url: str) -> None:
    """Raise ConfigError unless it is the base URL of an HTTP server, without secrets in it."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine or parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(
            f"{key}: expected http[s]://host[:port][/path] without user or query, got {redact_url(url)!r}"
        )


def redact_url(url: str) -> str:
    """Return a URL without the user, the password and the password options in it."""
    scheme, found, rest = url.partition("://")
    if not found:
        return MASK if "@" in url else url
    _, found, address = rest.rpartition("@")
    address = re.sub(r"([?&][^=&]*password=)[^&]*", rf"\1{MASK}", address)
    return f"{scheme}://{MASK}@{address}" if found else f"{scheme}://{address}"


def _redacted(value: object) -> object:
    if isinstance(value, str):
        return redact_url(value)
    return tuple(map(_redacted, value)) if isinstance(value, tuple) else value
