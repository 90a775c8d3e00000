"""Finds which stored object a request needs: an answer, a file or a batch that one worker keeps in its memory.

GET, DELETE, POST /v1/responses/ID...     and the same of files and batches
POST /v1/responses                        previous_response_id
POST /v1/batches                          input_file_id
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

ID_CHARS_MAX = 256
_COLLECTIONS = "responses|files|batches"
_OBJECT = re.compile(rf"/v1/(?:{_COLLECTIONS})/([^/]+)(?:/.*)?")
_COLLECTION = re.compile(rf"/v1/(?:{_COLLECTIONS})")
_VERBS = frozenset({"render", "compact", "input_tokens"})
"""What stands behind /v1/responses/ and is no id."""


def makes_object(path: str) -> bool:
    """Say whether a POST to this path makes an object whose id is in the answer."""
    return _COLLECTION.fullmatch(path) is not None


def id_in_path(path: str) -> str | None:
    """Return the id of the object that a path names. path: without its query."""
    found = _OBJECT.fullmatch(path)
    return None if found is None or found[1] in _VERBS else checked_id(unquote(found[1]))


def checked_id(value: Any) -> str | None:
    """Return the id in a field of a body; None when it is none."""
    return value if type(value) is str and 0 < len(value) <= ID_CHARS_MAX else None
