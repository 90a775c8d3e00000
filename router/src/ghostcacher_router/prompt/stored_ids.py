"""Finds which stored object a request needs: what one worker keeps in its memory.

GET, DELETE, POST /v1/responses/ID...     answers; the same of files and batches
POST /v1/responses                        previous_response_id
POST /v1/batches                          input_file_id
POST /generate and prompts                session_params.id, of a session of SGLang; POST /open_session makes it
POST /close_session                       session_id
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

ID_CHARS_MAX = 256
FIELD_BYTES_MAX = 4096
"""Of the field of a body that names an object; a longer one names none."""
FIELDS = {"/v1/batches": "input_file_id", "/close_session": "session_id", "/generate": "session_params"}
"""The field that names an object, by path, where the router reads no prompt."""
_COLLECTIONS = "responses|files|batches"
_OBJECT = re.compile(rf"/v1/(?:{_COLLECTIONS})/([^/]+)(?:/.*)?")
_MAKES = re.compile(rf"/v1/(?:{_COLLECTIONS})|/open_session")
_VERBS = frozenset({"render", "compact", "input_tokens"})
"""What stands behind /v1/responses/ and is no id."""


def makes_object(path: str) -> bool:
    """Say whether a POST to this path makes an object whose id is in the answer."""
    return _MAKES.fullmatch(path) is not None


def id_in_path(path: str) -> str | None:
    """Return the id of the object that a path names. path: without its query."""
    found = _OBJECT.fullmatch(path)
    return None if found is None or found[1] in _VERBS else id_of(unquote(found[1]))


def id_of(value: Any) -> str | None:
    """Return the id in a field of a body: a string, or an object with an `id`; None when it is none."""
    value = value.get("id") if type(value) is dict else value
    return value if type(value) is str and 0 < len(value) <= ID_CHARS_MAX else None
