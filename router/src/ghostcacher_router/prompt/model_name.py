"""Finds the model that a request names elsewhere than in a JSON body: in a form with files, or in the query.

Forms are those of `multipart/form-data`, with which audio comes. They may be tens of MiB, nearly all of it one file,
and clients put the model before or behind it. So only the beginning and the end of a form are searched: the time that
it takes has a bound, whatever the body holds. A model that stands between two large files is not found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote_plus

BEGIN_BYTES = 4 << 20
END_BYTES = 1 << 20
"""How much of a form's beginning and end is searched. The worst body costs some 4 ms a MiB, a usual one 0.5 ms."""
PARTS_MAX = 128
"""Parts that are looked at in either of them."""
PART_HEAD_BYTES_MAX = 1024
"""Of the part that is the model. Others may have longer heads, since file names stand there."""
MODEL_BYTES_MAX = 1024

_FORM = re.compile(rb"(?i)\s*multipart/form-data\s*;")
_BOUNDARY = re.compile(rb'(?i);\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s;,"]{1,70}))')
_NAMED_MODEL = re.compile(
    rb'(?im)^content-disposition:[ \t]*form-data(?=[^\r\n]*;[ \t]*name=(?:"model"|model[ \t]*(?:;|\r|\Z)))'
    rb"(?![^\r\n]*;[ \t]*filename)"
)
_IN_QUERY = re.compile(r"(?:\A|&)model=([^&]*)")


def is_form(headers: Mapping[bytes, bytes]) -> bool:
    """Say whether the body is a form with files. headers: by lower-case name."""
    return _FORM.match(headers.get(b"content-type", b"")) is not None


def model_of_form(body: bytes, headers: Mapping[bytes, bytes]) -> str | None:
    """Return the model that a form names; None when it names none, or not where it is searched for."""
    boundary = _BOUNDARY.search(headers.get(b"content-type", b""))
    if boundary is None:
        return None
    delimiter = b"--" + (boundary[1] or boundary[2])
    if body.startswith(delimiter):
        found = _model_among(body, len(delimiter), min(len(body), BEGIN_BYTES), b"\r\n" + delimiter)
    else:
        found = _model_behind(body, 0, min(len(body), BEGIN_BYTES), b"\r\n" + delimiter)
    if found is None and len(body) > BEGIN_BYTES:
        found = _model_behind(body, max(BEGIN_BYTES, len(body) - END_BYTES), len(body), b"\r\n" + delimiter)
    return found


def model_of_query(query: str) -> str | None:
    """Return the model that a query names. query: without its question mark."""
    named = _IN_QUERY.search(query)
    return (unquote_plus(named[1])[:MODEL_BYTES_MAX] or None) if named is not None else None


def _model_behind(body: bytes, begin: int, end: int, delimiter: bytes) -> str | None:
    """Search the parts that begin behind the first delimiter in ``[begin, end)``."""
    at = body.find(delimiter, begin, end)
    return None if at < 0 else _model_among(body, at + len(delimiter), end, delimiter)


def _model_among(body: bytes, begin: int, end: int, delimiter: bytes) -> str | None:
    """Search the parts in ``[begin, end)``, of which the first begins right behind its delimiter."""
    for _ in range(PARTS_MAX):
        head_end = body.find(b"\r\n\r\n", begin, min(end, begin + PART_HEAD_BYTES_MAX))
        if head_end >= 0 and _NAMED_MODEL.search(body, begin, head_end) is not None:
            value = head_end + len(b"\r\n\r\n")
            value_end = body.find(delimiter, value, value + MODEL_BYTES_MAX + len(delimiter))
            return body[value:value_end].decode(errors="replace") if value_end > value else None
        at = body.find(delimiter, begin, end)
        if at < 0:
            return None
        begin = at + len(delimiter)
    return None
