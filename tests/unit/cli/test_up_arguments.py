"""The command line of `ghostcacher up`: whose word is whose, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_cli.up.arguments import UpOptions, engine_value, parse, split, suspicions
from ghostcacher_connector.core.errors import ConfigError

OURS = {"--workers": 1, "--logs": 0, "--port": 1}


def given_options(*words: str) -> UpOptions:
    return parse(["org/model", *words], {})


@pytest.mark.parametrize(
    ("words", "own", "engine"),
    [
        ("M --workers 2", "M --workers 2", ""),
        ("M --workers 2 --max-model-len 8192", "M --workers 2", "--max-model-len 8192"),
        ("M --max-model-len 8192 --workers 2", "M --workers 2", "--max-model-len 8192"),
        ("--logs M --seed 1 --enforce-eager", "--logs M", "--seed 1 --enforce-eager"),
        ("M --workers=2 -tp 2 --port 81", "M --workers=2 --port 81", "-tp 2"),
        ("M --stop a b --logs", "M --logs", "--stop a b"),
        ("M --seed -1 -O3", "M", "--seed -1 -O3"),
        ("M -- --workers 3 x", "M", "--workers 3 x"),
        ("M --seed 1 -- --port 3", "M", "--seed 1 --port 3"),
        ("M --workers -1", "M --workers -1", ""),
        ("M --seed=1 --workers", "M --workers", "--seed=1"),
        ("--seed 1 --logs M", "--logs M", "--seed 1"),
    ],
)
def test_split_each_word_has_one_owner(words: str, own: str, engine: str) -> None:
    """What is not ours is the engine's, with its values; what follows -- is the engine's in any case."""
    assert split(words.split(), OURS) == (own.split(), engine.split())


@given(st.lists(st.sampled_from(["M", "--workers", "--logs", "--seed", "-x", "7", "-1", "--a=b", "--port=1"])))
def test_split_loses_nothing(words: list[str]) -> None:
    """Every word goes to exactly one of the two, in the order in which it came."""
    own, engine = split(words, OURS)
    assert sorted(own + engine) == sorted(words)
    for part in (own, engine):
        rest = iter(words)
        assert all(word in rest for word in part)


def test_parse_defaults() -> None:
    """A model alone is two engines behind a router on loopback: one has nobody to share with."""
    options = given_options()
    assert (options.model, options.workers, options.host, options.port) == ("org/model", 2, "127.0.0.1", 8000)
    assert options.redis_url is None
    assert options.engine_arguments == ()


def test_parse_redis_from_environment() -> None:
    """The Redis of the environment is used, unless the command line names another."""
    environ = {"GC_REDIS_URL": "redis://a:1"}
    assert parse(["o/m"], environ).redis_url == "redis://a:1"
    assert parse(["o/m", "--redis-url", "redis://b:1"], environ).redis_url == "redis://b:1"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--workers", "0"), ("--workers", "from 1 to 256", "0")),
        (("--workers", "-3"), ("--workers", "-3")),
        (("--workers", "257"), ("--workers", "257")),
        (("--engine", "vlm"), ("--engine", "did you mean vllm?")),
        (("--port", "70000"), ("--port", "65535", "70000")),
        (("--host", "a b"), ("--host", "a b")),
        (("--gpus", "0,,1"), ("--gpus", "0,,1")),
        (("--gpus", "0,0"), ("--gpus", "different")),
        (("--kv-gib", "0"), ("--kv-gib", "1 to 4096")),
        (("--host-tier", "-1"), ("--host-tier", "0 to 4096", "-1")),
        (("--host-tier", "nan"), ("--host-tier", "nan")),
        (("--object-url", "/var/cache"), ("object_url", "expected s3:// or file://")),
        (("--object-url", "file://relative/folder"), ("object_url", "an absolute path")),
        (("--object-url", "s3://bucket/p?endpoint=nowhere"), ("object_url: endpoint", "nowhere")),
        (("--object-url", "s3://key:pass@bucket/p"), ("object_url", "no credentials in the URL")),
        (("--engine", "sglang", "--object-url", "file:///tmp/o"), ("--object-url", "expected --engine vllm", "sglang")),
        (("--ready-timeout", "nan"), ("--ready-timeout",)),
        (("--redis-url", "localhost"), ("redis_url", "redis://")),
        (("--kv-transfer-config", "{}"), ("--kv-transfer-config", "cannot be passed on")),
        (("--", "--model=x"), ("--model", "cannot be passed on")),
    ],
)
def test_parse_bad_option_refused_by_name(words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    """A bad option is refused before anything is started; the message names it and what came."""
    with pytest.raises(ConfigError) as caught:
        given_options(*words)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize("words", [(), ("--workers", "two"), ("--logs",)])
def test_parse_wrong_usage_ends_with_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """No model, or a word where a number belongs, is wrong usage."""
    with pytest.raises(SystemExit) as caught:
        parse(words, {})
    assert caught.value.code == 2
    assert "usage: ghostcacher up MODEL" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["/no/such/folder", "./model", "../model", "~/model", "a/b/c", "a/"])
def test_model_folder_missing_refused(name: str) -> None:
    """What can only be a folder must be there."""
    with pytest.raises(ConfigError, match="MODEL: expected a folder"):
        parse([name], {})


def test_model_folder_without_config_refused(tmp_path: Path) -> None:
    """A folder that holds no model is refused; with a config.json it is taken."""
    with pytest.raises(ConfigError, match=r"config\.json"):
        parse([str(tmp_path)], {})
    (tmp_path / "config.json").write_text("{}")
    assert parse([str(tmp_path)], {}).model == str(tmp_path)


def test_suspicions_name_the_flag_that_was_meant() -> None:
    """A misspelt flag of ours that went to the engine is pointed out; flags of the engine are not."""
    assert suspicions(given_options("--worker", "2")) == ["--worker goes to the engine; did you mean --workers?"]
    assert not suspicions(given_options("--max-model-len", "1", "--enforce-eager", "--seed", "1"))


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (("--tensor-parallel-size", "2"), "2"),
        (("--tensor_parallel_size=4",), "4"),
        (("-tp", "2", "-tp", "8"), "8"),
        (("--tensor-parallel-size",), None),
        (("--pipeline-parallel-size", "2"), None),
    ],
)
def test_engine_value_last_one_wins(arguments: tuple[str, ...], value: str | None) -> None:
    """The value that the engine will see is found in each way to write it."""
    assert engine_value(arguments, "--tensor-parallel-size", "-tp") == value
