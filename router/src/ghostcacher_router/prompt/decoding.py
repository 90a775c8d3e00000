"""Decodes bodies: as strictly as msgspec does, and where that fails as leniently as the engines do.

Engines read with Python's json: text in UTF-16 and UTF-32, a byte order mark, NaN and Infinity are JSON to it. A body
with any of these is written anew for routing (a number that is none becomes null), and passed on as it came.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from math import isfinite
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Raw

from ghostcacher_router.prompt.bodies import DEPTH_MAX, BadBody, Body, TakesLong, TooDeep, in_words_of_json, ordinary
from ghostcacher_router.prompt.structure import check_depth

B = TypeVar("B", bound=Body)
T = TypeVar("T")

SHALLOW_BYTES = 2 * DEPTH_MAX
"""A shorter value cannot be nested too deeply."""

_TOO_LARGE = "Number out of range"
"""Begins msgspec's words for what is infinity to Python."""
_EXPECTED = re.compile(r"Expected `(.+?)`, got `(.+?)`")
_PATH = re.compile(r" - at `\$\.?(.*)`$")
_anything = msgspec.json.Decoder(Any)
_fields = msgspec.json.Decoder(dict[str, Raw])


class BodyDecoder(Generic[B]):
    """Decodes the bodies of one API.

    body: their type. walked: fields of it whose depth is checked by whoever walks them. They are long, and looking
    through them here would take long.
    """

    def __init__(self, body: type[B], walked: Iterable[str]) -> None:
        self.walked = frozenset(walked)
        self._ordinary = msgspec.json.Decoder(ordinary(body))
        self._any = msgspec.json.Decoder(body)

    def __repr__(self) -> str:
        return f"BodyDecoder({self._any.type.__name__})"

    def decode(self, body: bytes, lenient_bytes_max: int) -> B:
        """Return a decoded body, in which no other field is too deep. Raises BadBody, and TakesLong.

        lenient_bytes_max: of a body that is read as engines do, which takes 0.2 ms a KiB.
        """
        try:
            return self._ordinary.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _decode(self._any, body, self.walked, lenient_bytes_max)


def decode_value(json: bytes) -> Any:
    """Return any value of a body. Raises BadBody."""
    return _decode(_anything, json)


def decode_fields(body: bytes, lenient_bytes_max: int) -> Mapping[str, Raw]:
    """Return the fields of a body of an API that the router does not know. Raises BadBody, and TakesLong."""
    return _decode(_fields, body, (), lenient_bytes_max)


def _decode(
    decoder: msgspec.json.Decoder[T],
    body: bytes,
    walked: Collection[str] | None = None,
    lenient_bytes_max: int = sys.maxsize,
) -> T:
    """Return what is decoded; as leniently as engines do. walked: None where no depth is to be checked."""
    try:
        if walked is not None:
            _check_fields(_fields.decode(body), walked)
        return decoder.decode(body)
    except RecursionError as exc:
        raise TooDeep from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        if isinstance(exc, msgspec.ValidationError) and not str(exc).startswith(_TOO_LARGE):
            raise _explained(str(exc)) from exc
        if len(body) > lenient_bytes_max:
            raise TakesLong from exc
        if (strict := as_strict_json(body)) is not None:
            return _decode(decoder, strict, walked)
        raise BadBody(f"The body of the request is not valid JSON: {exc}.", None) from exc


def _check_fields(fields: Mapping[str, Raw], walked: Collection[str]) -> None:
    for name, raw in fields.items():
        if name in walked:
            continue
        value = bytes(raw)
        if len(value) >= SHALLOW_BYTES and value[:1] != b'"' and value.count(b"[") + value.count(b"{") >= DEPTH_MAX:
            check_depth(value, 1)


def in_utf8(body: bytes) -> bytes:
    """Return a body in UTF-8 without a byte order mark; as it is where it is no text."""
    try:
        encoding = json.detect_encoding(body)
        return body if encoding == "utf-8" else body.decode(encoding).encode()
    except ValueError:
        return body


def as_strict_json(body: bytes) -> bytes | None:
    """Return what engines read in a body that is no strict JSON in UTF-8, as such; None where they read nothing.

    Raises TooDeep.
    """
    text = in_utf8(body)
    check_depth(text, 0)
    try:
        value = json.loads(text, parse_constant=_none, parse_float=_finite)
        strict = json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return strict if strict != body else None


def _none(_: str) -> None:
    return None


def _finite(number: str) -> float | None:
    value = float(number)
    return value if isfinite(value) else None


def _explained(text: str) -> BadBody:
    path = _PATH.search(text)
    param = path[1] if path is not None and path[1] else None
    found = _EXPECTED.match(text)
    if found is None:
        return BadBody(f"Invalid body: {_PATH.sub('', text)}.", param)
    where = "the body" if param is None else f"'{param}'"
    expected = " or ".join(in_words_of_json(name) for name in found[1].split(" | "))
    return BadBody(f"Invalid type for {where}: expected {expected}, got {in_words_of_json(found[2])}.", param)
