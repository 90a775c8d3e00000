"""The router's settings: where they come from, what is refused, and what is never shown."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import is_number, limits
from ghostcacher_router.config import RouterSettings, load_router_settings, variable_of

SENTINEL = "hunter2hunter2hunter2"
FIELDS = {field.name: field for field in msgspec.structs.fields(RouterSettings)}
NUMBERS = [name for name, field in FIELDS.items() if is_number(field.type)]


def refusal(
    options: dict[str, object] | None = None, file: Path | None = None, environ: dict[str, str] | None = None
) -> str:
    with pytest.raises(ConfigError) as caught:
        load_router_settings(options or {}, file, environ or {})
    return str(caught.value)


def written(folder: Path, text: str, name: str = "router.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_nothing_given_gives_defaults() -> None:
    """Without any configuration every setting has its default, and the defaults are valid."""
    assert load_router_settings({}, None, {}) == RouterSettings()


def test_all_sources_first_wins(tmp_path: Path) -> None:
    """The command line wins over the file, the file over the environment, the environment over the default."""
    file = written(tmp_path, "retries_max = 3\nconnections_max = 3")
    environ = {f"GC_ROUTER_{name}": "4" for name in ("RETRIES_MAX", "CONNECTIONS_MAX", "SESSION_TTL_S")}
    settings = load_router_settings({"retries_max": 5}, file, environ)
    assert (settings.retries_max, settings.connections_max, settings.session_ttl_s) == (5, 3, 4)
    assert settings.drain_timeout_s == RouterSettings().drain_timeout_s


def test_json_file_equals_toml_file(tmp_path: Path) -> None:
    """A file says the same in either form."""
    toml = written(tmp_path, 'workers = ["http://a:1", "http://b:2"]\naccess_log = true\nsession_ttl_s = 5')
    values = {"workers": ["http://a:1", "http://b:2"], "access_log": True, "session_ttl_s": 5}
    as_json = written(tmp_path, json.dumps(values), "router.json")
    assert load_router_settings({}, toml, {}) == load_router_settings({}, as_json, {})


def test_list_in_text_is_separated_by_commas_or_an_array() -> None:
    """The second as vLLM's options have it."""
    for text in ("https://a, https://b:1", '["https://a", "https://b:1"]'):
        settings = load_router_settings({}, None, {"GC_ROUTER_ALLOWED_ORIGINS": text})
        assert settings.allowed_origins == ("https://a", "https://b:1")
    assert load_router_settings({}, None, {"GC_ROUTER_ALLOWED_ORIGINS": '["*"]'}).allowed_origins == ("*",)
    assert load_router_settings({}, None, {"GC_ROUTER_ALLOWED_ORIGINS": "[]"}).allowed_origins == ()


def test_shared_variables_taken_from_workers_names() -> None:
    """Where Redis is, and its key, is said once for workers and routers; a worker's other variables are not ours."""
    environ = {"GC_REDIS_URL": "redis://h:1", "GC_INDEX_KEY": "k" * 16, "GC_PULL": "never", "GC_NO_SUCH": "x"}
    settings = load_router_settings({}, None, environ)
    assert (settings.redis_url, settings.index_key) == ("redis://h:1", "k" * 16)
    assert "did you mean GC_REDIS_URL?" in refusal(environ={"GC_ROUTER_REDIS_URL": "redis://h:1"})


