"""The URL forms of Redis."""

from __future__ import annotations

import pytest
import redis

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.redis.url import make_client, parse_redis_url


@pytest.mark.parametrize(
    ("url", "kind", "nodes", "db", "tls"),
    [
        ("redis://h", "single", (("h", 6379),), 0, False),
        ("rediss://h:1/2", "single", (("h", 1),), 2, True),
        ("redis://[::1]:7/1", "single", (("::1", 7),), 1, False),
        ("redis+sentinel://a,b:2/svc/3", "sentinel", (("a", 26379), ("b", 2)), 3, False),
        ("rediss+sentinel://a/svc", "sentinel", (("a", 26379),), 0, True),
        ("redis+cluster://a:1,b", "cluster", (("a", 1), ("b", 6379)), 0, False),
        ("rediss+cluster://a", "cluster", (("a", 6379),), 0, True),
        ("unix:///tmp/s?db=4", "unix", (), 4, False),
    ],
)
def test_url_is_understood(url: str, kind: str, nodes: tuple[tuple[str, int], ...], db: int, tls: bool) -> None:
    """Every form gives its kind, nodes, database and TLS."""
    target = parse_redis_url(url)
    assert (target.kind, target.nodes, target.db, target.tls) == (kind, nodes, db, tls)


def test_access_is_unquoted_and_never_shown() -> None:
    """User and password are percent-decoded; no text of the target or the index has them."""
    url = "redis+sentinel://us%40er:p%2Fw%3A1@h/svc?sentinel_password=hush"
    target = parse_redis_url(url)
    assert (target.username, target.password) == ("us@er", "p/w:1")
    shown = f"{target!r} {target} {target.where} {RedisIndex(url)!r}"
    assert not any(secret in shown for secret in ("p/w:1", "p%2Fw", "hush"))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://h",
        "localhost:6379",
        "redis://:s3cret@h:port",
        "redis://:s3cret@h/x",
        "redis://:s3cret@h:99999",
        "redis://:s3cret@[::1",
        "redis+sentinel://:s3cret@h",
        "redis+cluster://:s3cret@h?db=1",
        "redis://:s3cret@h?socket_timeout=60",
        "unix://",
    ],
)
def test_senseless_url_is_refused_without_its_password(url: str) -> None:
    """A mistake in the URL is a ConfigError that does not repeat the password."""
    with pytest.raises(ConfigError, match="redis_url") as caught:
        parse_redis_url(url)
    assert "s3cret" not in str(caught.value)


def test_client_of_tls_url_verifies_by_default_and_takes_options() -> None:
    """TLS options of the URL reach the connection."""
    target = parse_redis_url("rediss://u:p@h:1/2?ssl_ca_certs=/ca.pem&ssl_check_hostname=false")
    options = make_client(target, 0.25).connection_pool.connection_kwargs
    assert issubclass(make_client(target, 0.25).connection_pool.connection_class, redis.SSLConnection)
    assert (options["ssl_ca_certs"], options["ssl_check_hostname"]) == ("/ca.pem", False)
    assert (options["username"], options["password"], options["db"]) == ("u", "p", 2)
    assert options["socket_timeout"] == options["socket_connect_timeout"] == 0.25
