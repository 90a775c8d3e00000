"""What the settings of a worker and of a router have in common: checked however made, and fit to be printed.

Every value is checked against its field's type and range, also when a struct is made in code. Secrets never appear in
`repr`, in `redacted` or in messages. The second half checks one value against one annotated type, converts it from
text and says what was expected. It knows the types that settings have: bool, int, float, str, Literal, tuples of these,
each with its range as ``msgspec.Meta`` and perhaps None: ``pull_threads: expected an int from 1 to 64, got 'two'``.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, ClassVar, NamedTuple, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, inspect

from ghostcacher_connector.core.errors import ConfigError

ENVIRONMENT_PREFIX = "GC_"
ROUTER_PREFIX = "GC_ROUTER_"
UPSTREAM_VARIABLE = "GC_UPSTREAM_URL"
"""Another name of the variable of the router's `upstreams`; nothing to workers that share its environment."""

MASK = "***"
NAME_SIMILARITY = 0.75
"""From here on an unknown name looks like a known one, misspelt. Below, a guess would mislead."""
PORT_MAX = 65_535
SECRET_CHARS_MIN = 16
"""Whoever can reach a port or read Redis can try secrets against what they see: they must withstand it."""

Seconds = float
Milliseconds = float
Text = Annotated[str, Meta(min_length=1, max_length=4096)]
Port = Annotated[int, Meta(ge=0, le=PORT_MAX)]
Secret = Annotated[str, Meta(min_length=SECRET_CHARS_MIN, max_length=4096)]


class CheckedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all settings. Any way to construct one checks it; raises ConfigError naming the setting."""

    masked: ClassVar[frozenset[str]] = frozenset()
    """Secrets of which nothing is shown."""

    urls: ClassVar[frozenset[str]] = frozenset()
    """Settings that may hold a user and a password; of these the rest is shown."""

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
        """Whether only this machine can connect. A name other than localhost counts as reachable from afar."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@cache
def types_of(kind: type[CheckedSettings]) -> dict[str, Any]:
    """Return the annotated type of every setting, by name: those of a kind itself, then those that it inherits."""
    hints = get_type_hints(kind, include_extras=True)
    groups = [each for each in kind.__mro__ if issubclass(each, CheckedSettings)]
    inherited = Counter(name for group in groups for name in group.__struct_fields__)
    return {name: hints[name] for name in sorted(kind.__struct_fields__, key=inherited.__getitem__)}


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
    close = difflib.get_close_matches(name, known, n=1, cutoff=NAME_SIMILARITY)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
    return f"unknown {what} {name}: {hint}"


def parse_listen(text: str, key: str) -> Listen:
    """Return the parts of ``host:port`` or ``[ipv6]:port``. Raises ConfigError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > PORT_MAX:
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


_BOOLS = {"1": True, "true": True, "0": False, "false": False}
_SHOWN_CHARS_MAX = 200


def checked(key: str, value: object, annotation: Any, *, secret: bool = False) -> Any:
    """Return the value as the type wants it (a list becomes a tuple); raise ConfigError when it does not fit.

    secret: keep the value out of the message.
    """
    try:
        fits = msgspec.convert(value, annotation)
    except msgspec.ValidationError:
        raise _refused(key, annotation, value, secret) from None
    if isinstance(fits, float) and not math.isfinite(fits):
        raise _refused(key, annotation, value, secret)
    if isinstance(fits, tuple) and len(set(fits)) != len(fits):
        twice = next(item for item in fits if fits.count(item) > 1)
        raise ConfigError(f"{key}: expected each once, got {redact_url(str(twice))!r} {fits.count(twice)} times")
    return fits


def from_text(key: str, text: str, annotation: Any, *, secret: bool = False) -> Any:
    """Return what a text, as environment variables have it, means for a type; raise ConfigError.

    bool: 1, 0, true or false, in any case. A tuple: separated by commas, or a JSON array. An empty text: no items, or
    None.
    """
    kinds = _kinds(annotation)
    stripped = text.strip()
    if not stripped and any(isinstance(kind, inspect.NoneType) for kind in kinds):
        return None
    kind = next(kind for kind in kinds if not isinstance(kind, inspect.NoneType))
    value: object = stripped
    try:
        if isinstance(kind, inspect.BoolType):
            value = _BOOLS[stripped.lower()]
        elif isinstance(kind, inspect.IntType):
            value = int(stripped)
        elif isinstance(kind, inspect.FloatType):
            value = float(stripped)
        elif isinstance(kind, inspect.VarTupleType):
            value = _items(stripped)
    except (KeyError, ValueError, RecursionError):
        raise _refused(key, annotation, text, secret) from None
    return checked(key, value, annotation, secret=secret)


def _items(text: str) -> object:
    if text.startswith("["):
        return json.loads(text)
    return tuple(item.strip() for item in text.split(",")) if text else ()


def expectation(annotation: Any) -> str:
    """Say in words what a type takes: ``an int from 1 to 64``."""
    return " or ".join(_words(kind) for kind in _kinds(annotation))


def limits(annotation: Any) -> tuple[float | None, float | None]:
    """Return the least and the greatest value of a number's type; None where there is no limit."""
    for kind in _kinds(annotation):
        if isinstance(kind, inspect.IntType | inspect.FloatType):
            return kind.ge, kind.le
    return None, None


def is_number(annotation: Any) -> bool:
    return any(isinstance(kind, inspect.IntType | inspect.FloatType) for kind in _kinds(annotation))


def _kinds(annotation: Any) -> tuple[inspect.Type, ...]:
    kind = inspect.type_info(annotation)
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        return tuple(part.type if isinstance(part, inspect.Metadata) else part for part in kind.types)
    return (kind,)


def _words(kind: inspect.Type) -> str:
    match kind:
        case inspect.NoneType():
            words = "nothing"
        case inspect.BoolType():
            words = "true or false"
        case inspect.IntType(ge=low, le=high):
            words = f"an int{_range(low, high)}"
        case inspect.FloatType(ge=low, le=high):
            words = f"a finite number{_range(low, high)}"
        case inspect.LiteralType(values=values):
            words = f"one of {', '.join(str(value) for value in values)}"
        case inspect.VarTupleType(item_type=item):
            words = f"a list of {_words(item).removeprefix('one of ')}"
        case inspect.StrType(pattern=str(pattern)):
            words = f"a text that matches {pattern}"
        case inspect.StrType(min_length=low, max_length=high):
            words = f"a text of {low or 0} to {high} characters"
        case _:
            raise AssertionError(f"no words for {kind}")
    return words


def _range(low: float | None, high: float | None) -> str:
    return (f" from {low:.10g}" if low is not None else "") + (f" to {high:.10g}" if high is not None else "")


def _refused(key: str, annotation: Any, value: object, secret: bool) -> ConfigError:
    return ConfigError(f"{key}: expected {expectation(annotation)}, got {_shown(value, secret)}")


def _shown(value: object, secret: bool) -> str:
    if secret:
        size = f" of {len(value)} characters" if isinstance(value, str) else ""
        return f"a {type(value).__name__}{size} (hidden, it may be a secret)"
    text = repr(value)
    return f"{text if len(text) <= _SHOWN_CHARS_MAX else text[:_SHOWN_CHARS_MAX] + '...'} ({type(value).__name__})"