@pytest.mark.parametrize(
    ("options", "environ", "parts"),
    [
        ({"listn": "x"}, {}, ("unknown setting listn", "did you mean listen?")),
        ({}, {"GC_ROUTER_LISTN": "x"}, ("GC_ROUTER_LISTN", "did you mean GC_ROUTER_LISTEN?")),
        ({}, {"GC_ROUTER_listen": "x"}, ("GC_ROUTER_listen",)),
        ({"listen": "8000"}, {}, ("listen", "host:port", "'8000'")),
        ({"listen": "h:65536"}, {}, ("listen", "65535")),
        ({"listen": 8000}, {}, ("listen", "8000 (int)")),
        ({"redis_url": "localhost:6379"}, {}, ("redis_url", "redis://")),
        ({"redis": False}, {}, ("workers", "at least one URL", "redis is off")),
        ({"allowed_origins": ["https://a/path"]}, {}, ("allowed_origins", "scheme://host[:port]", "https://a/path")),
        ({"allowed_origins": ["https://a\r\nx: y"]}, {}, ("allowed_origins", "scheme://host[:port]")),
        ({}, {"GC_ROUTER_ALLOWED_ORIGINS": '["https://a"'}, ("GC_ROUTER_ALLOWED_ORIGINS", "a list of", '["https://a"')),
        ({}, {"GC_ROUTER_ALLOWED_ORIGINS": "[[1]]"}, ("GC_ROUTER_ALLOWED_ORIGINS", "a list of")),
        ({}, {"GC_ROUTER_ALLOWED_ORIGINS": "[" * 100_000}, ("GC_ROUTER_ALLOWED_ORIGINS", "a list of")),
        ({"workers": ["10.0.0.1:8000"]}, {}, ("workers", "http[s]://", "10.0.0.1:8000")),
        ({"workers": ["http://a:1", "http://a:1"]}, {}, ("workers", "once")),
        ({"workers": "http://a:1"}, {}, ("workers", "a list")),
        ({"workers": ["http://a:1?x=1"]}, {}, ("workers", "query")),
        ({"admin_token": "short"}, {}, ("admin_token", "16", "5 characters")),
        ({"retries_max": True}, {}, ("retries_max", "True (bool)")),
        ({"retries_max": "2"}, {}, ("retries_max", "an int from 0 to 16")),
        ({"session_ttl_s": float("nan")}, {}, ("session_ttl_s", "nan")),
        ({"ghost_lock": 1}, {}, ("ghost_lock", "true or false")),
        ({"log_level": "loud"}, {}, ("log_level", "debug", "loud")),
        ({"body_bytes_max": 2048, "buffered_bytes_max": 1024}, {}, ("buffered_bytes_max", "2048", "1024")),
        ({"flow_tenants": "x-a"}, {}, ("flow_queue_max", "at least 1 beside flow_tenants=x-a", "nobody waits")),
        ({"flow_priorities": "header"}, {}, ("flow_queue_max", "beside flow_priorities=header")),
        ({"flow_queue_max": 1, "flow_tenant_weights": ["a=2"]}, {}, ("flow_tenants", "flow_tenant_weights", "none")),
        (
            {"flow_queue_max": 1, "flow_queue_bytes_max": 9},
            {},
            ("flow_queue_bytes_max", "body_bytes_max=67108864", "9"),
        ),
        (
            {"flow_queue_max": 1, "buffered_bytes_max": 1 << 27},
            {},
            ("flow_queue_bytes_max", "at most buffered_bytes_max=134217728", "268435456"),
        ),
        ({}, {"GC_ROUTER_ACCESS_LOG": "yes"}, ("GC_ROUTER_ACCESS_LOG", "true or false", "yes")),
        ({"retries_max": 1}, {"GC_ROUTER_RETRIES_MAX": "many"}, ("GC_ROUTER_RETRIES_MAX", "many")),
    ],
)
def test_bad_setting_refused_by_name(
    options: dict[str, object], environ: dict[str, str], parts: tuple[str, ...]
) -> None:
    """A bad setting is refused, also where it would lose; the message names it, what was expected and what came."""
    message = refusal(options, None, environ)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("r.toml", "retries_max = 99", ("retries_max", "from 0 to 16", "99")),
        ("r.toml", "retry_max = 1", ("retry_max", "did you mean retries_max?")),
        ("r.toml", "[router]\nretries_max = 1", ("unknown setting router",)),
        ("r.toml", "retries_max: 1", ("expected TOML", "line 1")),
        ("r.json", "{'a': 1}", ("expected JSON", "line 1")),
        ("r.json", "[1]", ("one object", "list")),
        ("r.json", "[" * 100_000, ("expected JSON", "RecursionError")),
        ("r.toml", "#" * (1 << 20) + "#", ("at most 1048576 bytes",)),
        ("r.toml", "a = \x00", ("expected TOML",)),
    ],
)
def test_bad_file_refused_with_its_name(tmp_path: Path, name: str, text: str, parts: tuple[str, ...]) -> None:
    """A bad file is refused; the message names the file and what is wrong with it."""
    message = refusal(file=written(tmp_path, text, name))
    assert all(part in message for part in (name, *parts)), message


