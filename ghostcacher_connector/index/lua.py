"""The Lua scripts of the index, as callables that run on any client."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from ghostcacher_connector.index.connect import Client

Argument = str | bytes | int


class Script:
    """A script in the package's `scripts` folder; one round trip once the server has it."""

    def __init__(self, name: str) -> None:
        path = files("ghostcacher_connector.index").joinpath("scripts", f"{name}.lua")
        self.name = name
        self._source = path.read_text(encoding="utf-8")
        # Redis names a script by its SHA-1; nothing here relies on that for security.
        self._sha = hashlib.sha1(self._source.encode(), usedforsecurity=False).hexdigest()

    def __repr__(self) -> str:
        return f"Script({self.name})"

    def __call__(self, client: Client, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run the script where `keys` are. A server that does not have it gets its source along."""
        try:
            return client.evalsha(self._sha, len(keys), *keys, *args)
        except NoScriptError:
            # EVAL, unlike SCRIPT LOAD, goes to the shard of the keys, and the server keeps the source.
            return client.eval(self._source, len(keys), *keys, *args)


@cache
def script(name: str) -> Script:
    """Return the script of that name, read once."""
    return Script(name)
