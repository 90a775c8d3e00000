"""Settings: where they come from, what is refused, and what is never shown."""

from __future__ import annotations

import pickle
import pprint
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.config import Settings, load_settings, variable_of
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import checked, expectation, is_number, limits, parse_listen, redact_url

TOKEN = "correct horse battery staple"
FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}
NUMBERS = [name for name, field in FIELDS.items() if is_number(field.type)]
SENTINEL = "hunter2hunter2hunter2"


def refusal(extra: dict[str, object] | None = None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(extra or {}, environ or {})
    return str(caught.value)


def test_nothing_given_gives_defaults() -> None:
    """Without any configuration every setting has its default, and the defaults are valid."""
    assert load_settings({}, {}) == Settings()


def test_extra_and_environment_extra_wins() -> None:
    """The engine's configuration wins over the environment, which wins over the default."""
    settings = load_settings({"pull_threads": 3}, {"GC_PULL_THREADS": "4", "GC_METRICS_PORT": "5"})
    assert (settings.pull_threads, settings.metrics_port, settings.pull_sources_max) == (3, 5, 2)


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("GC_SELF_CHECK", "1", True),
        ("GC_SELF_CHECK", "TRUE", True),
        ("GC_SELF_CHECK", "0", False),
        ("GC_SELF_CHECK", "false", False),
        ("GC_TRANSPORTS", "relay, nixl", ("relay", "nixl")),
        ("GC_LEASE_TTL_S", " 2.5 ", 2.5),
        ("GC_PULL_THREADS", "17", 17),
        ("GC_REDIS_URL", "redis://h:1/2", "redis://h:1/2"),
        ("GC_REDIS_URL", "", None),
        ("GC_METRICS_PORT", "", None),
        ("GC_METRICS_PORT", "0", 0),
    ],
)
def test_environment_text_converted_by_type(variable: str, text: str, value: object) -> None:
    """A text from the environment becomes what the setting's type says."""
    assert getattr(load_settings({}, {variable: text}), variable.removeprefix("GC_").lower()) == value


def test_list_from_json_becomes_tuple() -> None:
    """JSON has no tuples: the engine's configuration gives a list."""
    assert load_settings({"transports": ["relay"]}, {}).transports == ("relay",)


@pytest.mark.parametrize(
    ("extra", "environ", "parts"),
    [
        ({"redis_ur": "x"}, {}, ("redis_ur", "did you mean redis_url?")),
        ({"kv_role": "x"}, {}, ("unknown setting kv_role", "known are")),
        ({}, {"GC_REDIS_URI": "x"}, ("GC_REDIS_URI", "did you mean GC_REDIS_URL?")),
        ({}, {"GC_redis_url": "x"}, ("GC_redis_url",)),
        ({"pull_threads": "2"}, {}, ("pull_threads", "an int from 1 to 64", "'2' (str)")),
        ({"pull_threads": True}, {}, ("pull_threads", "True (bool)")),
        ({"pull_threads": 2.5}, {}, ("pull_threads", "2.5")),
        ({"self_check": 1}, {}, ("self_check", "true or false", "1 (int)")),
        ({"pull": "sometimes"}, {}, ("pull", "auto", "always", "never", "sometimes")),
        ({"transports": []}, {}, ("transports",)),
        ({"transports": "nixl"}, {}, ("transports", "a list of nixl, relay")),
        ({"transports": ["nixl", "nixl"]}, {}, ("transports", "once")),
        ({"transports": ["tcp"]}, {}, ("transports", "tcp")),
        ({}, {"GC_SELF_CHECK": "yes"}, ("GC_SELF_CHECK", "true or false", "yes")),
        ({}, {"GC_PULL_THREADS": "two"}, ("GC_PULL_THREADS", "an int from 1 to 64", "two")),
        ({}, {"GC_PULL_THREADS": ""}, ("GC_PULL_THREADS",)),
        ({}, {"GC_LEASE_TTL_S": "nan"}, ("GC_LEASE_TTL_S", "nan")),
        ({"lease_ttl_s": float("inf")}, {}, ("lease_ttl_s", "inf")),
        ({"worker_id": "a b"}, {}, ("worker_id",)),
        ({"worker_id": ""}, {}, ("worker_id",)),
        ({"redis_url": "localhost:6379"}, {}, ("redis_url", "redis://")),
        ({"http_url": "10.0.0.1:8000"}, {}, ("http_url", "http")),
        ({"http_url": "http://"}, {}, ("http_url",)),
        ({"http_url": "http://h:99999"}, {}, ("http_url",)),
        ({"metrics_host": "prometheus"}, {}, ("metrics_host", "an IP address of this machine", "'prometheus'")),
        ({"metrics_host": "10.0.0.1:9400"}, {}, ("metrics_host",)),
        ({"relay_listen": "8000"}, {}, ("relay_listen", "host:port")),
        ({"relay_listen": "h:65536"}, {}, ("relay_listen", "65535")),
        ({"redis_timeout_s": 2, "lease_ttl_s": 5}, {}, ("redis_timeout_s", "lease_ttl_s")),
    ],
)
def test_bad_setting_refused_by_name(extra: dict[str, object], environ: dict[str, str], parts: tuple[str, ...]) -> None:
    """A bad setting is refused; the message names it, what was expected and what came."""
    message = refusal(extra, environ)
    assert all(part in message for part in parts), message