def test_missing_file_refused(tmp_path: Path) -> None:
    """A file that is not there, or is a folder, is an error and not an empty one."""
    assert "No such file" in refusal(file=tmp_path / "none.toml")
    assert str(tmp_path) in refusal(file=tmp_path)


@pytest.mark.parametrize("name", NUMBERS)
def test_number_out_of_range_refused(name: str) -> None:
    """Every number has a range, and what lies just outside of it is refused."""
    low, high = limits(FIELDS[name].type)
    assert low is not None
    assert high is not None
    for value in (low - 1, high + 1, 10**30):
        assert name in refusal({name: value})


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_setting_documented(name: str) -> None:
    """Every setting says what it is; numbers that have a unit in their name have it in their text, too."""
    info = msgspec.inspect.type_info(FIELDS[name].type)
    assert isinstance(info, msgspec.inspect.Metadata)
    described = str((info.extra_json_schema or {})["description"])
    for suffix, unit in (("_s", "in s"), ("_ms", "in ms"), ("_bytes_max", "in bytes"), ("_tokens_min", "in tokens")):
        if name.endswith(suffix):
            assert unit in described


def test_secrets_set_never_shown() -> None:
    """No way to print settings shows a secret, and the rest of the URL stays readable."""
    url = f"redis://user:{SENTINEL}@redis.example:6380/3"
    settings = load_router_settings({"redis_url": url, "admin_token": SENTINEL, "index_key": SENTINEL}, None, {})
    shown = [repr(settings), str(settings), str(settings.redacted()), str(settings.__rich_repr__())]
    assert not any(SENTINEL in text for text in shown)
    assert "redis.example:6380/3" in shown[0]


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        ({"admin_token": [SENTINEL]}, {}),
        ({"redis_url": f"http://:{SENTINEL}@h"}, {}),
        ({"workers": [f"http://u:{SENTINEL}@h:1"]}, {}),
        ({"workers": f"http://u:{SENTINEL}@h:1"}, {}),
        ({}, {"GC_ROUTER_ADMIN_TOKEN": SENTINEL * 500}),
        ({}, {"GC_ROUTER_WORKERS": f"http://u:{SENTINEL}@h:1"}),
    ],
)
def test_bad_secret_refused_without_showing_it(options: dict[str, object], environ: dict[str, str]) -> None:
    """A message about a secret does not repeat the secret."""
    assert SENTINEL not in refusal(options, None, environ)


def test_bad_secret_in_code_refused_without_showing_it() -> None:
    """Settings that are made in code keep their secrets out of messages, too."""
    with pytest.raises(ConfigError) as caught:
        RouterSettings(admin_token=SENTINEL * 500)
    assert SENTINEL not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        RouterSettings(redis_url=SENTINEL * 500)
    assert SENTINEL not in str(caught.value)


def test_broken_file_with_secret_not_quoted(tmp_path: Path) -> None:
    """What is wrong with a file is said without quoting what may be a secret."""
    assert SENTINEL not in refusal(file=written(tmp_path, f"admin_token = {SENTINEL}"))
    assert SENTINEL not in refusal(file=written(tmp_path, f'{{"admin_token": {SENTINEL}}}', "r.json"))


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_variable_read(name: str) -> None:
    """Every setting can come from its variable; an empty list and nothing can be said there, too."""
    default = getattr(RouterSettings(), name)
    text = "" if default in (None, ()) else str(default)
    assert getattr(load_router_settings({}, None, {variable_of(name): text}), name) == default
