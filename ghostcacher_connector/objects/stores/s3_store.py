"""Objects in a bucket of S3, or of a server that speaks its protocol, by the client `obstore`.

obstore does its work in threads of its own, without the interpreter's lock. Requests are not tried again in here: a
read that fails is a miss at once, and the writer has pauses of its own.

Credentials come from the AWS environment (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``),
from a web identity or a container's role, or from the instance: never from the URL. They are never printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.objects.stores.base import ListedObject, ObjectStore, StoreError, StoreFault

try:
    from obstore import exceptions as obstore_errors
    from obstore.store import S3Store as Bucket

    _ERRORS: tuple[type[Exception], ...] = (obstore_errors.BaseError, OSError)
    """An object that is missing is a FileNotFoundError of Python's own."""
except ModuleNotFoundError:  # the extra [objects] is not installed
    Bucket = None

CONNECT_S_MAX = 2.0
DETAIL_CHARS_MAX = 200
RANGE_NOT_SATISFIABLE = "416"
"""What there is to say of the first bytes of an empty object."""
DEFAULT_REGION = "us-east-1"


class S3Store(ObjectStore):
    """Objects below one prefix of one bucket."""

    def __init__(self, bucket: str, prefix: str, *, endpoint: str | None, region: str | None, timeout_s: float) -> None:
        """endpoint: of another server than AWS's. timeout_s: bound of one request. Raises ConfigError."""
        if Bucket is None:
            raise ConfigError("object_url: s3:// needs the package obstore: pip install 'ghostcacher[objects]'")
        self._name = f"s3://{bucket}/{prefix}"
        client = {
            "timeout": timedelta(seconds=timeout_s),
            "connect_timeout": timedelta(seconds=min(CONNECT_S_MAX, timeout_s)),
            "allow_http": endpoint is not None and endpoint.startswith("http://"),
        }
        config: dict[str, Any] = {} if endpoint is None else {"endpoint": endpoint}
        if region is not None or endpoint is not None:
            config["region"] = region or DEFAULT_REGION
        retries = {"max_retries": 0, "retry_timeout": timedelta(seconds=timeout_s)}
        try:
            self._bucket = Bucket(
                bucket, prefix=prefix or None, client_options=client, retry_config=retries, config=config
            )
        except _ERRORS as error:
            raise ConfigError(f"object_url: {_first_line(error)}") from error

    def __repr__(self) -> str:
        return f"S3Store({self._name})"

    def create(self, name: str, data: memoryview) -> bool:
        try:
            self._bucket.put(name, data, mode="create", use_multipart=False)
        except obstore_errors.AlreadyExistsError:
            return False
        except _ERRORS as error:
            _raise(f"writing {name}", error)
        return True

    def read(self, name: str, size_bytes: int) -> memoryview:
        try:
            data = memoryview(self._bucket.get_range(name, start=0, end=size_bytes))
        except _ERRORS as error:
            if _status_of(error) == RANGE_NOT_SATISFIABLE:
                return memoryview(b"")
            _raise(f"reading {name}", error)
        return data

    def walk(self, prefix: str, count_max: int) -> Iterator[ListedObject]:
        left = count_max
        try:
            for batch in self._bucket.list(prefix, chunk_size=1000):
                for found in batch[:left]:
                    yield ListedObject(found["path"], found["size"], found["last_modified"].timestamp())
                left -= len(batch)
                if left <= 0:
                    return
        except _ERRORS as error:
            _raise(f"listing {prefix}", error)

    def delete(self, names: Sequence[str]) -> None:
        try:
            if names:
                self._bucket.delete(list(names))
        except FileNotFoundError:
            return
        except _ERRORS as error:
            _raise("deleting", error)

    def move(self, name: str, to: str) -> None:
        # In this order an object is nowhere at no time; who dies in between leaves two of them, and a reader moves it
        # again.
        try:
            self._bucket.copy(name, to)
            with suppress(FileNotFoundError):
                self._bucket.delete(name)
        except _ERRORS as error:
            _raise(f"moving {name}", error)


_STATUS = re.compile(r"\bstatus: (\d{3})\b")
_STATUS_FAULTS = {
    "401": StoreFault.REFUSED,
    "403": StoreFault.REFUSED,
    "408": StoreFault.TIMEOUT,
    "409": StoreFault.THROTTLED,
    "429": StoreFault.THROTTLED,
    "503": StoreFault.THROTTLED,
    "504": StoreFault.TIMEOUT,
    "507": StoreFault.FULL,
}
"""409: two writers at the same instant, one of which is to try again."""

_KIND = re.compile(r"HttpError \{\s*kind: (\w+)")
_KIND_FAULTS = {
    "Timeout": StoreFault.TIMEOUT,
    "Connect": StoreFault.UNREACHABLE,
    "Interrupted": StoreFault.UNREACHABLE,
    "Request": StoreFault.UNREACHABLE,
}
"""obstore tells what happened below HTTP in the description of its error alone."""


def _raise(what: str, error: Exception) -> NoReturn:
    raise StoreError(_fault_of(error), f"{what}: {_first_line(error)}") from error


def _fault_of(error: Exception) -> StoreFault:
    if isinstance(error, FileNotFoundError):
        return StoreFault.MISSING
    if isinstance(error, obstore_errors.PermissionDeniedError | obstore_errors.UnauthenticatedError):
        return StoreFault.REFUSED
    if (status := _status_of(error)) is not None:
        return _STATUS_FAULTS.get(status, StoreFault.OTHER)
    kind = _KIND.search(str(error))
    return StoreFault.OTHER if kind is None else _KIND_FAULTS.get(kind[1], StoreFault.OTHER)


def _status_of(error: Exception) -> str | None:
    found = _STATUS.search(str(error))
    return found[1] if found else None


def _first_line(error: Exception) -> str:
    """Return the beginning of what an error says, without queries, which may hold signatures."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"\?\S*", "", line)[:DETAIL_CHARS_MAX]