def test_losing_value_also_checked() -> None:
    """A bad environment variable is refused even when the engine's configuration would win over it."""
    assert "GC_PULL_THREADS" in refusal({"pull_threads": 2}, {"GC_PULL_THREADS": "none"})


def test_other_variables_ignored() -> None:
    """Variables without our prefix are none of our business."""
    assert load_settings({}, {"PATH": "/bin", "GCC_COLORS": "x", "MY_GC_URL": "y"}) == Settings()


def test_router_variables_ignored() -> None:
    """The router's variables may stand beside a worker's; they are no settings of the worker."""
    assert load_settings({}, {"GC_ROUTER_LISTEN": "[::1]:1", "GC_ROUTER_NO_SUCH": "x"}) == Settings()
    assert "GC_ROUTERS" in refusal({}, {"GC_ROUTERS": "x"})


@pytest.mark.parametrize("name", NUMBERS)
def test_number_out_of_range_refused(name: str) -> None:
    """Every number has a range, and what lies just outside of it is refused."""
    low, high = limits(FIELDS[name].type)
    assert low is not None
    assert high is not None
    for value in (low - 1, high + 1, 10**30, -1):
        if not low <= value <= high:
            assert name in refusal({name: value})


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_setting_documented(name: str) -> None:
    """Every setting says what it is; numbers that have a unit in their name have it in their text, too."""
    metas = [
        info for info in [msgspec.inspect.type_info(FIELDS[name].type)] if isinstance(info, msgspec.inspect.Metadata)
    ]
    described = [str(info.extra_json_schema["description"]) for info in metas if info.extra_json_schema]
    assert described, name
    for suffix, unit in (("_s", "in s"), ("_ms", "in ms"), ("_mib", "in MiB")):
        if name.endswith(suffix):
            assert unit in described[0]
    assert expectation(FIELDS[name].type)


@pytest.mark.parametrize(
    ("listen", "token", "fine"),
    [
        ("127.0.0.1:0", None, True),
        ("localhost:9000", None, True),
        ("[::1]:9000", None, True),
        ("127.8.0.3:9000", None, True),
        ("0.0.0.0:9000", None, False),
        ("[::]:9000", None, False),
        ("10.0.0.7:9000", None, False),
        ("gpu-host:9000", None, False),
        ("localhost.example.com:9000", None, False),
        ("0.0.0.0:9000", TOKEN, True),
    ],
)
def test_relay_beyond_loopback_needs_token(listen: str, token: str | None, fine: bool) -> None:
    """A relay that other machines can reach does not start without a token."""
    given_settings: dict[str, object] = {"relay_listen": listen, "relay_token": token}
    if fine:
        assert load_settings(given_settings, {}).relay_listen == listen
    else:
        assert "relay_token" in refusal(given_settings)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "[::]", "[0:0:0:0:0:0:0:0]", "[::ffff:0.0.0.0]", "0", "0.0", "0x0", "[::ffff:0:0]"]
)
def test_address_that_no_router_could_reach_is_refused(host: str) -> None:
    """What an engine listens on is not where it is reached; the message names the setting."""
    message = refusal(environ={"GC_HTTP_URL": f"http://{host}:8123"})
    assert message.startswith("http_url: expected the address at which other machines reach this server")
    assert host.strip("[]") in message


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.7", "node-0", "0.example.com", "0.0.0.1"])
def test_address_that_may_be_reached_is_accepted(host: str) -> None:
    """Loopback is fine on one machine."""
    assert load_settings({}, {"GC_HTTP_URL": f"http://{host}:8123"}).http_url == f"http://{host}:8123"


