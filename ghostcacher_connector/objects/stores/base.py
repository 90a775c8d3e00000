"""A store of objects as the tier sees it: names, bytes, ages, and one way to write.

What implementors must keep:
- an object is there whole or not at all under its name, whatever happens to the process that writes it;
- `create` never replaces what is there, so that an object is written once in the fleet;
- whatever the world does is a `StoreError` with a reason, never another exception;
- every call ends within the store's time-out, as far as the system below allows it, and any thread may call.

Names are relative to the prefix of the URL: ``/``-separated words of ``[a-z0-9._-]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from ghostcacher_connector.core.errors import GhostCacherError

TEMPORARY = "tmp/"
"""Names of what a store has not finished writing begin with this, where it needs such names."""


class StoreFault(str, Enum):
    """Why a store did not do what it was asked. Label values of metrics."""

    MISSING = "missing"
    """There is no such object."""

    THROTTLED = "throttled"
    """It asks for fewer requests (HTTP 429 or 503)."""

    REFUSED = "refused"
    """Credentials, permissions, or a file system that is read-only."""

    FULL = "full"
    """No space, or the quota is used up."""

    TIMEOUT = "timeout"
    """No answer within the time-out."""

    UNREACHABLE = "unreachable"
    """No connection, or one that broke off."""

    OTHER = "other"


class StoreError(GhostCacherError):
    """A store did not do what it was asked; `fault` says why."""

    def __init__(self, fault: StoreFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class ListedObject(NamedTuple):
    """What a listing says of one object."""

    name: str
    size_bytes: int
    written_at: float
    """When it was last written, by the store's clock, in seconds since 1970."""


class ObjectStore(ABC):
    """Objects under one prefix of one store."""

    @abstractmethod
    def create(self, name: str, data: memoryview) -> bool:
        """Write an object unless one of this name exists; return whether this call wrote it."""

    @abstractmethod
    def read(self, name: str, size_bytes: int) -> memoryview:
        """Return the first `size_bytes` of an object; fewer when it is shorter."""

    @abstractmethod
    def walk(self, prefix: str, count_max: int) -> Iterator[ListedObject]:
        """Yield objects whose names begin with `prefix`, a whole number of words, `count_max` at most, in any order."""

    @abstractmethod
    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; those that do not exist are no error."""

    @abstractmethod
    def move(self, name: str, to: str) -> None:
        """Give an object another name, which may exist already."""
