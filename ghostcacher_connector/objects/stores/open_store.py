"""From an ``object_url`` to its store."""

from __future__ import annotations

from pathlib import Path

from ghostcacher_connector.core.object_url import parse_object_url
from ghostcacher_connector.objects.stores.base import ObjectStore
from ghostcacher_connector.objects.stores.file_store import FileStore
from ghostcacher_connector.objects.stores.s3_store import S3Store


def open_store(url: str, *, timeout_s: float) -> ObjectStore:
    """Return the store that a URL names, without asking it for anything. Raises ConfigError.

    timeout_s: bound of one request to it, as far as the system allows it.
    """
    parsed = parse_object_url(url)
    if isinstance(parsed, Path):
        return FileStore(parsed)
    return S3Store(parsed.bucket, parsed.prefix, endpoint=parsed.endpoint, region=parsed.region, timeout_s=timeout_s)