def test_constructed_directly_checked_too() -> None:
    """Settings that are made in code obey the same rules as loaded ones."""
    with pytest.raises(ConfigError, match="relay_token"):
        Settings(relay_listen="0.0.0.0:1")
    with pytest.raises(ConfigError, match="pull_threads"):
        Settings(pull_threads=0)
    with pytest.raises(ConfigError, match="pull_sources_max"):
        msgspec.structs.replace(Settings(), pull_sources_max=0)


@pytest.mark.parametrize("name", ["relay_token", "index_key"])
def test_secret_too_short_refused(name: str) -> None:
    """A secret that could be guessed is none; from 16 characters on it is taken."""
    message = refusal({name: "x" * 15})
    assert name in message
    assert "xxx" not in message
    assert getattr(load_settings({}, {variable_of(name): "x" * 16}), name) == "x" * 16


def test_secrets_set_never_shown() -> None:
    """No way to print settings shows a secret, and the rest of the URL stays readable."""
    url = f"rediss://user:{SENTINEL}@redis.example:6380/3"
    settings = load_settings({"redis_url": url, "relay_token": SENTINEL, "index_key": SENTINEL}, {})
    shown = [repr(settings), str(settings), f"{settings}", pprint.pformat(settings), str(settings.redacted())]
    shown.append(str(settings.__rich_repr__()))
    assert not any(SENTINEL in text for text in shown)
    assert "redis.example:6380/3" in shown[0]
    assert "index_key='***'" in shown[0]
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301 - an engine may send settings to its ranks


@pytest.mark.parametrize(
    ("extra", "environ"),
    [
        ({"relay_token": [SENTINEL]}, {}),
        ({"relay_token": SENTINEL * 500}, {}),
        ({"index_key": [SENTINEL]}, {}),
        ({"index_key": SENTINEL * 500}, {}),
        ({}, {"GC_INDEX_KEY": SENTINEL * 500}),
        ({"redis_url": {"url": SENTINEL}}, {}),
        ({"redis_url": f"http://:{SENTINEL}@h"}, {}),
        ({"http_url": f"http://u:{SENTINEL}@h"}, {}),
        ({}, {"GC_RELAY_TOKEN": SENTINEL * 500}),
        ({}, {"GC_REDIS_URL": f"http://:{SENTINEL}@h"}),
    ],
)
def test_bad_secret_refused_without_showing_it(extra: dict[str, object], environ: dict[str, str]) -> None:
    """A message about a secret does not repeat the secret."""
    assert SENTINEL not in refusal(extra, environ)


@given(user=st.text("abc:%", max_size=5), secret=st.text("xyz@:/?&=", min_size=4, max_size=12).filter(str.strip))
def test_redacted_url_hides_any_password(user: str, secret: str) -> None:
    """However odd the password, it is gone from the URL that is shown."""
    shown = redact_url(f"redis://{user}:{secret}@host:6379/0")
    assert shown == "redis://***@host:6379/0"


def test_sentinel_password_redacted() -> None:
    """Passwords among a URL's options are masked as well."""
    url = f"redis+sentinel://h:1/main?sentinel_password={SENTINEL}&db=2"
    assert redact_url(url) == "redis+sentinel://h:1/main?sentinel_password=***&db=2"


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "pull_threads": st.integers(1, 64),
            "lease_ttl_s": st.floats(1, 3600),
            "self_check": st.booleans(),
            "transports": st.permutations(["nixl", "relay"]).map(tuple),
            "worker_id": st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,20}\Z"),
        },
    )
)
def test_environment_equals_extra(values: dict[str, Any]) -> None:
    """A valid setting means the same from the environment as from the engine's configuration."""

    def text(value: object) -> str:
        return ",".join(value) if isinstance(value, tuple) else str(value)

    environ = {variable_of(key): text(value) for key, value in values.items()}
    assert load_settings({}, environ) == load_settings(values, {})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_number_without_range_still_finite(value: float) -> None:
    """No number of any setting is infinite or not a number, whatever its range says."""
    with pytest.raises(ConfigError, match="x: expected"):
        checked("x", value, float)


def test_ipv6_listen_address_parsed() -> None:
    """An IPv6 address stands in brackets; port 0 stands for any."""
    assert parse_listen("[::1]:0", "listen") == ("::1", 0)
