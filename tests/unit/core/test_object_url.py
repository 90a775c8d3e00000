"""What names an object store, and what is refused without being repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.object_url import S3Url, parse_object_url

SECRET = "wJalrXUtnFEMI-K7MDENG"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///var/cache/kv", Path("/var/cache/kv")),
        ("file://localhost/var/cache/a%20b", Path("/var/cache/a b")),
        ("s3://bucket", S3Url("bucket", "")),
        ("s3://my.bucket-1/models/kv/", S3Url("my.bucket-1", "models/kv")),
        (
            "s3://bucket/kv?endpoint=http://10.0.0.1:9000&region=eu-west-1",
            S3Url("bucket", "kv", "http://10.0.0.1:9000", "eu-west-1"),
        ),
    ],
)
def test_what_it_names(url: str, expected: object) -> None:
    assert parse_object_url(url) == expected
    assert Settings(object_url=url, host_tier_gib=1.0).object_url == url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"s3://AKIAEXAMPLE:{SECRET}@bucket/kv", "no credentials in the URL"),
        (f"s3://{SECRET}@bucket/kv", "no credentials in the URL"),
        (f"s3://bucket/kv?secret_access_key={SECRET}", "secret_access_key"),
        (f"s3://bucket/kv?endpoint=http://user:{SECRET}@host:9000", "endpoint"),
        (f"s3://bucket/kv#{SECRET}", "fragment"),
        (f"s3://bucket/kv?{SECRET}", "valid URL"),
        ("s3:///kv", "bucket"),
        ("s3://UPPER/kv", "bucket"),
        ("s3://bucket/../kv", "prefix"),
        ("s3://bucket/a//b", "prefix"),
        ("s3://bucket/kv?endpoint=ftp://host", "endpoint"),
        ("file://host/kv", "absolute path"),
        ("file:///", "absolute path"),
        ("file:///kv?direct=1", "without options"),
        ("http://bucket/kv", "s3:// or file://"),
        ("/var/cache/kv", "s3:// or file://"),
        ("", "s3:// or file://"),
        ("s3://[bucket/kv", "valid URL"),
    ],
)
def test_what_is_refused_and_why(url: str, said: str) -> None:
    """By the name of the setting; a secret in it is in no message, nor in what caused it."""
    with pytest.raises(ConfigError) as raised:
        parse_object_url(url)
    assert said in str(raised.value)
    assert str(raised.value).startswith("object_url: ")
    assert SECRET not in str(raised.value)
    if url:
        with pytest.raises(ConfigError, match="object_url"):
            Settings(object_url=url, host_tier_gib=1.0)


def test_objects_without_a_host_tier_are_refused() -> None:
    """They are read into it."""
    with pytest.raises(ConfigError, match=r"host_tier_gib: expected more than 0 with object_url: .*, got 0"):
        Settings(object_url="file:///var/cache/kv")


def test_rounding_objects_without_any_is_refused() -> None:
    """It would keep this worker apart from all others, for nothing."""
    with pytest.raises(ConfigError, match="object_url: expected one with object_compression fp8, got none"):
        Settings(object_compression="fp8", host_tier_gib=1.0)
