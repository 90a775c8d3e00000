"""The URL of an object tier: ``s3://bucket/prefix?endpoint=http://host:port&region=name`` or ``file:///folder``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import check_http_url

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9._/-]*")
_S3_OPTIONS = frozenset({"endpoint", "region"})


class S3Url(NamedTuple):
    """A bucket and a prefix in it."""

    bucket: str
    prefix: str
    endpoint: str | None = None
    region: str | None = None


def parse_object_url(url: str) -> S3Url | Path:
    """Return what an ``object_url`` names; raises ConfigError, which never repeats the URL: it may hold secrets."""
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        secret = parts.username is not None or parts.password is not None
    except ValueError as error:
        raise ConfigError("object_url: expected s3://bucket/prefix or file:///folder, got no valid URL") from error
    if secret:
        raise ConfigError(
            "object_url: expected no credentials in the URL, got some: give them by the AWS environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or by the role of the instance"
        )
    if parts.fragment:
        raise ConfigError("object_url: expected no fragment (#...), got one")
    if parts.scheme == "file":
        return _folder(parts, options)
    if parts.scheme == "s3":
        return _bucket(parts, options)
    raise ConfigError(f"object_url: expected s3:// or file://, got {parts.scheme[:20]!r}")


def _folder(parts: SplitResult, options: dict[str, str]) -> Path:
    if options:
        raise ConfigError("object_url: expected file:///folder without options (?...), got some")
    path = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost") or not path.is_absolute() or path == Path("/"):
        raise ConfigError("object_url: expected file:///folder, an absolute path of this machine and not its root")
    return path


def _bucket(parts: SplitResult, options: dict[str, str]) -> S3Url:
    unknown = sorted(set(options) - _S3_OPTIONS)
    if unknown:
        # By name alone: the value may be a secret.
        raise ConfigError(
            f"object_url: expected no options but {sorted(_S3_OPTIONS)}, got {unknown[0][:40]!r}; credentials come "
            "from the AWS environment or the role of the instance"
        )
    if not _BUCKET.fullmatch(parts.netloc):
        raise ConfigError("object_url: expected a bucket of 3 to 63 characters of [a-z0-9.-] after s3://")
    prefix = parts.path.strip("/")
    if not _PREFIX.fullmatch(prefix) or any(word in ("", ".", "..") for word in prefix.split("/") if prefix):
        raise ConfigError("object_url: expected a prefix of words of [A-Za-z0-9._-], separated by /")
    endpoint = options.get("endpoint")
    if endpoint is not None:
        check_http_url("object_url: endpoint", endpoint)
    return S3Url(parts.netloc, prefix, endpoint, options.get("region"))
