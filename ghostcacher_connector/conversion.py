"""One value against one annotated type: check it, convert it from text, and say what was expected.

Knows the types that settings have: bool, int, float, str, Literal, tuples of these, each with its range as
``msgspec.Meta`` and perhaps None. Errors are ConfigError: ``pull_threads: expected an int from 1 to 64, got 'two'``.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import inspect

from ghostcacher_connector.errors import ConfigError

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
        raise ConfigError(f"{key}: expected each name once, got {_shown(value, secret)}")
    return fits


def from_text(key: str, text: str, annotation: Any, *, secret: bool = False) -> Any:
    """Return what a text, as environment variables have it, means for a type; raise ConfigError.

    bool: 1, 0, true or false, in any case. A tuple: separated by commas. An empty text: no items, or None.
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
            value = tuple(item.strip() for item in stripped.split(",")) if stripped else ()
    except (KeyError, ValueError):
        raise _refused(key, annotation, text, secret) from None
    return checked(key, value, annotation, secret=secret)


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
